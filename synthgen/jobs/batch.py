"""One batch of planned samples becomes tar members and rows, and all batches a staged shard.

This is what a shard consists of and what ``replay`` and ``label`` repeat. It draws: whoever only
looks at a dataset does not import it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from synthgen.config import ALGORITHM_VERSION, Config
from synthgen.dataset.label_statistics import count_labels
from synthgen.dataset.metadata import Row
from synthgen.dataset.photos import PhotoList
from synthgen.dataset.previews import has_preview, preview_members
from synthgen.dataset.records import encode_record, sample_json
from synthgen.dataset.shards import sha256_of_members, whole_tar
from synthgen.dataset.verify_samples import verify_sample
from synthgen.devices import free_cores, one_thread
from synthgen.diffusion import generate as drawing
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.jobs.identity import environment
from synthgen.jobs.look import brought_back, look_at, reduced
from synthgen.jobs.plan import MAX_WORKERS, batches, photos_of, samples_in_flight
from synthgen.jobs.shard import Staged
from synthgen.labeling.label import label_sample
from synthgen.labeling.refine import reads_uncertainty
from synthgen.oneshot.parts import Parts, load_parts
from synthgen.progress import Progress, Stopped, stop_requested
from synthgen.segmentation.features import feature_blocks, upsampling_error
from synthgen.segmentation.segment import segment_sample
from synthgen.storage.redaction import redact
from synthgen.types import (
    Failure,
    HeadFeatures,
    LabelMap,
    PlannedSample,
    Record,
    Sample,
    Segmentation,
)

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
    """

    row: Row
    members: Mapping[str, bytes] | None
    info: Mapping[str, Any] = field(default_factory=dict)
    previews: Mapping[str, bytes] = field(default_factory=dict)


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
    def parts(self) -> Parts | None:
        """The parts that labels are of, where they are not of words."""
        folder = self.config.labeling.parts
        return None if folder is None else load_parts(folder, self.model.pipeline)

    @property
    def workers(self) -> int:
        """Threads that finish samples while others are drawn."""
        asked = self.config.generation.workers
        return min(MAX_WORKERS, free_cores(self.model.device)) if asked is None else asked

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

    @cached_property
    def photos(self) -> PhotoList | None:
        """What is annotated; None where images are drawn."""
        return photos_of(self.config)

    def provenance(self, sample: PlannedSample, batch: int) -> dict[str, Any]:
        """What is needed to make a sample again."""
        photo = sample.prompt.photo
        return {
            **({} if photo is None else {"photo": asdict(photo)}),
            "seed": sample.seed,
            "image_index": sample.image_index,
            **self.origin,
            "batch": batch,
            "batch_size": self.batch_size,
        }


def draft(
    recipe: Recipe, samples: Sequence[PlannedSample], folder: Path, progress: Progress
) -> tuple[Staged, Mapping[str, float]]:
    """The samples of a shard in a staging folder, and where its wall time went.

    Of ``seconds``, ``generate`` is drawing, ``segment`` waiting for masks and labels (nothing,
    where they keep up with the device), ``write`` putting files into the tar. It has the model's
    turn while it draws: another shard of this process begins when the last batch is drawn.

    Raises:
        torch.OutOfMemoryError, MemoryError: See ``make_batches``.
    """
    tar_path, previews_path = folder / "shard.tar", folder / "previews.tar"
    rows: list[Row] = []
    verified: dict[str, str] = {}
    seconds = dict.fromkeys(("generate", "segment", "write"), 0.0)
    has_previews, begun = False, 0.0

    def in_turn() -> Generator[tuple[int, Sequence[PlannedSample]], None, None]:
        nonlocal begun
        with recipe.model.turn:
            begun = time.perf_counter()
            for numbered in enumerate(batches(samples, recipe.batch_size)):
                if stop_requested():  # while another shard was drawn
                    raise Stopped
                yield numbered

    with (
        whole_tar(tar_path) as tar,
        whole_tar(previews_path) as previews,
        closing(in_turn()) as drawn,
        closing(make_batches(recipe, drawn)) as finished,
    ):
        for batch in finished:
            started = time.perf_counter()
            for made in batch:
                if made.members is not None:
                    tar.write(made.row.key, made.members)
                    verified[made.row.key] = sha256_of_members(made.members)
                if made.previews:
                    previews.write(made.row.key, made.previews)
                    has_previews = True
                rows.append(made.row)
                seconds["generate"] += made.row.seconds_generate
            seconds["write"] += time.perf_counter() - started
            progress("samples", count=len(batch))
    wall = time.perf_counter() - begun
    seconds["segment"] = max(0.0, wall - seconds["generate"] - seconds["write"])
    staged = Staged(tar_path, previews_path if has_previews else None, rows, verified)
    return staged, seconds


def free_memory() -> None:
    """Give back what the allocator of a GPU keeps."""
    torch.cuda.empty_cache()


