"""Generating a dataset: prompts become shards of images, masks and labels.

A shard is a pure function of (configuration, index). The configuration on the disk is the
committed plan, which only grows; a run whose plan was overtaken publishes nothing more.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from synthgen.config import Config
from synthgen.dataset.labels import class_ids, class_names
from synthgen.dataset.manifest import (
    CONFIG,
    IDENTITY,
    Marker,
    ShardRow,
    distinct,
    is_complete,
    read_marker,
    read_markers,
    shard_index,
    shard_row,
)
from synthgen.dataset.survey import Survey, survey
from synthgen.jobs.classes import check_labeling
from synthgen.jobs.description import publish_description, publish_totals
from synthgen.jobs.estimate import bytes_per_sample
from synthgen.jobs.identity import (
    Identity,
    check_plan,
    environment,
    environments_with,
    identity_bytes,
    keep_threads,
    read_config,
    read_identity,
)
from synthgen.jobs.job import TEXT_BYTES, Done, Job, refuse_missing
from synthgen.jobs.plan import plan_prompts, planned_samples, prompts_of
from synthgen.jobs.restore import contradicts, restore_shard
from synthgen.jobs.shard import publish_shard
from synthgen.progress import Progress, report
from synthgen.prompts import PromptList
from synthgen.registry import SEGMENTERS, resolve
from synthgen.storage.publish import Storage, explain_disk_errors, open_storage
from synthgen.types import ShardSpec, shard_name

_ASKED_AGAIN = 100  # shards that a store did not list

logger = logging.getLogger(__name__)


def generate(
    config: Config, out: str | Path, strict: bool = False, progress: Progress = report
) -> dict[str, Any]:
    """Make a dataset in this process, or finish one that was cut off; returns its manifest.

    Args:
        config: The dataset's configuration.
        out: Its folder or URL.
        strict: Refuse to continue with other library versions, device or dtype.
        progress: Told about samples and shards; may raise, to stop.

    Raises:
        ValueError: If the folder holds something else, or a dataset of another configuration;
            the changed keys are named.
        RuntimeError: If another run has planned more samples meanwhile.
        OSError: In one line, if the folder cannot be written or the disk is full.
    """
    return GenerateJob(config, out, strict).run(progress)


def as_extended(config: Config, out: str | Path) -> Config:
    """The configuration with what the dataset in a folder was extended by: that is kept, too."""
    storage = open_storage(out)
    if config.extended or read_identity(storage) is None or storage.read(CONFIG) is None:
        return config
    known = read_config(storage)
    changed = {"extended": known.extended, "balance": known.balance}
    return config.model_copy(update=changed) if known.num == config.num else config


class GenerateJob(Job[Marker]):
    """Makes the samples of a configuration; see ``generate``."""

    name = "generate"

    def __init__(self, config: Config, out: str | Path, strict: bool = False) -> None:
        super().__init__(out)
        self.config, self.strict = config, strict

    @cached_property
    def prompts(self) -> PromptList:
        """The prompts, read once."""
        return prompts_of(self.config)

    @cached_property
    def specs(self) -> Sequence[ShardSpec]:
        """What each shard holds, computed when it is asked for."""
        return plan_prompts(self.config, self.prompts)

    @cached_property
    def identity(self) -> Identity:
        """What determines the bytes, computed once."""
        return Identity.of(self.config, self.prompts)

    @property
    def planned(self) -> tuple[int, int]:
        """Samples and shards in all."""
        return self.config.planned, len(self.specs)

    def begin(self) -> None:
        """Begin the dataset, or check that the one in the folder may be continued.

        A model that cannot be loaded is said before there is a folder.
        """
        if self._check() is None:
            from synthgen.diffusion.backbones import load_backbone

            load_backbone(self.config.model)
        with (
            explain_disk_errors(self.storage, TEXT_BYTES, "the dataset's description"),
            self.storage.publishing(),
        ):
            existing = self._check_existing()
            environments = environments_with(self.config, existing, self.strict)
            identity = identity_bytes(self.identity.content, environments)
            names = () if self.config.labeling.parts else self.prompts.class_names
            publish_description(self.storage, self.config, identity, names)
        self.storage.clear_stale_staging()

    def rehearse(self) -> None:
        """Make every check that a run makes before its first image, but load no weights."""
        environments_with(self.config, self._check(), self.strict)
        root = self.storage.local_root
        while root is not None and not root.exists():
            root = root.parent
        if root is not None and not os.access(root, os.W_OK):
            raise OSError(
                f"The output must be a writable folder. Got {root}. Choose another folder."
            )

    def _check(self) -> dict[str, Any] | None:
        """All that can be wrong, before there is so much as a lock in the folder.

        Returns:
            Identity of the dataset in the folder, None where it is empty.
        """
        resolve(self.config.segmentation.method, SEGMENTERS, "segmentation.method")
        check_labeling(self.config, self.prompts)
        planned_samples(self.config)  # too many shards are refused before all else
        self._check_photos()
        assert self.identity.digest  # as is a model that is not there
        return self._check_existing()

    def _check_photos(self) -> None:
        """Refuse to annotate a photo twice, or by what is no UNet.

        Raises:
            ValueError: If that is asked for.
        """
        if not self.config.annotation.images:
            return
        if self.config.planned > len(self.prompts):
            raise ValueError(
                f"num must be at most the number of images, {len(self.prompts)}. Got "
                f"{self.config.planned} samples; lower it, or annotate others into another folder."
            )
        from synthgen.diffusion.backbones import load_backbone

        if load_backbone(self.config.model, weights=False).draw is not None:
            raise ValueError(
                f"model.card must be of a diffusers model to annotate. Got "
                f"{self.config.model.card!r:.80}, which only draws."
            )

    def _check_existing(self) -> dict[str, Any] | None:
        """Identity of the dataset in the folder, which may be gone on with; None where empty.

        Raises:
            ValueError: If something else is there, or the plan does not hold all that is planned.
        """
        storage, config = self.storage, self.config
        existing = existing_identity(storage)
        if existing is None:
            return None
        self.identity.check(existing, storage.root)
        if storage.read(CONFIG) is None:  # its maker may have been killed before it
            planned = planned_samples(config)
            for marker in read_markers(storage):
                index = shard_index(marker.name)
                if index >= len(planned) or marker.planned > planned[index]:
                    raise ValueError(
                        f"num must not shrink below what is made. Got a plan without all of the "
                        f"{marker.planned} samples of {marker.name}. Raise num, or choose another "
                        f"folder."
                    )
            return existing
        known = read_config(storage)
        fewer = config.num != known.num or config.extended < known.extended
        balance = {shard: config.balance.get(shard) for shard in known.balance}
        if known.extended and (fewer or balance != known.balance):
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
        return existing

    def missing(self, progress: Progress = report) -> Sequence[str]:
        """Shards that are still to be made; tells how many shards and samples are there."""
        planned = planned_samples(self.config)
        identity = read_identity(self.storage)
        done = survey(self.storage, identity["digest"], planned).rows if identity else {}
        if done:
            samples = sum(planned[index] for index in done)
            progress("existing", shards=len(done), samples=samples)
        return [shard_name(index) for index in range(len(planned)) if index not in done]

    def needs(self, shard: str) -> tuple[int, int, str]:
        """Samples, bytes and name of a shard."""
        samples = planned_samples(self.config)[shard_index(shard)]
        return samples, bytes_per_sample(self.config) * samples, f"shard {shard}"

    def existing(self, shard: str) -> Marker | None:
        """The marker of a shard that is complete, or that is again once its marker is restored.

        Raises:
            ValueError: If the folder holds no dataset of this configuration.
            RuntimeError: If another run has planned more samples since.
        """
        self._begun()
        check_plan(self.storage, self.config)
        if marker := self._complete(shard):
            return marker
        samples = self.specs[shard_index(shard)].samples
        return restore_shard(self.storage, shard, self.config, self.identity.digest, samples)

    def _begun(self) -> dict[str, Any]:
        """The content of identity.json, whose threads are ours from now on."""
        existing = read_identity(self.storage)
        if existing is None:
            raise ValueError(
                f"{self.storage.root} must be initialized first. Got no {IDENTITY} there."
            )
        keep_threads(existing)
        self.identity.check(existing, self.storage.root)
        return existing

    def _complete(self, shard: str) -> Marker | None:
        marker = read_marker(self.storage, shard)
        planned = planned_samples(self.config)[shard_index(shard)]
        if marker and is_complete(self.storage, marker, self.identity.digest, planned):
            return marker
        return None

    def make(self, shard: str, progress: Progress) -> Marker:
        """Draw, segment and label the samples of a shard.

        Where the device is too small for its batches, in batches of one: its bytes then depend on
        nothing but that fact, which the marker says.
        """
        from synthgen.jobs.batch import OUT_OF_MEMORY, Recipe, draft, free_memory

        samples = self.specs[shard_index(shard)].samples
        ids = class_ids(class_names(self.storage))
        batch_size, done = self.config.generation.batch_size, 0

        def count(event: str, **fields: int) -> None:
            nonlocal done
            done += fields["count"]
            progress(event, **fields)

        def look_again() -> Marker | None:
            check_plan(self.storage, self.config)
            return self._complete(shard)

        with self.storage.staging() as folder:
            recipe = Recipe(self.config, self.identity.digest, batch_size, ids)
            try:
                staged, seconds = draft(recipe, samples, folder, count)
            except OUT_OF_MEMORY as error:
                if batch_size == 1:
                    raise
                logger.warning("%s: out of memory, again with batch 1 (%s)", shard, error)
                progress("samples", count=-done)
                free_memory()
                recipe = replace(recipe, batch_size=1)
                staged, seconds = draft(recipe, samples, folder, progress)
            facts = {
                "config": self.identity.digest,
                "batch_size": recipe.batch_size,
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
                "environment": environment(self.config),
            }
            return publish_shard(self.storage, shard, staged, facts, look_again)

    def row(self, done: Done[Marker]) -> dict[str, Any]:
        """What a table says of a shard."""
        marker = done.marker
        return {
            "planned": marker.planned,
            **marker.counts,
            "bytes": marker.bytes,
            "reused": done.reused,
            "sha256": marker.sha256[:12],
        }

    def finalize(self) -> dict[str, Any]:
        """Publish the manifest once every planned shard is complete; returns it.

        Raises:
            ValueError: If the folder holds no dataset of this configuration.
            RuntimeError: If shards are missing; if another run has planned more since.
        """
        storage, config = self.storage, self.config
        existing = self._begun()
        check_plan(storage, config)
        found = check_complete(storage, self.identity.digest, planned_samples(config))
        listed = {row["name"]: row for row in found.listed}
        restored: dict[int, ShardRow] = {}
        for index, row in found.rows.items():  # a bit may have been flipped in one of the two
            before = listed.get(row["name"], row)
            if before is not row and contradicts(before, row):
                again = restore_shard(storage, shard_name(index), config, self.identity.digest)
                if again is not None:
                    restored[index] = shard_row(again)
        found = replace(found, rows={**found.rows, **restored})
        with explain_disk_errors(storage, TEXT_BYTES, "the manifest"):
            models = [existing["content"]["model"]]
            return publish_totals(storage, config, existing, found, models)


def existing_identity(storage: Storage) -> dict[str, Any] | None:
    """Identity of the dataset in a folder; None where the folder is empty.

    Raises:
        ValueError: If something else is there.
    """
    if storage.local_root is not None and storage.local_root.is_file():
        raise ValueError(f"The output must be a folder. Got a file, {storage.root}.")
    taken = storage.names() or storage.names("data") or storage.names("stats")
    # after looking: another process may begin right now
    existing = read_identity(storage, there=bool(taken))
    if taken and existing is None:
        raise ValueError(
            f"The output must be an empty folder or a dataset of synthgen. Got {storage.root} "
            f"with {taken[0]}. Choose another folder."
        )
    return existing


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
    refuse_missing([shard_name(index) for index in missing], "the dataset")
    return found
