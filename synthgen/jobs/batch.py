"""One batch of planned samples becomes tar members and rows, and all batches a staged shard.

This is what a shard consists of and what ``replay`` and ``label`` repeat. It draws: whoever only
looks at a dataset does not import it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from synthgen.config import ALGORITHM_VERSION, Config
from synthgen.dataset.label_statistics import count_labels
from synthgen.dataset.metadata import Row
from synthgen.dataset.previews import has_preview, preview_members
from synthgen.dataset.records import encode_record, sample_json
from synthgen.dataset.shards import whole_tar
from synthgen.diffusion import generate as drawing
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.jobs.identity import environment
from synthgen.jobs.plan import batches
from synthgen.jobs.shard import Staged
from synthgen.labeling.label import label_sample
from synthgen.labeling.refine import reads_uncertainty
from synthgen.progress import Progress
from synthgen.segmentation.features import feature_blocks, upsampling_error
from synthgen.segmentation.segment import segment_sample
from synthgen.storage.redaction import redact
from synthgen.types import Failure, LabelMap, PlannedSample, Record, Sample, Segmentation

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
_MAX_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a planned sample.

    Args:
        row: Its row, without its place in the tar.
        members: Its tar members by suffix; None where it failed.
        info: The content of its json.
        previews: Its preview members by suffix.
        seconds_write: Time to encode it.
    """

    row: Row
    members: Mapping[str, bytes] | None
    info: Mapping[str, Any] = field(default_factory=dict)
    previews: Mapping[str, bytes] = field(default_factory=dict)
    seconds_write: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """What is common to the samples of a shard.

    Args:
        config: The configuration.
        digest: Its digest.
        batch_size: Images per UNet call; 1 after the device ran out of memory.
        class_ids: Ids of classes.json by name, where samples are labeled.
    """

    config: Config
    digest: str
    batch_size: int
    class_ids: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def model(self) -> Backbone:
        """The model, loaded once per process."""
        return load_backbone(self.config.model)

    @cached_property
    def origin(self) -> Mapping[str, Any]:
        """What the provenance of all samples has in common."""
        return {
            "config": self.digest,
            "model": str(self.model.identity["id"]),
            "revision": str(self.model.identity["revision"] or ""),
            **environment(self.config),
            "algorithm_version": ALGORITHM_VERSION,
        }

    def provenance(self, sample: PlannedSample, batch: int) -> dict[str, Any]:
        """What is needed to make a sample again."""
        return {
            "seed": sample.seed,
            "image_index": sample.image_index,
            **self.origin,
            "batch": batch,
            "batch_size": self.batch_size,
        }


def draft(
    recipe: Recipe, samples: Sequence[PlannedSample], folder: Path, progress: Progress
) -> tuple[Staged, Mapping[str, float]]:
    """The samples of a shard in a staging folder, and the wall time of each stage.

    Raises:
        torch.OutOfMemoryError, MemoryError: See ``make_batch``.
    """
    tar_path, previews_path = folder / "shard.tar", folder / "previews.tar"
    rows: list[Row] = []
    seconds: defaultdict[str, float] = defaultdict(float)
    has_previews = False
    with whole_tar(tar_path) as tar, whole_tar(previews_path) as previews:
        for number, batch in enumerate(batches(samples, recipe.batch_size)):
            for made in make_batch(recipe, batch, number):
                started = time.perf_counter()
                if made.members is not None:
                    tar.write(made.row.key, made.members)
                if made.previews:
                    previews.write(made.row.key, made.previews)
                    has_previews = True
                rows.append(made.row)
                seconds["generate"] += made.row.seconds_generate
                seconds["segment"] += made.row.seconds_segment
                seconds["write"] += made.seconds_write + time.perf_counter() - started
            progress("samples", count=len(batch))
    return Staged(tar_path, previews_path if has_previews else None, rows), seconds


def free_memory() -> None:
    """Give back what the allocator of a GPU keeps."""
    torch.cuda.empty_cache()


