"""What can be wrong beside the data: audits, labels and previews.

What is not finished is no fault: shards without a marker of an audit or of labels are passed by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from synthgen.dataset.audit_summary import summarize
from synthgen.dataset.audits import AUDITS, AuditMarker, read_audit_marker
from synthgen.dataset.labels import (
    LABELS,
    LabelMarker,
    labels_tar_name,
    read_labels_marker,
    summarize_labels,
)
from synthgen.dataset.manifest import preview_name, read_marker
from synthgen.dataset.previews import preview_keys, shard_previews
from synthgen.dataset.records import decode_image
from synthgen.dataset.shards import read_span, scan, spans
from synthgen.dataset.sidecars import SideFolder, read_sealed
from synthgen.dataset.verify_samples import Problem, verify_class_ids
from synthgen.storage.publish import Storage, sha256_file
from synthgen.storage.seal import hash_file
from synthgen.storage.untrusted import one_line

ReadMarker = Callable[[Storage, str, str], AuditMarker | LabelMarker | None]


def verify_beside(
    storage: Storage,
    shards: Sequence[str],
    names: Mapping[int, str] | None,
    deep: bool,
    dataset: str | None,
) -> Iterator[Problem]:
    """Every problem of what stands beside the data.

    Args:
        storage: The dataset.
        shards: File stems of its shards.
        names: Classes of classes.json by id; None: not compared.
        deep: Also derive summaries again, and decode semantic maps and previews.
        dataset: Digest that its manifest says; None: not known.
    """
    for audit_id in AUDITS.ids(storage):
        marked = list(_marked(storage, AUDITS, audit_id, shards))
        wrong = [
            problem
            for shard in marked
            for problem in _verify_file(storage, AUDITS, audit_id, shard, read_audit_marker)
        ]
        yield from wrong
        yield from _verify_description(storage, AUDITS, audit_id)
        if deep and marked and not wrong and dataset is not None:
            done = [read_audit_marker(storage, audit_id, shard) for shard in marked]
            again = summarize(storage, audit_id, [m for m in done if m is not None], dataset)
            yield from _verify_summary(storage, AUDITS, audit_id, again)
    for label_id in LABELS.ids(storage):
        marked = list(_marked(storage, LABELS, label_id, shards))
        broken = False
        for shard in marked:
            wrong = [*_verify_file(storage, LABELS, label_id, shard, read_labels_marker)]
            yield from wrong
            broken = broken or bool(wrong)
            if deep and not wrong:
                yield from _verify_semantic(storage, label_id, shard, names)
        yield from _verify_description(storage, LABELS, label_id)
        if deep and marked and not broken:
            found = [read_labels_marker(storage, label_id, shard) for shard in marked]
            again = summarize_labels(label_id, [m for m in found if m is not None])
            yield from _verify_summary(storage, LABELS, label_id, again)
    for shard in shards:
        yield from _verify_previews(storage, shard, deep)


def _verify_description(storage: Storage, folder: SideFolder, name: str) -> Iterator[Problem]:
    """Whether what says what results are can be read, and is about them."""
    where = folder.description_name(name)
    try:
        if read_sealed(storage, where) is None:
            yield Problem("missing file", where, f"every {folder.folder} folder has one")
    except ValueError as error:
        yield Problem("unreadable file", where, str(error))


def _verify_summary(
    storage: Storage, folder: SideFolder, name: str, derived: Mapping[str, Any]
) -> Iterator[Problem]:
    """Whether a summary, where there is one, says what all results together say.

    One of fewer shards is that of results that go on: it is compared as far as it goes.
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
            command = "audit" if folder is AUDITS else "label"
            found = (
                f"{key} is not what the results say; run 'synthgen {command} --id {name}' again"
            )
            yield Problem("wrong summary", where, found)


def _num_shards(summary: Mapping[str, Any]) -> int:
    found = summary.get("shards")
    return found if isinstance(found, int) else len(found or ())


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are equal but for the last digits of means."""
    if isinstance(other, float):
        return isinstance(one, float) and math.isclose(one, other, rel_tol=1e-9)
    if isinstance(other, dict):
        return (
            isinstance(one, dict)
            and one.keys() == other.keys()
            and all(_alike(one[name], value) for name, value in other.items())
        )
    return bool(one == other)


def _marked(
    storage: Storage, folder: SideFolder, name: str, shards: Sequence[str]
) -> Iterator[str]:
    """Those of the shards that have a marker there."""
    return (s for s in shards if storage.size(folder.marker_name(name, s)) is not None)


def _verify_file(
    storage: Storage, folder: SideFolder, name: str, shard: str, read: ReadMarker
) -> Iterator[Problem]:
    """Size and hash of what an audit or labels have of a shard, against its marker."""
    where, file = folder.marker_name(name, shard), folder.file_name(name, shard)
    command = "audit" if folder is AUDITS else "label"
    again = f"remove {where} and run 'synthgen {command} --id {name}' again"
    marker, size = read(storage, name, shard), storage.size(file)
    if marker is None:
        yield Problem("bad marker", where, f"cannot be read; {again}")
    elif size is None:
        yield Problem("missing file", file, f"has a marker; {again}")
    elif size != marker.bytes:
        yield Problem("wrong size", file, f"{size} bytes, the marker says {marker.bytes}; {again}")
    else:
        with storage.open(file) as stream:
            sha256 = sha256_file(stream)
        if sha256 != marker.sha256:
            found = f"sha256 {sha256[:12]}…, the marker says {marker.sha256[:12]}…"
            yield Problem("wrong hash", file, f"{found}; {again}")


def _verify_semantic(
    storage: Storage, label_id: str, shard: str, names: Mapping[int, str] | None
) -> Iterator[Problem]:
    """Ids of the semantic maps that labels have of a shard."""
    name = labels_tar_name(label_id, shard)
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
