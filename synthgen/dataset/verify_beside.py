"""What can be wrong beside the data: audits, labels and previews.

What is not finished is no fault: shards without a marker of an audit or of labels are passed by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from synthgen.dataset.audits import AUDITS, AuditMarker, read_audit_marker
from synthgen.dataset.beside import SideFolder
from synthgen.dataset.labels import LABELS, LabelMarker, labels_tar_name, read_labels_marker
from synthgen.dataset.manifest import marker_name, preview_name
from synthgen.dataset.previews import preview_keys, shard_previews
from synthgen.dataset.publish import Storage, sha256_file
from synthgen.dataset.records import decode_image
from synthgen.dataset.shards import read_span, scan, spans
from synthgen.dataset.verify_samples import Problem, verify_class_ids
from synthgen.untrusted import one_line

ReadMarker = Callable[[Storage, str, str], AuditMarker | LabelMarker | None]


def verify_beside(
    storage: Storage, shards: Sequence[str], names: Mapping[int, str] | None, deep: bool
) -> Iterator[Problem]:
    """Every problem of what stands beside the data.

    Args:
        storage: The dataset.
        shards: File stems of its shards.
        names: Classes of classes.json by id; None: not compared.
        deep: Also decode semantic maps and previews.
    """
    for audit_id in AUDITS.ids(storage):
        for shard in _marked(storage, AUDITS, audit_id, shards):
            yield from _verify_file(storage, AUDITS, audit_id, shard, read_audit_marker)
    for label_id in LABELS.ids(storage):
        for shard in _marked(storage, LABELS, label_id, shards):
            wrong = [*_verify_file(storage, LABELS, label_id, shard, read_labels_marker)]
            yield from wrong
            if deep and not wrong:
                yield from _verify_semantic(storage, label_id, shard, names)
    for shard in shards if deep else ():
        yield from _verify_previews(storage, shard)


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


def _verify_previews(storage: Storage, shard: str) -> Iterator[Problem]:
    """That every image of a shard's previews can be decoded; no marker has their hash."""
    name = preview_name(shard)
    try:
        for _ in shard_previews(storage, shard, preview_keys(storage, shard)):
            pass
    except ValueError as error:
        again = f"remove {marker_name(shard)} and run again"
        yield Problem("unreadable file", name, f"{error!s:.200}; {again}")
