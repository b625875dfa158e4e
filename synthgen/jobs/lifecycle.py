"""The life of a dataset: begin, finish, look at, clean up; and all of it in one call."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthgen.config import Config
from synthgen.dataset.changes import changed_keys, list_keys
from synthgen.dataset.manifest import (
    CONFIG,
    IDENTITY,
    SHARD_NAME,
    ShardRow,
    distinct,
    fits_tar,
    is_complete,
    marker_name,
    metadata_name,
    preview_name,
    read_manifest,
    read_marker,
    read_markers,
    shard_index,
    shard_row,
    shard_stem,
    tar_name,
    totals,
    versions,
)
from synthgen.dataset.survey import Survey, survey
from synthgen.jobs.classes import check_labeling
from synthgen.jobs.description import publish_conclusion, publish_description
from synthgen.jobs.identity import (
    check_plan,
    check_same,
    environment,
    identity_bytes,
    identity_content,
    machine,
    read_config,
    read_identity,
)
from synthgen.jobs.plan import plan, planned_samples, prompts_of
from synthgen.jobs.restore import restore_shard
from synthgen.jobs.shard import make_shard
from synthgen.progress import Progress, report
from synthgen.prompts import PromptList
from synthgen.registry import SEGMENTERS, resolve
from synthgen.storage.publish import Storage, explain_disk_errors, open_storage, sha256_file
from synthgen.types import shard_name

_TEXT_BYTES = 100_000  # generous for the small files of a dataset
_ASKED_AGAIN = 100  # shards that a store did not list
_ORPHAN_SECONDS = 3600.0  # a tar without a marker may be a moment old: its maker is at work

logger = logging.getLogger(__name__)


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


def generate(
    config: Config, out: str | Path, strict: bool = False, progress: Progress = report
) -> dict[str, Any]:
    """Make a dataset in this process, or finish one that was cut off; returns its manifest."""
    initialize(config, out, strict=strict)
    specs = plan(config)
    for index in missing(config, out, progress):
        make_shard(config, specs[index], out, progress)
    return finalize(config, out)


def missing(config: Config, out: str | Path, progress: Progress = report) -> list[int]:
    """Numbers of the planned shards that are still to be made.

    Args:
        config: The dataset's configuration.
        out: Its folder; ``initialize`` has been there.
        progress: Told how many shards and samples are already there.
    """
    storage, planned = open_storage(out), planned_samples(config)
    identity = read_identity(storage)
    done = survey(storage, identity["digest"], planned).rows if identity else {}
    if done:
        progress("standing", shards=len(done), samples=sum(planned[index] for index in done))
    return [index for index in range(len(planned)) if index not in done]


def rehearse(config: Config, out: str | Path, strict: bool = False) -> None:
    """Make every check that a run makes before its first image, and nothing else.

    Args:
        config: The dataset's configuration.
        out: Its folder.
        strict: Refuse other library versions, device or dtype than the dataset's.

    Raises:
        ValueError: As ``initialize``.
        OSError: If the folder cannot be written.
    """
    storage, _, _ = _checked(config, out)
    standing = _check_standing(storage, config)
    here = environment(config) | machine(standing)
    _extended(standing["environments"] if standing else [], here, strict)
    root = storage.local_root
    while root is not None and not root.exists():
        root = root.parent
    if root is not None and not os.access(root, os.W_OK):
        raise OSError(f"The output must be a writable folder. Got {root}. Choose another folder.")


def as_extended(config: Config, out: str | Path) -> Config:
    """The configuration with what the dataset in a folder was extended by: that is kept, too.

    Args:
        config: Of a dataset.
        out: Its folder.
    """
    storage = open_storage(out)
    if config.extended or read_identity(storage) is None or storage.read(CONFIG) is None:
        return config
    known = read_config(storage)
    same = known.num == config.num
    return config.model_copy(update={"extended": known.extended}) if same else config


def initialize(config: Config, out: str | Path, strict: bool = False) -> None:
    """Begin a dataset, or check that the one in the folder may be continued.

    Args:
        config: The dataset's configuration.
        out: Its folder.
        strict: Refuse to continue with other library versions, device or dtype.

    Raises:
        ValueError: If the folder holds something else, or a dataset of another configuration;
            the changed keys are named.
        OSError: If the folder cannot be written.
    """
    storage, prompts, content = _checked(config, out)
    with (
        explain_disk_errors(storage, _TEXT_BYTES, "the dataset's description"),
        storage.publishing(),
    ):
        standing = _check_standing(storage, config)
        here = environment(config) | machine(standing)
        environments = _extended(standing["environments"] if standing else [], here, strict)
        identity = identity_bytes(content, environments)
        publish_description(storage, config, identity, prompts.class_names)
    storage.clear_stale_staging()


def _checked(config: Config, out: str | Path) -> tuple[Storage, PromptList, dict[str, Any]]:
    """What a run works with, after its checks; there is not so much as a lock in the folder."""
    storage = open_storage(out)
    resolve(config.segmentation.method, SEGMENTERS, "segmentation.method")
    prompts = prompts_of(config)
    check_labeling(config, prompts)
    planned_samples(config)  # too many shards are refused before all else
    _check_standing(storage, config)
    return storage, prompts, identity_content(config)


def finalize(config: Config, out: str | Path) -> dict[str, Any]:
    """Publish the manifest once every planned shard is complete; may be repeated.

    Returns:
        The manifest.

    Raises:
        ValueError: If the folder holds no dataset of this configuration.
        RuntimeError: If shards are missing, they are named; if another run has planned more since.
    """
    storage = open_storage(out)
    standing = read_identity(storage)
    if standing is None:
        raise ValueError(f"{storage.root} must be initialized first. Got no {IDENTITY} there.")
    digest = check_same(standing, config, storage.root)
    check_plan(storage, config)
    found = check_complete(storage, digest, planned_samples(config))
    listed = {row["name"]: row for row in found.listed}
    restored: dict[int, ShardRow] = {}
    for index, row in found.rows.items():  # a bit may have been flipped in one of the two
        before = listed.get(row["name"], row)
        if before is not row and _contradicts(before, row):
            again = restore_shard(storage, shard_name(index), config, digest)
            if again is not None:
                restored[index] = shard_row(again)
    found = replace(found, rows={**found.rows, **restored})
    with explain_disk_errors(storage, _TEXT_BYTES, "the manifest"):
        models = [standing["content"]["model"]]
        return publish_conclusion(storage, config, standing, found, models)


def check_complete(storage: Storage, digest: str, planned: Sequence[int]) -> Survey:
    """All shards of a dataset, if they are complete.

    Args:
        storage: The dataset.
        digest: Of what determines its bytes.
        planned: Samples planned of each shard.

    Raises:
        RuntimeError: If shards are missing; they are named.
    """
    found = survey(storage, digest, planned)
    missing = [index for index in range(len(planned)) if index not in found.rows]
    if 0 < len(missing) <= _ASKED_AGAIN and storage.remote:  # its listing may lag behind
        there = (read_marker(storage, shard_name(index), there=True) for index in missing)
        new = [m for m in there if m and is_complete(storage, m, digest, m.planned)]
        rows = {shard_index(m.name): shard_row(m) for m in new}
        rows = {index: row for index, row in rows.items() if row["planned"] == planned[index]}
        environments = [dict(item) for item in found.environments]
        environments += [dict(marker.environment) for marker in new]
        seconds = Counter(found.seconds)
        for marker in new:
            seconds.update(marker.seconds)
        rows = {**found.rows, **rows}
        found = Survey(rows, found.manifest, distinct(environments), seconds)
        missing = [index for index in missing if index not in rows]
    if missing:
        raise RuntimeError(
            f"Every shard must be complete before the dataset is finalized. Got {len(missing)} "
            f"missing ({', '.join(shard_name(index) for index in missing[:5])}). Run the same "
            f"command again to make them."
        )
    return found


def status(out: str | Path) -> DatasetStatus:
    """How far the dataset in a folder is, without loading its model.

    Raises:
        ValueError: If the folder holds no dataset.
    """
    storage = open_storage(out)
    config, identity = read_config(storage), read_identity(storage)
    assert identity is not None
    merged = identity["content"].get("merged", [])
    planned = [num for source in merged for num in source["planned"]]
    found = survey(storage, identity["digest"], planned or planned_samples(config))
    sums = totals(found.rows.values())
    return DatasetStatus(
        planned_shards=len(planned or planned_samples(config)),
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


def standing_identity(storage: Storage) -> dict[str, Any] | None:
    """Identity of the dataset in a folder; None where the folder is empty.

    Raises:
        ValueError: If something else is there.
    """
    if storage.local_root is not None and storage.local_root.is_file():
        raise ValueError(f"The output must be a folder. Got a file, {storage.root}.")
    taken = storage.names() or storage.names("data") or storage.names("stats")
    # after looking: another process may begin right now
    standing = read_identity(storage, there=bool(taken))
    if taken and standing is None:
        raise ValueError(
            f"The output must be an empty folder or a dataset of synthgen. Got {storage.root} "
            f"with {taken[0]}. Choose another folder."
        )
    return standing


def _check_standing(storage: Storage, config: Config) -> dict[str, Any] | None:
    """Identity of the dataset in a folder, which a plan may go on with; None where it is empty.

    Raises:
        ValueError: If something else is there, or the plan does not hold all that is planned.
    """
    standing = standing_identity(storage)
    if standing is None:
        return None
    check_same(standing, config, storage.root)
    if storage.read(CONFIG) is not None:  # its maker may have been killed before it
        known = read_config(storage)
        if known.extended and (config.num != known.num or config.extended < known.extended):
            raise ValueError(
                f"{storage.root} was extended by {known.extended} shards and must keep them. Got "
                f"a plan of {config.num} samples and {config.extended} more shards. Go on with "
                f"'synthgen extend', or choose another folder."
            )
        if config.num < known.num:
            raise ValueError(
                f"num must not shrink below what is planned in {storage.root}, {known.num}. Got "
                f"{config.num}. Raise num, or choose another folder."
            )
        return standing
    planned = planned_samples(config)
    for marker in read_markers(storage):
        index = shard_index(marker.name)
        if index >= len(planned) or marker.planned > planned[index]:
            raise ValueError(
                f"num must not shrink below what is made. Got a plan without all of the "
                f"{marker.planned} samples of {marker.name}. Raise num, or choose another folder."
            )
    return standing


def _extended(
    environments: list[dict[str, Any]], here: dict[str, Any], strict: bool
) -> list[dict[str, Any]]:
    if not environments or here in environments:
        return environments or [here]
    changed = list_keys(changed_keys(environments[-1], here))
    if strict:
        raise ValueError(
            f"With --strict, the environment must be the one that the dataset was begun with. "
            f"Got a change of {changed}. Restore it, or leave out --strict."
        )
    logger.warning("Continued in another environment: %s. Bytes may differ from it.", changed)
    return [*environments, here]


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
            or _contradicts(row, shard_row(marker))
        ):
            restore_shard(storage, shard, config, digest)


def _contradicts(listed: Mapping[str, Any], found: ShardRow) -> bool:
    """Whether the manifest says something else of the same plan's tar."""
    same_plan = listed["planned"] == found["planned"]
    return same_plan and bool(listed["sha256"] != found["sha256"])


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
