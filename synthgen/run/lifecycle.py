"""The life of a dataset: begin, finish, look at, clean up; and all of it in one call."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen.config import Config, parse
from synthgen.dataset.changes import changed_keys
from synthgen.dataset.manifest import (
    CONFIG,
    IDENTITY,
    SHARD_NAME,
    Marker,
    is_complete,
    marker_name,
    metadata_name,
    preview_name,
    read_manifest,
    read_marker,
    read_markers,
    tar_name,
)
from synthgen.dataset.publish import Storage, clear_disk_errors, open_storage
from synthgen.progress import Progress, report
from synthgen.prompts import load_prompts
from synthgen.registry import SEGMENTERS, resolve
from synthgen.run.classes import check_labeling
from synthgen.run.description import publish_conclusion, publish_description
from synthgen.run.identity import (
    check_same,
    environment,
    identity_bytes,
    identity_content,
    machine,
    read_identity,
)
from synthgen.run.plan import plan, shard_spans
from synthgen.run.shard import make_shard
from synthgen.types import ShardSpec, shard_name

_TEXT_BYTES = 100_000  # generous for the small files of a dataset
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
        finalized: There is a manifest over every planned shard.
    """

    planned_shards: int
    complete_shards: int
    planned: int
    samples: int
    failed: int
    reasons: Mapping[str, int]
    num_bytes: int
    finalized: bool


def generate(
    config: Config, out: str | Path, strict: bool = False, progress: Progress = report
) -> dict[str, Any]:
    """Make a dataset in this process, or finish one that was cut off; returns its manifest."""
    initialize(config, out, strict=strict)
    for spec in plan(config):
        make_shard(config, spec, out, progress)
    return finalize(config, out)


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
    storage = open_storage(out)
    resolve(config.segmentation.method, SEGMENTERS, "segmentation.method")  # seen before drawing
    prompts = load_prompts(config.prompts)
    check_labeling(config, prompts)
    standing = standing_identity(storage)
    here = environment(config) | machine(standing)
    if standing is None:
        content, environments = identity_content(config), [here]
    else:
        check_same(standing, config, storage.root)
        _check_extended(storage, config)
        _check_not_smaller(storage, plan(config))
        content = identity_content(config)
        environments = _extended(standing["environments"], here, strict)
    with clear_disk_errors(storage, _TEXT_BYTES, "the dataset's description"):
        shards = [spec.name for spec in plan(config)]
        identity = identity_bytes(content, environments)
        publish_description(storage, config, identity, prompts, shards)
        storage.clear_stale_staging()


def finalize(config: Config, out: str | Path) -> dict[str, Any]:
    """Publish the manifest once every planned shard is complete; may be repeated.

    Returns:
        The manifest.

    Raises:
        ValueError: If the folder holds no dataset of this configuration.
        RuntimeError: If shards are missing; they are named.
    """
    storage = open_storage(out)
    standing = read_identity(storage)
    if standing is None:
        raise ValueError(f"{storage.root} must be initialized first. Got no {IDENTITY} there.")
    digest = check_same(standing, config, storage.root)
    markers = _complete_markers(storage, plan(config), digest)
    with clear_disk_errors(storage, _TEXT_BYTES, "the manifest"):
        models = [standing["content"]["model"]]
        return publish_conclusion(storage, config, standing, markers, models)


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
    planned = planned or [len(span) for span in shard_spans(config)]
    wanted = {shard_name(i): num for i, num in enumerate(planned)}
    done = [
        marker
        for marker in read_markers(storage)
        if is_complete(storage, marker, identity["digest"], wanted.get(marker.name, -1))
    ]
    manifest = read_manifest(storage)
    return DatasetStatus(
        planned_shards=len(wanted),
        complete_shards=len(done),
        planned=config.planned,
        samples=sum(marker.counts["ok"] for marker in done),
        failed=sum(marker.counts["failed"] for marker in done),
        reasons=dict(sum((Counter(marker.reasons) for marker in done), Counter())),
        num_bytes=sum(marker.bytes for marker in done),
        finalized=manifest is not None and manifest["totals"]["planned"] == config.planned,
    )


def gc(out: str | Path, orphan_seconds: float = _ORPHAN_SECONDS) -> list[str]:
    """Remove what interrupted runs left behind; complete shards are never touched.

    A shard whose marker cannot be read is left alone, too: 'synthgen verify' names it.

    Args:
        out: The dataset's folder.
        orphan_seconds: Age from which a file of a shard without a marker is an orphan.

    Returns:
        Names of what was removed: staging of processes that are gone, uploads that were cut off,
        files of shards without a marker, markers without their tar.
    """
    storage = open_storage(out)
    if read_identity(storage) is None:
        raise ValueError(f"{storage.root} must be a dataset. Got no {IDENTITY} there.")
    orphans = [name for name in _orphans(storage) if _age(storage, name) >= orphan_seconds]
    for name in orphans:
        storage.remove(name)
    partial = storage.clear_partial_uploads(orphan_seconds)
    return [*storage.clear_stale_staging(), *partial, *orphans]


