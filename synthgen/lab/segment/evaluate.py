"""Masks of several segmenters against annotated images: one table per data set, image by image.

Every image goes through the same recording, and each method makes its masks of it. Scores are BL's
(section 5): the best IoU of any mask with each class in an image, and with each object; averaged
per class over images, then over classes. Best-of-all matching is kind to many masks, so their
number and the best one-to-one matching stand beside. Where people took images apart (BSDS500),
clusters cover their pieces: with the best k for all images (ODS), with each image's best (OIS).
What a method got of an image is kept in OUT/rows: the command goes on where it was stopped, and
measures only methods that are new.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from pydantic import Field

from synthgen.config import (
    CaptureConfig,
    GenerationConfig,
    ModelConfig,
    SegmentationConfig,
)
from synthgen.config.settings import Section, digest
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.diffusion.invert import invert_any
from synthgen.lab.memory import peak_bytes, reset_peak
from synthgen.lab.segment.layouts import PUBLISHED, Annotated, Layout, Truth, open_layout
from synthgen.lab.segment.rows import (
    Measure,
    bars,
    measure_images,
    publish_tables,
    read_annotated,
    seed_of,
    shown,
)
from synthgen.lab.tables import escape, markdown_table
from synthgen.segmentation.metrics import class_iou, covering, mean_assigned, part_iou
from synthgen.segmentation.packed import iou_matrix
from synthgen.segmentation.segment import segment_sample
from synthgen.storage.publish import Storage, open_storage
from synthgen.types import IGNORE, Failure, Prompt, Sample

SCORES = {
    "class_iou": "class IoU",
    "part_iou": "part IoU",
    "instance_iou": "instance IoU",
    "one_to_one": "one-to-one",
    "ods": "covering, ODS",
    "ois": "OIS",
    "masks": "masks",
    "seconds": "core-s",
    "megabytes": "peak MB",
}


class SegmentSettings(Section):
    """What `evaluate_segment` measures."""

    data: str = Field(
        "scenes",
        description="scenes, scenes-tuning, voc, context, ade, cityscapes (cityscapes-27), coco, "
        "cocostuff (cocostuff-171), bsds, or folder.",
    )
    root: Path | None = Field(None, description="Folder of the data set, as it was published.")
    split: str = "val"
    num: int = Field(200, ge=1, description="Images, the first so many.")
    methods: tuple[str, ...] = Field(
        (
            *("per-head", "head-average", "rgbxy", "ncut", "ward", "diffcut"),
            *("diffseg", "diffseg-k", "spectral", "spectral-symmetric", "iseg"),
        ),
        description="Rows of segmentation.method, or 'module:attribute' of yours.",
    )
    refiners: tuple[str, ...] = Field(
        ("affinity-guided", "none"), description="Of segmentation.refiner; each method with each."
    )
    captions: bool = Field(False, description="The data's captions as prompts; none: no text.")
    timestep: int | None = Field(
        None, ge=0, le=999, description="Look once at this timestep; null: image-to-image (BL)."
    )
    batch_size: int = Field(4, ge=1, le=256)
    model: ModelConfig = ModelConfig()
    capture: CaptureConfig = CaptureConfig()
    segmentation: SegmentationConfig = SegmentationConfig()

    def configs(self) -> dict[str, SegmentationConfig]:
        """The segmentation of each row of the table."""
        own = self.segmentation.model_dump()
        return {
            f"{method}{'' if refiner == 'affinity-guided' else f', {refiner}'}": (
                SegmentationConfig.model_validate(own | {"method": method, "refiner": refiner})
            )
            for method in self.methods
            for refiner in self.refiners
        }


def evaluate_segment(out: Path, settings: SegmentSettings) -> dict[str, Any]:
    """Measure what is missing in a folder, and write rows.parquet, segment.md and segment.png.

    Returns:
        ``settings``; per row of the table the means of `SCORES` and ``per_class``; ``failed``
        images with their reasons; ``published`` figures of the data set.

    Raises:
        ValueError: In one line, for data that is not there, or settings that are not right.
    """
    layout = open_layout(settings.data, settings.root, settings.split, settings.num)
    storage, configs = open_storage(out), settings.configs()
    keys = {name: digest(config.model_dump(mode="json"))[:12] for name, config in configs.items()}
    left_out = {"num", "root", "methods", "refiners", "segmentation"}

    def begin() -> Measure:
        backbone = load_backbone(settings.model)
        return lambda batch, wanted: _measure(
            backbone, batch, layout, settings, {name: configs[name] for name in wanted}
        )

    known = settings.model_dump(mode="json", exclude=left_out)
    rows = measure_images(storage, layout, known, keys, begin, settings.batch_size)
    return _write(storage, settings, layout, rows)


def _measure(
    backbone: Backbone,
    batch: Sequence[Annotated],
    layout: Layout,
    settings: SegmentSettings,
    configs: Mapping[str, SegmentationConfig],
) -> list[dict[str, Any]]:
    """A row per image; one that cannot be read or seen says why."""
    pixels: dict[int, Any] = {}
    truths: dict[int, Truth] = {}
    rows: dict[int, dict[str, Any]] = {}
    for index, one in enumerate(batch):
        try:
            pixels[index], truths[index] = read_annotated(one)
        except ValueError as error:
            rows[index] = {"image": one.name, "failed": str(error)}
    samples = invert_any(
        backbone,
        list(pixels.values()),
        [Prompt(str(i), batch[i].caption if settings.captions else "") for i in pixels],
        [seed_of(batch[i]) for i in pixels],
        GenerationConfig(),
        settings.capture,
        timestep=settings.timestep,
        self_map=any(config.needs_self_map for config in configs.values()),
    )
    for index, sample in zip(pixels, samples, strict=True):
        row: dict[str, Any] = {"image": batch[index].name}
        if isinstance(sample, Failure):
            rows[index] = row | {"failed": f"{sample.reason}: {sample.message}"}
            continue
        row["methods"] = {
            name: _score(sample, truths[index], layout, config) for name, config in configs.items()
        }
        rows[index] = row
    return [rows[index] for index in range(len(batch))]


def _score(
    sample: Sample, truth: Truth, layout: Layout, config: SegmentationConfig
) -> dict[str, Any]:
    """Scores of one method on one image; classes and objects by class."""
    before, begin = reset_peak(), time.process_time()
    found = segment_sample(sample, config)
    masks = found.masks
    seconds, peak = time.process_time() - begin, peak_bytes() - before
    seen, instances = truth.semantic != IGNORE, defaultdict(list)
    regions = []
    if truth.instance is not None:
        for number in np.unique(truth.instance[seen]):
            region = (truth.instance == number) & seen
            if number:
                regions.append((int(np.bincount(truth.semantic[region]).argmax()), region))
    else:
        classes = sorted(set(np.unique(truth.semantic).tolist()) - {IGNORE, *layout.background})
        regions = [(cls, truth.semantic == cls) for cls in classes]
    one_to_one = None
    if regions:
        ious = iou_matrix(np.stack([region for _, region in regions]), masks & seen)
        one_to_one = mean_assigned(ious)
        for (cls, _), best in zip(regions, ious.max(1, initial=0.0).tolist(), strict=True):
            instances[str(cls)].append(best)
    classes_found = class_iou(truth.semantic, masks, layout.background)
    parts_found = {} if truth.part is None else part_iou(truth.part, masks)
    return {
        "class_iou": {str(cls): iou for cls, iou in classes_found.items()},
        "part_iou": {str(part): iou for part, iou in parts_found.items()},
        "instance_iou": dict(instances) if truth.instance is not None else {},
        "one_to_one": one_to_one,
        "covering": [
            [covering(pieces, labels) for pieces in truth.partitions] for labels in found.labels
        ],
        "masks": len(masks),
        "seconds": seconds,
        "megabytes": max(0, peak) / 1e6,
    }


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of one method's scores over images; IoU per class first (BL section 5).

    >>> one = {"one_to_one": 0.5, "masks": 2, "seconds": 1.0, "megabytes": 3.0, "part_iou": {}}
    >>> one |= {"instance_iou": {"1": [0.5, 1.0]}, "covering": [[0.5, 0.5], [0.75, 0.0]]}
    >>> found = summarize([one | {"class_iou": {"1": 1.0}}, one | {"class_iou": {"1": 0, "2": 1}}])
    >>> found["class_iou"], found["instance_iou"], found["per_class"], found["ods"], found["ois"]
    (0.75, 0.75, {'1': 0.5, '2': 1.0}, 0.5, 0.5)
    """
    people = sum(len(row["covering"][0]) for row in rows)
    levels = np.array([[sum(own) for own in row["covering"]] for row in rows])
    of_class: dict[str, list[float]] = defaultdict(list)
    of_objects: dict[str, list[float]] = defaultdict(list)
    of_part: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for cls, iou in row["class_iou"].items():
            of_class[cls].append(iou)
        for part, iou in row["part_iou"].items():
            of_part[part].append(iou)
        for cls, ious in row["instance_iou"].items():
            of_objects[cls] += ious
    matched = [row["one_to_one"] for row in rows if row["one_to_one"] is not None]
    per_class = {cls: fmean(own) for cls, own in sorted(of_class.items(), key=lambda i: int(i[0]))}
    return {
        "class_iou": fmean(per_class.values()) if per_class else None,
        "part_iou": fmean(map(fmean, of_part.values())) if of_part else None,
        "instance_iou": fmean(map(fmean, of_objects.values())) if of_objects else None,
        "one_to_one": fmean(matched) if matched else None,
        "ods": float(levels.sum(0).max()) / people if people else None,
        "ois": float(levels.max(1).sum()) / people if people else None,
        **{key: fmean(row[key] for row in rows) for key in ("masks", "seconds", "megabytes")},
        "per_class": per_class,
    }


