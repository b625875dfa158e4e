"""One batch of planned samples becomes tar members and rows; nothing is written here.

This is the function that a shard consists of and that ``replay`` repeats. What draws, segments and
labels is imported where it is called: commands that only look at a dataset load no torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from synthgen.config import ALGORITHM_VERSION, Config
from synthgen.dataset.label_statistics import count_labels
from synthgen.dataset.metadata import Row
from synthgen.dataset.previews import has_preview, preview_members
from synthgen.dataset.records import encode_record
from synthgen.jobs.identity import environment
from synthgen.storage.redaction import redact
from synthgen.types import Failure, LabelMap, PlannedSample, Record, Sample, Segmentation

_MAX_MESSAGE = 300


def out_of_memory() -> tuple[type[Exception], ...]:
    """What is raised where a device or this machine is too small."""
    import torch

    return torch.OutOfMemoryError, MemoryError


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a planned sample.

    Args:
        row: Its row, without its place in the tar.
        members: Its tar members by suffix; None where it failed.
        previews: Its preview members by suffix.
        seconds_write: Time to encode it.
    """

    row: Row
    members: Mapping[str, bytes] | None
    previews: Mapping[str, bytes] = field(default_factory=dict)
    seconds_write: float = 0.0


@dataclass(frozen=True, slots=True)
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

    def provenance(self, sample: PlannedSample, batch: int) -> dict[str, Any]:
        """What is needed to make a sample again."""
        from synthgen.diffusion.backbones import load_backbone

        identity = load_backbone(self.config.model).identity
        return {
            "seed": sample.seed,
            "image_index": sample.image_index,
            "config": self.digest,
            "model": str(identity["id"]),
            "revision": str(identity["revision"] or ""),
            **environment(self.config),
            "algorithm_version": ALGORITHM_VERSION,
            "batch": batch,
            "batch_size": self.batch_size,
        }


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
    from synthgen.diffusion.backbones import load_backbone
    from synthgen.diffusion.generate import generate

    config, model = recipe.config, load_backbone(recipe.config.model)
    prompts, seeds = [s.prompt for s in batch], [s.seed for s in batch]
    try:
        outcomes = generate(
            model, prompts, seeds, config.generation, config.capture, config.labeling
        )
    except out_of_memory() as error:
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
    from synthgen.segmentation.segment import segment_sample

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
        members = encode_record(record, recipe.config.dataset.image_format)
        previews = _previews(recipe.config, planned.key, outcome, segmentation)
    except out_of_memory() as error:
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
    return Made(row, members, previews, time.perf_counter() - segmented)


def _label(config: Config, sample: Sample, segmentation: Segmentation) -> LabelMap | None:
    """Labels, where they are asked for; refiners that read it learn where features are coarse."""
    from synthgen.labeling.label import label_sample
    from synthgen.labeling.refine import reads_uncertainty
    from synthgen.segmentation.features import feature_blocks, upsampling_error

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
