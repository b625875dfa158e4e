"""Several datasets become one: every shard is written again, under new keys.

Shard by shard and sample by sample, so that memory does not grow; a shard is published like one
that was drawn (staged, verified, marker last), so that a merge that was cut off goes on where it
stopped and ends in the same bytes. The rows in ``metadata`` say where each sample came from. What
was made of the sources (audits, labels beside them) is about them and stays there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synthgen.dataset.labels import class_ids, class_names
from synthgen.dataset.manifest import (
    SCHEMA_VERSION,
    Marker,
    is_complete,
    marker_bytes,
    marker_name,
    metadata_name,
    preview_name,
    read_marker,
    tar_name,
)
from synthgen.dataset.metadata import Origin, Row, read_rows, rows_bytes
from synthgen.dataset.rekey import rekey, translate_ids
from synthgen.dataset.shards import read_span, scan, spans, whole_tar
from synthgen.jobs.merge_plan import MergePlan, Source, describe, finish, plan_merge
from synthgen.jobs.shard import verify_staged
from synthgen.progress import Progress, report
from synthgen.storage.publish import Storage, explain_disk_errors, open_storage, sha256_file
from synthgen.storage.seal import open_vouched, sha256_of
from synthgen.types import shard_name

_TEXT_BYTES = 100_000


def merge(
    sources: Sequence[str | Path], out: str | Path, progress: Progress = report
) -> dict[str, Any]:
    """Write the samples of several datasets into a new one, or finish doing so.

    Args:
        sources: Finished datasets of equal schema (image format, labels or none, ks, library
            versions that are recorded), in the order of their shards.
        out: The new dataset's folder or URL.
        progress: Told about samples and shards.

    Returns:
        The new manifest.

    Raises:
        ValueError: In one line, if the datasets differ in schema, are the same, or the folder
            holds something else.
        RuntimeError: If a source is broken.
    """
    plan = plan_merge(sources)
    storage = open_storage(out)
    with explain_disk_errors(storage, _TEXT_BYTES, "the dataset's description"):
        describe(plan, storage)
        storage.clear_stale_staging()
    for index, item in enumerate(plan.shards):
        merge_shard(plan, item, shard_name(index), storage, progress)
    with explain_disk_errors(storage, _TEXT_BYTES, "the manifest"):
        return finish(plan, storage)


@dataclass(frozen=True, slots=True)
class _Copy:
    """One shard of a source on its way to another name."""

    source: Source
    stem: str
    name: str
    new_ids: dict[str, int]

    def key(self, old: str) -> str:
        """The new key of a sample: the new shard's number, and the old place in it."""
        return self.name.removeprefix("train-") + old[6:]

    def samples(self, tar: str, sha256: str) -> Iterator[tuple[str, dict[str, bytes]]]:
        """New key and members of every sample of a tar of this shard, which has this hash."""
        old = class_ids(class_names(self.source.storage))
        ids = translate_ids(old, self.new_ids)
        where = self.source.storage.root
        with open_vouched(self.source.storage, tar, sha256, f"the manifest of {where}") as stream:
            for span in spans(scan(stream)):
                key = self.key(span.key)
                yield key, rekey(read_span(stream, span), key, ids)


def merge_shard(
    plan: MergePlan, item: tuple[Source, str], name: str, storage: Storage, progress: Progress
) -> None:
    """Write one shard of a source under another name; one that is complete is left alone."""
    source, stem = item
    marker = _source_marker(source, stem)
    standing = read_marker(storage, name)
    if (
        standing
        and is_complete(storage, standing, plan.digest, marker.planned)
        and _has_previews(source.storage, stem) == _has_previews(storage, name)
    ):
        progress("shard", name=name, planned=marker.planned, reused=True)
        return
    copy = _Copy(source, stem, name, plan.class_ids)
    with (
        explain_disk_errors(storage, marker.bytes + _TEXT_BYTES, f"shard {name}"),
        storage.staging() as folder,
    ):
        _publish(storage, copy, marker, plan.digest, folder, progress)
    progress("shard", name=name, planned=marker.planned, reused=False)


def _publish(
    storage: Storage, copy: _Copy, old: Marker, config: str, folder: Path, progress: Progress
) -> None:
    started = time.perf_counter()
    rows = [_row(copy, row) for row in read_rows(copy.source.storage, copy.stem, old)]
    num_bytes, sha256 = 0, ""
    tar, previews = folder / "shard.tar", folder / "previews.tar"
    if not old.skipped:
        _write(copy, tar_name(copy.stem), copy.source.hashes[copy.stem], tar, progress)
        rows, num_bytes, sha256 = verify_staged(tar, copy.name, rows)
    previews_sha256 = ""
    if _has_previews(copy.source.storage, copy.stem):
        _write(copy, preview_name(copy.stem), old.previews_sha256, previews, None)
        with previews.open("rb") as stream:
            previews_sha256 = sha256_file(stream)
    content = rows_bytes(rows)
    marker = replace(
        old,
        name=copy.name,
        config=config,
        bytes=num_bytes,
        sha256=sha256,
        seconds={"write": round(time.perf_counter() - started, 3)},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        metadata_sha256=sha256_of(content),
        previews_sha256=previews_sha256,
        schema_version=SCHEMA_VERSION,
    )
    with storage.publishing():
        for staged, name in ((tar, tar_name(copy.name)), (previews, preview_name(copy.name))):
            if staged.is_file():
                storage.publish(staged, name)
        storage.publish_bytes(content, metadata_name(copy.name))
        storage.publish_bytes(marker_bytes(marker), marker_name(copy.name))


def _has_previews(storage: Storage, shard: str) -> bool:
    return storage.size(preview_name(shard)) is not None


def _write(copy: _Copy, tar: str, sha256: str, path: Path, progress: Progress | None) -> None:
    with whole_tar(path) as writer:
        for key, members in copy.samples(tar, sha256):
            writer.write(key, members)
            if progress is not None:
                progress("samples", count=1)


def _row(copy: _Copy, row: Row) -> Row:
    return replace(row, key=copy.key(row.key), origin=Origin(copy.source.digest, row.key))


def _source_marker(source: Source, stem: str) -> Marker:
    marker = read_marker(source.storage, stem)
    if marker is None:
        raise RuntimeError(
            f"{source.storage.path(marker_name(stem))} must be readable. Got none; see "
            f"'synthgen verify'."
        )
    return marker
