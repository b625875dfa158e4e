"""Looking at a dataset and cleaning up after runs that were cut off; no model is loaded."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from synthgen.dataset.manifest import (
    CONFIG,
    IDENTITY,
    SHARD_NAME,
    fits_tar,
    is_complete,
    marker_name,
    metadata_name,
    preview_name,
    read_manifest,
    read_marker,
    shard_row,
    shard_stem,
    tar_name,
    totals,
    versions,
)
from synthgen.dataset.survey import survey
from synthgen.jobs.identity import read_config, read_identity
from synthgen.jobs.plan import planned_samples
from synthgen.jobs.restore import contradicts, restore_shard
from synthgen.storage.publish import Storage, open_storage, sha256_file

_ORPHAN_SECONDS = 3600.0  # a tar without a marker may be a moment old: its maker is at work


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """How far a dataset is.

    Args:
        planned_shards: Shards planned.
        complete_shards: Shards that are done.
        planned: Samples planned.
        samples: Samples in complete shards.
        failed: Failed samples of complete shards.
        reasons: Those by reason.
        num_bytes: Bytes of the complete shards' tars.
        unconverged: Samples whose k-means was stopped by ``max_iterations``.
        finalized: There is a manifest over every planned shard.
    """

    planned_shards: int
    complete_shards: int
    planned: int
    samples: int
    failed: int
    reasons: Mapping[str, int]
    num_bytes: int
    unconverged: int
    finalized: bool


def status(out: str | Path) -> DatasetStatus:
    """How far the dataset in a folder is, without loading its model.

    Raises:
        ValueError: If the folder holds no dataset.
    """
    storage = open_storage(out)
    config, identity = read_config(storage), read_identity(storage)
    assert identity is not None
    merged = identity["content"].get("merged", [])
    planned = [num for source in merged for num in source["planned"]] or planned_samples(config)
    found = survey(storage, identity["digest"], planned)
    sums = totals(found.rows.values())
    return DatasetStatus(
        planned_shards=len(planned),
        complete_shards=len(found.rows),
        planned=config.planned,
        samples=sums["samples"],
        failed=sums["failed"],
        reasons=sums["reasons"],
        num_bytes=sums["bytes"],
        unconverged=sums.get("unconverged", 0),
        finalized=found.manifest is not None
        and found.manifest["totals"]["planned"] == config.planned,
    )


def gc(
    out: str | Path, orphan_seconds: float = _ORPHAN_SECONDS, dry_run: bool = False
) -> list[str]:
    """Remove what interrupted runs left behind; complete shards are never touched.

    What a manifest lists, of whatever version, is never removed, nor is a tar that a marker knows.
    A shard whose marker cannot be read is left alone, too: 'synthgen verify' names it. A listed
    shard whose marker is lost gets it back. Everything is looked at again right before it is
    removed, and on local disks nobody publishes meanwhile.

    Args:
        out: The dataset's folder.
        orphan_seconds: Age from which a file of a shard without a marker is an orphan.
        dry_run: Remove and restore nothing; only say what would be removed.

    Returns:
        Names of what was removed: staging of processes that are gone, uploads that were cut off,
        files of shards without a marker, markers without their tar.

    Raises:
        ValueError: If there is no dataset, or one of its manifests cannot be read.
    """
    storage = open_storage(out)
    identity = read_identity(storage)
    if identity is None:
        raise ValueError(f"{storage.root} must be a dataset. Got no {IDENTITY} there.")
    if not dry_run:
        _restore_listed(storage, identity["digest"])
    listed = _listed(storage)
    found = {shard: _orphans(storage, shard, listed, orphan_seconds) for shard in _shards(storage)}
    orphans = [name for names in found.values() for name in names]
    if orphans and not dry_run:
        orphans = []
        with storage.publishing():
            listed = _listed(storage)
            for shard in (shard for shard, names in found.items() if names):
                for name in _orphans(storage, shard, listed, orphan_seconds):
                    storage.remove(name)
                    orphans.append(name)
    partial = storage.clear_partial_uploads(orphan_seconds, dry_run)
    return [*storage.clear_stale_staging(dry_run), *partial, *orphans]


def _restore_listed(storage: Storage, digest: str) -> None:
    """Give listed shards their markers back where these are lost or tell of another tar."""
    manifest = read_manifest(storage)
    if manifest is None or storage.size(CONFIG) is None:
        return
    config = read_config(storage)
    for row in manifest["shards"]:
        shard = shard_stem(row["name"])
        marker = read_marker(storage, shard)
        if (
            marker is None
            or not is_complete(storage, marker, digest, marker.planned)
            or contradicts(row, shard_row(marker))
        ):
            restore_shard(storage, shard, config, digest)


def _listed(storage: Storage) -> set[str]:
    """Names of the tars of every manifest that was ever published."""
    manifests = [read_manifest(storage, version) for version in (None, *versions(storage))]
    return {row["name"] for manifest in manifests if manifest for row in manifest["shards"]}


def _shards(storage: Storage) -> list[str]:
    """File stems of all shards that have a file of any kind."""
    stems = {
        Path(name).stem
        for folder in ("data", "stats", "metadata", "previews")
        for name in storage.names(folder)
    }
    return sorted(stem for stem in stems if SHARD_NAME.fullmatch(stem))


def _orphans(storage: Storage, shard: str, listed: Collection[str], seconds: float) -> list[str]:
    """Files of a shard that belong to no manifest and no marker, and are old enough."""
    tar, content = tar_name(shard), storage.read(marker_name(shard))
    if tar in listed:
        return []
    if content is not None:
        marker = read_marker(storage, shard)
        if marker is None or fits_tar(storage, marker):
            return []  # of another release, or damaged: what it speaks of may be complete
        if storage.size(tar) is not None:
            with storage.open(tar) as stream:
                if sha256_file(stream) == marker.sha256:  # its size in the marker is damaged
                    return []
    files = (tar, metadata_name(shard), preview_name(shard), marker_name(shard))
    found = [name for name in files if storage.size(name) is not None]
    return [name for name in found if _age(storage, name) >= seconds]


def _age(storage: Storage, name: str) -> float:
    try:
        return time.time() - float(storage.fs.modified(storage.path(name)).timestamp())
    except FileNotFoundError:
        return 0.0
