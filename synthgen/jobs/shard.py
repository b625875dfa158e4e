"""Make one shard: stage, verify, publish, and mark it done, in this order.

Killed anywhere, it leaves either a complete shard or something that the next run overwrites.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from synthgen.config import Config
from synthgen.dataset.labels import class_ids, class_names
from synthgen.dataset.manifest import (
    Marker,
    is_complete,
    marker_bytes,
    marker_name,
    metadata_name,
    preview_name,
    read_marker,
    shard_index,
    tar_name,
)
from synthgen.dataset.metadata import Row, rows_bytes
from synthgen.dataset.shards import ShardWriter, scan, span_sha256, spans, whole_tar
from synthgen.dataset.verify import verify_tar
from synthgen.jobs.batch import Made, Recipe, make_batch, out_of_memory
from synthgen.jobs.estimate import bytes_per_sample
from synthgen.jobs.identity import check_plan, check_same, environment, keep_threads, read_identity
from synthgen.jobs.plan import batches
from synthgen.jobs.restore import restore_shard
from synthgen.progress import Progress, report
from synthgen.storage.publish import Storage, explain_disk_errors, open_storage, sha256_file
from synthgen.storage.seal import sha256_of
from synthgen.types import ShardReport, ShardSpec

logger = logging.getLogger(__name__)


def make_shard(
    config: Config, spec: ShardSpec, out: str | Path, progress: Progress = report
) -> ShardReport:
    """Make a shard, or find that it is already complete; any number may do so at once.

    Args:
        config: The dataset's configuration.
        spec: One of ``plan(config)``.
        out: The dataset's folder; ``initialize`` has been there.
        progress: Told about samples and shards.

    Returns:
        What became of it; ``reused`` where there was nothing to do.

    Raises:
        ValueError: If the folder holds no dataset of this configuration.
        RuntimeError: If another run has planned more samples since.
        OSError: In one line with the space needed, if the disk is full.
    """
    storage = open_storage(out)
    digest = _check_initialized(storage, config)
    standing = complete_marker(storage, spec, digest) or restore_shard(
        storage, spec.name, config, digest, spec.samples
    )
    if standing is not None:
        progress("shard", name=spec.name, planned=standing.planned, reused=True)
        return standing.report(reused=True)
    needed = bytes_per_sample(config) * len(spec.samples)
    with (
        explain_disk_errors(storage, needed, f"shard {spec.name}"),
        storage.staging() as folder,
    ):
        ids = class_ids(class_names(storage))
        recipe = Recipe(config, digest, config.generation.batch_size, ids)
        draft = _draft_within_memory(recipe, spec, folder, progress)
        marker = _publish(storage, config, spec, digest, draft)
    progress("shard", name=spec.name, planned=marker.planned, reused=False)
    return marker.report(reused=False)


@dataclass(slots=True)
class _Draft:
    """A shard under construction in a staging folder."""

    tar: Path
    previews: Path
    batch_size: int
    rows: list[Row] = field(default_factory=list)
    num_previews: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def num_ok(self) -> int:
        return sum(row.status == "ok" for row in self.rows)


def _check_initialized(storage: Storage, config: Config) -> str:
    standing = read_identity(storage)
    if standing is None:
        raise ValueError(f"{storage.root} must be initialized first. Got no identity.json there.")
    keep_threads(standing)
    digest = check_same(standing, config, storage.root)
    check_plan(storage, config)
    return digest


def complete_marker(
    storage: Storage, spec: ShardSpec, digest: str, there: bool = False
) -> Marker | None:
    """The marker of a shard that is done, None where it is not; see `Storage.read`."""
    marker = read_marker(storage, spec.name, there)
    done = marker is not None and is_complete(storage, marker, digest, len(spec.samples))
    return marker if done else None


def _draft_within_memory(
    recipe: Recipe, spec: ShardSpec, folder: Path, progress: Progress
) -> _Draft:
    """A draft in planned batches, or in batches of one where the device is too small."""
    done = 0

    def count(event: str, **fields: int) -> None:
        nonlocal done
        done += fields["count"]
        progress(event, **fields)

    if recipe.batch_size > 1:
        try:
            return _draft(recipe, spec, folder, count)
        except out_of_memory() as error:
            logger.warning("%s: out of memory, again with batch 1 (%s)", spec.name, error)
            progress("samples", count=-done)
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return _draft(replace(recipe, batch_size=1), spec, folder, progress)


def _draft(recipe: Recipe, spec: ShardSpec, folder: Path, progress: Progress) -> _Draft:
    draft = _Draft(folder / "shard.tar", folder / "previews.tar", recipe.batch_size)
    with whole_tar(draft.tar) as tar, whole_tar(draft.previews) as previews:
        for number, batch in enumerate(batches(spec.samples, recipe.batch_size)):
            for made in make_batch(recipe, batch, number):
                _append(draft, made, tar, previews)
            progress("samples", count=len(batch))
    return draft


def _append(draft: _Draft, made: Made, tar: ShardWriter, previews: ShardWriter) -> None:
    started = time.perf_counter()
    if made.members is not None:
        tar.write(made.row.key, made.members)
    if made.previews:
        previews.write(made.row.key, made.previews)
        draft.num_previews += 1
    draft.rows.append(made.row)
    draft.seconds["generate"] += made.row.seconds_generate
    draft.seconds["segment"] += made.row.seconds_segment
    draft.seconds["write"] += made.seconds_write + time.perf_counter() - started


def _publish(
    storage: Storage, config: Config, spec: ShardSpec, digest: str, draft: _Draft
) -> Marker:
    """Put a draft into the dataset; the marker, which makes it count, is last.

    Between processes of one machine, or of a file system with locks, nothing comes in between: the
    plan is still ours, and a shard that another has completed meanwhile stays. On an object store
    we look, too, right before; what another does in the second after that look is seen by nobody:
    a shard then has the tar of one and the marker of the other until the next run.
    """
    started = time.perf_counter()
    num_bytes, sha256 = 0, ""
    if draft.num_ok:
        draft.rows, num_bytes, sha256 = verify_staged(draft.tar, spec.name, draft.rows)
    rows, previews_sha256 = rows_bytes(draft.rows), ""
    if draft.num_previews:
        with draft.previews.open("rb") as stream:
            previews_sha256 = sha256_file(stream)
    draft.seconds["write"] += time.perf_counter() - started
    marker = Marker(
        name=spec.name,
        config=digest,
        planned=len(spec.samples),
        counts={"ok": draft.num_ok, "failed": len(draft.rows) - draft.num_ok},
        reasons=dict(sorted(Counter(row.reason for row in draft.rows if row.reason).items())),
        bytes=num_bytes,
        sha256=sha256,
        skipped=not draft.num_ok,
        batch_size=draft.batch_size,
        seconds={name: round(value, 3) for name, value in draft.seconds.items()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(config),
        metadata_sha256=sha256_of(rows),
        previews_sha256=previews_sha256,
        unconverged=sum(not row.converged for row in draft.rows),
    )
    with storage.publishing():
        check_plan(storage, config)
        if (standing := complete_marker(storage, spec, digest)) is not None:
            return standing
        if draft.num_ok:
            storage.publish(draft.tar, tar_name(spec.name))
        else:  # readers fail on a tar without members; an earlier, smaller plan's may stand there
            storage.remove(tar_name(spec.name))
        if draft.num_previews:
            storage.publish(draft.previews, preview_name(spec.name))
        storage.publish_bytes(rows, metadata_name(spec.name))
        storage.publish_bytes(marker_bytes(marker), marker_name(spec.name))
    return marker


def verify_staged(tar: Path, shard: str, rows: Sequence[Row]) -> tuple[list[Row], int, str]:
    """Check a new tar whole before it is published.

    Args:
        tar: The staged file.
        shard: File stem of its shard.
        rows: Its samples, and those that failed.

    Returns:
        The rows with their places in the tar, its size and its hash.

    Raises:
        RuntimeError: If anything is wrong with it.
    """
    num_ok = sum(row.status == "ok" for row in rows)
    with tar.open("rb") as stream:
        problems = verify_tar(stream, shard, shard_index(shard), num_ok, deep=True)
        if problems:
            raise RuntimeError(f"A new shard must be correct. Got {problems[0]}.")
        places = {span.key: span for span in spans(scan(stream))}
        placed = [
            replace(
                row,
                byte_offset=places[row.key].offset,
                byte_size=places[row.key].size,
                sha256=span_sha256(stream, places[row.key]),
            )
            if row.key in places
            else row
            for row in rows
        ]
        num_bytes = stream.seek(0, 2)
        stream.seek(0)
        return placed, num_bytes, sha256_file(stream)