def make_batch(recipe: Recipe, batch: Sequence[PlannedSample], number: int) -> Iterator[Made]:
    """Denoise the samples of a batch together, then segment and encode one after the other.

    Args:
        recipe: What the shard's samples have in common.
        batch: Planned samples.
        number: Number of the batch within its shard.

    Raises:
        torch.OutOfMemoryError, MemoryError: If the batch is too large for the device; where
            batches have one sample, the sample fails instead.
    """
    started = time.perf_counter()
    outcomes = _denoise(recipe, batch)
    share = (time.perf_counter() - started) / len(batch)
    for planned, outcome in zip(batch, outcomes, strict=True):
        made = _finish(recipe, planned, outcome, number)
        yield replace(made, row=replace(made.row, seconds_generate=round(share, 4)))


def _denoise(recipe: Recipe, batch: Sequence[PlannedSample]) -> list[Sample | Failure]:
    config = recipe.config
    prompts, seeds = [s.prompt for s in batch], [s.seed for s in batch]
    try:
        outcomes = drawing.generate(
            recipe.model, prompts, seeds, config.generation, config.capture, config.labeling
        )
    except OUT_OF_MEMORY as error:
        if recipe.batch_size > 1:
            raise
        return [Failure(batch[0].prompt, batch[0].seed, "out_of_memory", str(error))]
    if recipe.batch_size > 1:
        for outcome in outcomes:
            if isinstance(outcome, Failure) and outcome.reason == "out_of_memory":
                raise MemoryError(outcome.message)
    return outcomes


def _finish(
    recipe: Recipe, planned: PlannedSample, outcome: Sample | Failure, number: int
) -> Made:
    if isinstance(outcome, Failure):
        return Made(_failed(planned, number, outcome.reason, outcome.message), None)
    started = time.perf_counter()
    try:
        segmentation = segment_sample(outcome, recipe.config.segmentation)
        segmented = time.perf_counter()
        labels = _label(recipe.config, outcome, segmentation)
        record = Record(
            key=planned.key,
            image=outcome.image,
            prompt=planned.prompt,
            mask_set=segmentation.mask_set,
            provenance=recipe.provenance(planned, number),
            labels=labels,
            class_ids=recipe.class_ids,
        )
        info = sample_json(record)
        members = encode_record(record, recipe.config.dataset.image_format, info)
        previews = _previews(recipe.config, planned.key, outcome, segmentation)
    except OUT_OF_MEMORY as error:
        if recipe.batch_size > 1:
            raise
        return Made(_failed(planned, number, "out_of_memory", str(error)), None)
    except ValueError as error:  # one sample that cannot be segmented or stored
        return Made(_failed(planned, number, "error", str(error)), None)
    row = replace(
        _row(planned, number, "ok"),
        num_segments=len(segmentation.mask_set),
        iterations=segmentation.iterations,
        converged=segmentation.converged,
        seconds_segment=round(segmented - started, 4),
        labels=None if labels is None else count_labels(labels),
    )
    return Made(row, members, info, previews, time.perf_counter() - segmented)


def _label(config: Config, sample: Sample, segmentation: Segmentation) -> LabelMap | None:
    """Labels, where they are asked for; refiners that read it learn where features are coarse."""
    settings = config.labeling
    if settings.method == "none":
        return None
    uncertainty = None
    if reads_uncertainty(settings.refiner) and sample.features.values:
        blocks = feature_blocks(sample.features, config.segmentation.features)
        uncertainty = upsampling_error(blocks, sample.image.shape[:2]).float().cpu().numpy()
    return label_sample(
        segmentation, sample.heatmaps, sample.self_map, settings, sample.image, uncertainty
    )


def _previews(
    config: Config, key: str, sample: Sample, segmentation: Segmentation
) -> dict[str, bytes]:
    """Preview members of 1 in ``preview_every`` samples of the dataset."""
    if not has_preview(key, config.dataset):
        return {}
    members = preview_members(key, sample, segmentation, config.segmentation.features)
    return {name.removeprefix(f"{key}."): content for name, content in members.items()}


def _failed(planned: PlannedSample, number: int, reason: str, message: str) -> Row:
    line = " ".join(redact(message).split())[:_MAX_MESSAGE]
    return replace(_row(planned, number, "failed"), reason=reason, message=line)


def _row(planned: PlannedSample, number: int, status: str) -> Row:
    return Row(
        key=planned.key,
        status=status,
        reason="",
        message="",
        prompt_id=planned.prompt.id,
        prompt=planned.prompt.text,
        classes=planned.prompt.class_names,
        image_index=planned.image_index,
        seed=planned.seed,
        batch=number,
    )