def _write(
    storage: Storage,
    settings: SegmentSettings,
    layout: Layout,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    good = [row["methods"] for row in rows if "methods" in row]
    if not good:
        raise ValueError(f"An image must be readable. Got {len(rows)}, first {rows[0]['failed']}")
    table = {name: summarize([methods[name] for methods in good]) for name in settings.configs()}
    result = {
        "settings": settings.model_dump(mode="json"),
        "num": len(good),
        "table": table,
        "failed": {row["image"]: row["failed"] for row in rows if "failed" in row},
        "published": PUBLISHED.get(settings.data, {}),
        "names": {str(number): name for number, name in layout.names.items()},
    }
    flat = [
        {"image": row["image"], "method": name, "class": int(cls), "iou": iou}
        for row in rows
        for name, scores in row.get("methods", {}).items()
        for cls, iou in scores["class_iou"].items()
    ]
    axis = f"IoU, {settings.data}, {len(good)} images"
    figure = bars(table, {key: SCORES[key] for key in ("class_iou", "one_to_one")}, axis)
    publish_tables(storage, "segment", result, segment_table(result), figure, flat)
    return result


def segment_table(result: Mapping[str, Any]) -> str:
    """Markdown: methods by score, published figures, and IoU per class."""
    table, settings = result["table"], result["settings"]

    keys = [key for key in SCORES if any(row[key] is not None for row in table.values())]
    head = [settings["data"], *(SCORES[key] for key in keys)]
    lines = [
        [escape(name), *(shown(scores[key]) for key in keys)] for name, scores in table.items()
    ]
    lines += [
        [f"{escape(name)}, as reported", shown(value), *["–"] * (len(keys) - 1)]
        for name, value in result["published"].items()
    ]
    classes = next(iter(table.values()))["per_class"]
    by_class = [
        [
            escape(result["names"].get(cls, cls)),
            *(shown(s["per_class"][cls]) for s in table.values()),
        ]
        for cls in classes
    ]
    of = f"{result['num']} images" + (f", {n} failed" if (n := len(result["failed"])) else "")
    return "\n\n".join(
        [
            f"{of}; {settings['model']['card']}.",
            markdown_table(head, lines),
            *([markdown_table(["class IoU", *map(escape, table)], by_class)] if by_class else []),
            "",
        ]
    )
