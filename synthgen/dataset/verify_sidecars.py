"""What can be wrong beside the data: audits, labels and previews.

What is not finished is no fault: shards without a marker of an audit or of labels are passed by.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from synthgen.dataset.audits import AUDITS, summarize
from synthgen.dataset.labels import LABELS, summarize_labels
from synthgen.dataset.manifest import preview_name, read_marker
from synthgen.dataset.previews import preview_keys, shard_previews
from synthgen.dataset.records import decode_image
from synthgen.dataset.shards import read_span, scan, spans
from synthgen.dataset.sidecars import AnyMarker, SideFolder, read_sealed
from synthgen.dataset.verify_samples import Problem, verify_class_ids
from synthgen.storage.publish import Storage
from synthgen.storage.seal import hash_file
from synthgen.storage.untrusted import one_line


def verify_sidecars(
    storage: Storage,
    shards: Sequence[str],
    names: Mapping[int, str] | None,
    deep: bool,
    dataset: str | None,
) -> Iterator[Problem]:
    """Every problem of what stands beside the data.

    Args:
        shards: File stems of its shards.
        names: Classes of classes.json by id; None: not compared.
        deep: Also derive summaries again, and decode semantic maps and previews.
        dataset: Digest that its manifest says; None: not known.
    """
    for audit_id in AUDITS.ids(storage):
        audited, whole = yield from _verify_files(storage, AUDITS, audit_id, shards)
        if deep and audited and whole and dataset is not None:
            again = summarize(storage, audit_id, audited, dataset)
            yield from _verify_summary(storage, AUDITS, audit_id, again)
    for label_id in LABELS.ids(storage):
        labeled, whole = yield from _verify_files(storage, LABELS, label_id, shards)
        for marker in labeled if deep else ():
            name = LABELS.file_name(label_id, marker.name)
            yield from _verify_semantic(storage, name, names)
        if deep and labeled and whole:
            again = summarize_labels(label_id, labeled)
            yield from _verify_summary(storage, LABELS, label_id, again)
    for shard in shards:
        yield from _verify_previews(storage, shard, deep)


def _verify_files(
    storage: Storage, folder: SideFolder[AnyMarker], name: str, shards: Sequence[str]
) -> Generator[Problem, None, tuple[list[AnyMarker], bool]]:
    """Description and files of an audit or labels; returns the good markers, and if all are."""
    markers: list[AnyMarker] = []
    whole = True
    for shard in shards:
        where, file = folder.marker_name(name, shard), folder.file_name(name, shard)
        if storage.size(where) is None:
            continue
        again = f"remove {where} and run 'synthgen {folder.command} --id {name}' again"
        marker, size = folder.read_marker(storage, name, shard), storage.size(file)
        problem = None
        if marker is None:
            problem = Problem("bad marker", where, f"cannot be read; {again}")
        elif size is None:
            problem = Problem("missing file", file, f"has a marker; {again}")
        elif size != marker.bytes:
            found = f"{size} bytes, the marker says {marker.bytes}; {again}"
            problem = Problem("wrong size", file, found)
        elif (sha256 := hash_file(storage, file) or "") != marker.sha256:
            found = f"sha256 {sha256[:12]}…, the marker says {marker.sha256[:12]}…; {again}"
            problem = Problem("wrong hash", file, found)
        else:
            markers.append(marker)
        if problem is not None:
            whole = False
            yield problem
    where = folder.description_name(name)
    try:
        if read_sealed(storage, where) is None:
            yield Problem("missing file", where, f"every {folder.folder} folder has one")
    except ValueError as error:
        yield Problem("unreadable file", where, str(error))
    return markers, whole


def _verify_summary(
    storage: Storage, folder: SideFolder[Any], name: str, derived: Mapping[str, Any]
) -> Iterator[Problem]:
    """Whether a summary, where there is one, says what all results together say.

    One of fewer shards is that of results that go on, and is passed by.
    """
    where = folder.summary_name(name)
    try:
        summary = read_sealed(storage, where)
    except ValueError as error:
        yield Problem("unreadable file", where, str(error))
        return
    if summary is None or _num_shards(summary) < _num_shards(derived):
        return
    for key, value in derived.items():
        if key != "schema_version" and not _alike(summary.get(key), value):
            again = f"run 'synthgen {folder.command} --id {name}' again"
            yield Problem("wrong summary", where, f"{key} is not what the results say; {again}")


def _num_shards(summary: Mapping[str, Any]) -> int:
    found = summary.get("shards")
    return found if isinstance(found, int) else len(found or ())


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are equal but for the last digits of means."""
    if isinstance(other, float):
        return isinstance(one, float) and math.isclose(one, other, rel_tol=1e-9)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return all(_alike(one[name], value) for name, value in other.items())
    return bool(one == other)


def _verify_semantic(
    storage: Storage, name: str, names: Mapping[int, str] | None
) -> Iterator[Problem]:
    """Ids of the semantic maps in a tar of labels."""
    try:
        with storage.open(name) as stream:
            for span in spans(scan(stream)):
                semantic = decode_image(read_span(stream, span)["sem.png"], "L")
                yield from verify_class_ids(f"{name} {one_line(span.key, 40)}", semantic, names)
    except (KeyError, ValueError) as error:
        yield Problem("unreadable file", name, f"{error!r:.200}")


def _verify_previews(storage: Storage, shard: str, deep: bool) -> Iterator[Problem]:
    """Whether a shard's previews are those of its marker; where it has no hash, of our images."""
    name, marker = preview_name(shard), read_marker(storage, shard)
    again = f"remove {name} and run again"
    if marker is None:
        return
    if marker.previews_sha256:
        found = hash_file(storage, name)
        if found is None:
            yield Problem("missing file", name, f"its marker has its hash; {again}")
        elif found != marker.previews_sha256:
            yield Problem("wrong hash", name, f"its marker says another; {again}")
    elif marker.schema_version > 1 and storage.size(name) is not None:
        yield Problem("foreign file", name, f"its marker knows of no previews; {again}")
    elif deep:
        try:
            for _ in shard_previews(storage, shard, preview_keys(storage, shard)):
                pass
        except ValueError as error:
            yield Problem("unreadable file", name, f"{error!s:.200}; {again}")
