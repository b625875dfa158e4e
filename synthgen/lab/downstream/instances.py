"""Instances of labels against the true objects of scenes: mean AP at an IoU of .5 (pycocotools).

Two kinds of scenes: those of the corpus, where objects of one class seldom touch, and those whose
two or three objects have one class and stand into each other. Connected components know nothing of
the second, and what takes them apart must not take the first apart.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from synthgen.config import Config, ModelConfig
from synthgen.diffusion.backbones import load_backbone
from synthgen.embedded.vocabulary import CLASSES, TUNING_SEEDS, VALIDATION_SEEDS
from synthgen.lab.downstream.labels import BATCH, recorded
from synthgen.lab.tables import markdown_table
from synthgen.lab.world.captions import ObjectPhrase
from synthgen.lab.world.render import Change, Pose, Scene, render
from synthgen.labeling.instances import Instance, find_instances
from synthgen.labeling.label import label_sample
from synthgen.segmentation.segment import segment_sample

IOU = 0.5
NEARNESS = 0.68
"""Distance of touching objects, as a share of the sum of their radii."""


def measure_instances(
    num: int = 100, tuning: bool = False, config: Config | None = None
) -> dict[str, Any]:
    """Mean AP of instances with and without what takes touching ones apart.

    Args:
        num: Scenes of each kind.
        tuning: Take tuning scenes, on which settings may be chosen, in place of validation ones.
        config: Settings of masks and labels; labeler `clusters` where they name none.

    Returns:
        ``num``, ``seeds``, and under ``scenes`` and ``touching`` each ``objects``, and under
        ``components`` and ``split`` their ``ap`` (mean over classes) and ``found`` instances.
    """
    backbone, config = load_backbone(ModelConfig()), config or Config()
    if config.labeling.method == "none":
        clusters = config.labeling.model_copy(update={"method": "clusters"})
        config = config.model_copy(update={"labeling": clusters})
    seeds = (TUNING_SEEDS if tuning else VALIDATION_SEEDS)[:num]
    kinds = {
        "scenes": [render(seed) for seed in seeds],
        "touching": [touching_scene(seed, 2 + seed % 2) for seed in seeds],
    }
    result: dict[str, Any] = {"num": num, "seeds": "tuning" if tuning else "validation"}
    for kind, scenes in kinds.items():
        found: dict[str, list[list[tuple[str, Instance]]]] = {"components": [], "split": []}
        for start in range(0, num, BATCH):
            batch = scenes[start : start + BATCH]
            for sample in recorded(backbone, batch, config.labeling):
                masks = segment_sample(sample, config.segmentation)
                labels = label_sample(
                    masks, sample.heatmaps, sample.self_map, config.labeling, sample.image
                )
                for name, mask_set in (("components", None), ("split", masks)):
                    own = find_instances(labels, mask_set)
                    found[name].append([(labels.class_names[i.label - 1], i) for i in own])
            print(f"instances: {kind} {start + len(batch)}/{num}", file=sys.stderr, flush=True)
        result[kind] = {
            "objects": sum(len(scene.objects) for scene in scenes),
            **{
                name: {"ap": average_precision(scenes, own), "found": sum(map(len, own))}
                for name, own in found.items()
            },
        }
    return result


def touching_scene(seed: int, num_objects: int) -> Scene:
    """The scene of a seed with objects of one class, all of which stand into the first."""
    return render(seed, num_objects, change=Change(arrange=_together, min_visible=0.5))


def _together(
    items: list[ObjectPhrase], poses: list[Pose]
) -> tuple[list[ObjectPhrase], list[Pose]]:
    first, moved = poses[0], [poses[0]]
    for pose in poses[1:]:
        x, y = pose.x - first.x, pose.y - first.y
        nearer = NEARNESS * (first.radius + pose.radius) / math.hypot(x, y)
        moved.append(replace(pose, x=first.x + nearer * x, y=first.y + nearer * y))
    return [replace(item, class_name=items[0].class_name) for item in items], moved


def average_precision(
    scenes: Sequence[Scene], found: Sequence[Sequence[tuple[str, Instance]]]
) -> float:
    """Mean over classes of the AP at `IOU`, as COCO has it.

    Args:
        scenes: Whose objects are the truth.
        found: Per scene the instances with the names of their classes.
    """
    images: list[dict[str, Any]] = []
    truths: list[dict[str, Any]] = []
    guesses: list[dict[str, Any]] = []
    for number, (scene, own) in enumerate(zip(scenes, found, strict=True), start=1):
        height, width = scene.instance.shape
        images.append({"id": number, "height": height, "width": width})
        for item in scene.objects:
            mask = scene.instance == item.instance
            truths.append(_entry(number, item.class_name, mask) | {"id": len(truths) + 1})
        guesses += [_entry(number, name, i.mask) | {"score": i.score} for name, i in own]
    truth = COCO()
    categories = [{"id": number} for number in range(1, len(CLASSES) + 1)]
    truth.dataset = {"info": {}, "images": images, "annotations": truths, "categories": categories}
    if not guesses:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(guesses), "segm")
        judge.params.iouThrs = np.array([IOU])
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][0, :, :, 0, -1]  # recall, class; all areas, most guesses
    return float(precision[precision >= 0].mean())


def _entry(image: int, class_name: str, mask: Any) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "image_id": image,
        "category_id": CLASSES.index(class_name) + 1,
        "segmentation": rle,
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(mask.sum()),
        "iscrowd": 0,
    }


def instance_table(result: dict[str, Any]) -> str:
    """Kinds of scenes by ways to find instances, in Markdown."""
    rows = [
        (
            {"scenes": "scenes", "touching": "objects of one class that touch"}[kind],
            str(result[kind]["objects"]),
            *(
                f"{result[kind][name]['ap']:.3f} ({result[kind][name]['found']})"
                for name in ("components", "split")
            ),
        )
        for kind in ("scenes", "touching")
    ]
    return (
        f"Mean AP at an IoU of {IOU:g} (instances found); {result['num']} {result['seeds']} "
        f"scenes of each kind.\n\n"
        f"{markdown_table(['scenes', 'objects', 'connected components', 'taken apart'], rows)}"
    )