def read_config(storage: Storage) -> Config:
    """The configuration that a dataset was made with.

    Raises:
        ValueError: If the folder holds no dataset.
    """
    raw = storage.read(CONFIG)
    if raw is None or read_identity(storage) is None:
        raise ValueError(f"{storage.root} must be a dataset. Got no {CONFIG} or {IDENTITY} there.")
    try:
        return parse(raw)
    except ValueError as error:
        raise ValueError(f"{storage.root}/{CONFIG} must be one of ours. Got: {error}") from None


def standing_identity(storage: Storage) -> dict[str, Any] | None:
    """Identity of the dataset in a folder; None where the folder is empty.

    Raises:
        ValueError: If something else is there.
    """
    if storage.local_root is not None and storage.local_root.is_file():
        raise ValueError(f"The output must be a folder. Got a file, {storage.root}.")
    taken = [*storage.names(), *storage.names("data"), *storage.names("stats")]
    standing = read_identity(storage)  # after looking: another process may begin right now
    if taken and standing is None:
        raise ValueError(
            f"The output must be an empty folder or a dataset of synthgen. Got {storage.root} "
            f"with {taken[0]}. Choose another folder."
        )
    return standing


def _check_extended(storage: Storage, config: Config) -> None:
    """Refuse a plan in which the shards behind the first ``num`` samples move or are left out."""
    if storage.read(CONFIG) is None:  # its maker was killed before it
        return
    standing = read_config(storage)
    if standing.extended and (config.num != standing.num or config.extended < standing.extended):
        raise ValueError(
            f"{storage.root} was extended by {standing.extended} shards and must keep them. Got a "
            f"plan of {config.num} samples and {config.extended} more shards. Go on with "
            f"'synthgen extend', or choose another folder."
        )


def _check_not_smaller(storage: Storage, specs: Sequence[ShardSpec]) -> None:
    """A plan may grow; a smaller one would orphan or overwrite shards that are complete."""
    planned = {spec.name: len(spec.samples) for spec in specs}
    for marker in read_markers(storage):
        if marker.planned > planned.get(marker.name, 0):
            raise ValueError(
                f"num must not shrink below what is made. Got a plan without all of the "
                f"{marker.planned} samples of {marker.name}. Raise num, or choose another folder."
            )


def _extended(
    environments: list[dict[str, Any]], here: dict[str, Any], strict: bool
) -> list[dict[str, Any]]:
    if here in environments:
        return environments
    changed = ", ".join(changed_keys(environments[-1], here))
    if strict:
        raise ValueError(
            f"With --strict, the environment must be the one that the dataset was begun with. "
            f"Got a change of {changed}. Restore it, or leave out --strict."
        )
    logger.warning("Continued in another environment: %s. Bytes may differ from it.", changed)
    return [*environments, here]


def _complete_markers(storage: Storage, specs: Sequence[ShardSpec], digest: str) -> list[Marker]:
    found = [(spec, read_marker(storage, spec.name)) for spec in specs]
    markers = [
        marker
        for spec, marker in found
        if marker and is_complete(storage, marker, digest, len(spec.samples))
    ]
    if len(markers) < len(specs):
        done = {marker.name for marker in markers}
        missing = [spec.name for spec in specs if spec.name not in done]
        raise RuntimeError(
            f"Every shard must be complete before the dataset is finalized. Got {len(missing)} "
            f"missing ({', '.join(missing[:5])}). Run the same command again to make them."
        )
    return markers


def _orphans(storage: Storage) -> list[str]:
    """Files of shards that are not complete."""
    orphans: list[str] = []
    shards = {
        Path(name).stem
        for folder in ("data", "stats", "metadata", "previews")
        for name in storage.names(folder)
    }
    for shard in sorted(shard for shard in shards if SHARD_NAME.fullmatch(shard)):
        marker = read_marker(storage, shard)
        if marker and is_complete(storage, marker, marker.config, marker.planned):
            continue
        if marker is None and storage.size(marker_name(shard)) is not None:
            continue  # of another release, or damaged: what it speaks of may be complete
        files = (tar_name(shard), metadata_name(shard), preview_name(shard), marker_name(shard))
        orphans += [name for name in files if storage.size(name) is not None]
    return orphans


def _age(storage: Storage, name: str) -> float:
    try:
        return time.time() - float(storage.fs.modified(storage.path(name)).timestamp())
    except FileNotFoundError:
        return 0.0