def make_batches(
    recipe: Recipe, numbered: Iterable[tuple[int, Sequence[PlannedSample]]]
) -> Generator[list[Made], None, None]:
    """What becomes of batches, in their order: drawn one after the other, finished by workers.

    The device draws a batch while threads segment, label and encode the samples of those before
    it. At most ``plan.samples_in_flight`` of them are held at once. Without workers, where a CPU
    draws on all of its cores, those finish each batch before the next one is drawn.

    Args:
        recipe: What the samples have in common.
        numbered: Batches with their numbers within their shard.

    Raises:
        torch.OutOfMemoryError, MemoryError: If a batch is too large for the device; where
            batches have one sample, the sample fails instead.
    """
    workers = recipe.workers
    room = samples_in_flight(workers, recipe.batch_size) - recipe.batch_size
    waiting: deque[list[Future[Made]]] = deque()
    drawing = torch.get_num_threads() if recipe.model.device.type == "cpu" else 1
    threads = workers or min(drawing, recipe.batch_size)
    pool = ThreadPoolExecutor(threads, "finish") if threads > 1 or workers else None
    try:
        for number, batch in numbered:
            while sum(map(len, waiting)) > room:
                yield [future.result() for future in waiting.popleft()]
            started = time.perf_counter()
            outcomes = _denoise(recipe, batch)
            share = round((time.perf_counter() - started) / len(batch), 4)
            each = [
                (recipe, planned, [outcome], number, share)
                for planned, outcome in zip(batch, outcomes, strict=True)
            ]
            del outcomes  # features are held by the lists alone, and _finish empties those
            if pool is None:
                yield [_finish(*arguments) for arguments in each]
            else:
                waiting.append([pool.submit(_finish, *arguments) for arguments in each])
                if not workers:
                    yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def make_batch(recipe: Recipe, batch: Sequence[PlannedSample], number: int) -> list[Made]:
    """What becomes of one batch; see ``make_batches``."""
    return next(make_batches(recipe, [(number, batch)]))


def _denoise(recipe: Recipe, batch: Sequence[PlannedSample]) -> list[Sample | Failure]:
    config = recipe.config
    prompts, seeds = [s.prompt for s in batch], [s.seed for s in batch]
    try:
        if recipe.photos is not None:
            outcomes = look_at(recipe.photos, recipe.model, prompts, seeds, config)
        else:
            outcomes = drawing.generate(
                recipe.model,
                prompts,
                seeds,
                config.generation,
                config.capture,
                config.labeling,
                config.segmentation.needs_self_map,
            )
        if recipe.parts is not None:
            with recipe.model.lock:
                outcomes = [
                    recipe.parts.attend(outcome) if isinstance(outcome, Sample) else outcome
                    for outcome in outcomes
                ]
    except OUT_OF_MEMORY as error:
        if recipe.batch_size > 1:
            raise
        return [Failure(batch[0].prompt, batch[0].seed, "out_of_memory", str(error))]
    if recipe.batch_size > 1:
        for outcome in outcomes:
            if isinstance(outcome, Failure) and outcome.reason == "out_of_memory":
                raise MemoryError(outcome.message)
    return [_on_cpu(outcome) for outcome in outcomes]


def _on_cpu(outcome: Sample | Failure) -> Sample | Failure:
    """A sample whose tensors are where threads work on them; on a GPU every step of k-means would
    wait for what the next batch has put into the device's queue."""
    if isinstance(outcome, Failure):
        return outcome
    features, heatmaps, self_map = outcome.features, outcome.heatmaps, outcome.self_map
    values = {name: value.cpu() for name, value in features.values.items()}
    if heatmaps is not None:
        background = None if heatmaps.background is None else heatmaps.background.cpu()
        heatmaps = replace(heatmaps, values=heatmaps.values.cpu(), background=background)
    if self_map is not None:
        self_map = replace(self_map, values=self_map.values.cpu())
    return replace(
        outcome,
        features=HeadFeatures(values, features.grids),
        heatmaps=heatmaps,
        self_map=self_map,
    )


def _finish(
    recipe: Recipe, planned: PlannedSample, held: list[Sample | Failure], number: int, share: float
) -> Made:
    """Masks, labels and files of a sample, on one thread: sums depend on how they are split.

    The sample is taken out of its list, so that its features end before its result is seen: a
    thread that just gave a result holds its arguments for as long as the system lets it wait.
    """
    with one_thread():
        made = _finished(recipe, planned, held.pop(), number)
    return replace(made, row=replace(made.row, seconds_generate=share))


def _finished(
    recipe: Recipe, planned: PlannedSample, outcome: Sample | Failure, number: int
) -> Made:
    if isinstance(outcome, Failure):
        return Made(_failed(planned, number, outcome.reason, outcome.message), None)
    started = time.perf_counter()
    try:
        seen = reduced(outcome)
        segmentation = segment_sample(seen, recipe.config.segmentation)
        segmented = time.perf_counter()
        labels = _label(recipe, seen, segmentation)
        segmentation, labels = brought_back(outcome, seen, segmentation, labels)
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
        for problem in verify_sample(planned.key, planned.key, members, deep=True):
            raise RuntimeError(f"A new sample must be correct. Got {problem}.")
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
    return Made(row, members, info, previews)


def _label(recipe: Recipe, sample: Sample, segmentation: Segmentation) -> LabelMap | None:
    """Labels, where they are asked for; refiners that read it learn where features are coarse."""
    config, settings = recipe.config, recipe.config.labeling
    if settings.method == "none":
        return None
    if recipe.parts is not None:
        return recipe.parts.label(sample, segmentation)
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
        photo=planned.prompt.photo,
    )
