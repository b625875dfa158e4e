"""How good labels and refiners are where the truth is known: on rendered scenes.

Labels: scenes go through the image-to-image path at low strength, as a user's photographs would,
with their captions and the names of the classes that are there; nothing else of the truth is used.

Refiners alone: the truth of a scene is brought to a grid (the class of most pixels of each cell,
as a labeler on the finest features of the embedded model would see it) and back to pixels; the
upsampling error (BL eq. 6) is that of the shares of the classes in the cells. A refiner then has
to find the edges that the image shows.

Choices are made on tuning scenes and reported on validation scenes.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from synthgen.config import (
    CaptureConfig,
    Config,
    GenerationConfig,
    LabelConfig,
    ModelConfig,
)
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.diffusion.invert import invert
from synthgen.embedded.vocabulary import TUNING_SEEDS, VALIDATION_SEEDS
from synthgen.lab.downstream.labeled_images import SCENE_CLASSES
from synthgen.lab.downstream.scoring import confuse, summarize
from synthgen.lab.tables import markdown_table
from synthgen.lab.world.render import Scene, SceneObject, render
from synthgen.labeling.label import label_sample
from synthgen.labeling.refine import refine
from synthgen.registry import LABELERS, REFINERS
from synthgen.segmentation.features import feature_blocks, upsampling_error
from synthgen.segmentation.metrics import boundary_f, class_ious
from synthgen.segmentation.segment import segment_sample
from synthgen.types import IGNORE, Prompt, Sample

BATCH = 10
GRID = 32  # the finest grid of the embedded model, and a quarter of its images
TOLERANCE = 1.0
"""Distance in pixels up to which a boundary counts as found; the blocks are off by up to four."""

SemanticMap = UInt8[np.ndarray, "height width"]


def _scenes(num: int, tuning: bool) -> tuple[list[Scene], dict[str, Any]]:
    """The scenes that are measured on, and what a result says of them."""
    seeds = (TUNING_SEEDS if tuning else VALIDATION_SEEDS)[:num]
    return [render(seed) for seed in seeds], {
        "num": num,
        "scenes": "tuning" if tuning else "validation",
    }


def measure_labels(
    num: int = 100, tuning: bool = False, config: Config | None = None
) -> dict[str, Any]:
    """Scores of each labeler with each refiner.

    Args:
        num: Scenes.
        tuning: Take tuning scenes, on which settings may be chosen, in place of validation ones.
        config: Settings of masks and labels; method and refiner of labels are replaced.

    Returns:
        ``num``, ``scenes``, and under ``scores`` per labeler and refiner those of `score_maps`:
        ``miou`` (undecided pixels are wrong), ``decided_miou``, ``boundary_f``, ``decided``.
    """
    backbone, config = load_backbone(ModelConfig()), config or Config()
    scenes, result = _scenes(num, tuning)
    maps: defaultdict[tuple[str, str], list[SemanticMap]] = defaultdict(list)
    for start in range(0, num, BATCH):
        batch = scenes[start : start + BATCH]
        for sample in recorded(backbone, batch, config.labeling):
            for names, semantic in labeled(sample, config, LABELERS, REFINERS).items():
                maps[names].append(semantic)
        print(f"labels: {start + len(batch)}/{num} scenes", file=sys.stderr, flush=True)
    scores = {
        method: {refiner: score_maps(scenes, maps[method, refiner]) for refiner in REFINERS}
        for method in LABELERS
    }
    return {**result, "scores": scores}


def recorded(backbone: Backbone, scenes: Sequence[Scene], labeling: LabelConfig) -> list[Sample]:
    """The scenes through the image-to-image path, with all that any labeler needs."""
    prompts = [
        Prompt(
            str(scene.seed),
            scene.caption,
            tuple(SCENE_CLASSES[i] for i in np.unique(scene.semantic) if i > 0),
        )
        for scene in scenes
    ]
    samples = invert(
        backbone,
        np.stack([scene.image for scene in scenes]),
        prompts,
        [scene.seed for scene in scenes],
        GenerationConfig(),
        CaptureConfig(),
        labeling=labeling.model_copy(update={"method": "argmax", "self_map": True}),
    )
    found = [sample for sample in samples if isinstance(sample, Sample)]
    assert len(found) == len(scenes), "rendered scenes have finite latents"
    return found


def labeled(
    sample: Sample,
    config: Config,
    methods: Mapping[str, str] | Sequence[str],
    refiners: Mapping[str, str] | Sequence[str],
) -> dict[tuple[str, str], SemanticMap]:
    """Semantic maps, with the ids of the scenes, by labeler and refiner."""
    segmentation = segment_sample(sample, config.segmentation)
    blocks = feature_blocks(sample.features, config.segmentation.features)
    error = upsampling_error(blocks, sample.image.shape[:2]).float().cpu().numpy()
    ids = np.arange(256, dtype=np.uint8)
    for row, name in enumerate(sample.prompt.class_names, start=1):
        ids[row] = SCENE_CLASSES.index(name)
    maps = {}
    for method in methods:
        for refiner in refiners:
            own = config.labeling.model_copy(update={"method": method, "refiner": refiner})
            found = label_sample(
                segmentation, sample.heatmaps, sample.self_map, own, sample.image, error
            )
            maps[method, refiner] = ids[found.semantic]
    return maps


def measure_refiners(num: int = 100, tuning: bool = False) -> dict[str, Any]:
    """Scores of each refiner on degraded truth.

    Args:
        num: Scenes.
        tuning: Take tuning scenes, on which settings may be chosen, in place of validation ones.

    Returns:
        ``num``, ``scenes``, and per refiner those of `score_maps`, with ``milliseconds`` per
        image.
    """
    scenes, result = _scenes(num, tuning)
    degraded = [degrade_truth(scene.semantic, GRID) for scene in scenes]
    for method in REFINERS:
        started = time.process_time()
        refined = [
            refine(method, coarse, scene.image, None, error)
            for scene, (coarse, error) in zip(scenes, degraded, strict=True)
        ]
        milliseconds = 1000 * (time.process_time() - started) / num
        result[method] = {**score_maps(scenes, refined), "milliseconds": milliseconds}
        print(f"refiners: {method} on {num} scenes", file=sys.stderr, flush=True)
    return result


def degrade_truth(
    semantic: SemanticMap, grid: int
) -> tuple[SemanticMap, Float[np.ndarray, "height width"]]:
    """The map as a square grid would know it, and its upsampling error (BL eq. 6).

    Args:
        semantic: Exact classes; sides are multiples of the grid.
        grid: Cells along each side.

    >>> coarse, error = degrade_truth(np.array([[1, 0, 0, 0], [1, 1, 0, 0]] * 2, np.uint8), 2)
    >>> coarse[0].tolist(), (error[0] * 16).tolist()
    ([1, 1, 0, 0], [0.0, 3.0, 3.0, 0.0])
    """
    classes = np.unique(semantic)
    height, width = (side // grid for side in semantic.shape)
    cells = semantic.reshape(grid, height, grid, width)
    shares = np.stack([(cells == cls).mean((1, 3)) for cls in classes], axis=-1)
    winners = classes[shares.argmax(-1)]
    coarse = winners.repeat(height, axis=0).repeat(width, axis=1)
    size = (semantic.shape[0], semantic.shape[1])
    error = upsampling_error([torch.from_numpy(shares.astype(np.float32))], size)
    return coarse, error.numpy()


def score_maps(scenes: Sequence[Scene], maps: Sequence[SemanticMap]) -> dict[str, float]:
    """IoU and boundary F of semantic maps against the truth of their scenes.

    Returns:
        ``miou`` (undecided pixels are wrong), ``decided_miou`` (they are left out),
        ``boundary_f`` of the objects, ``decided`` (share of the pixels), ``instances`` (share of
        the objects, in scenes of several classes, of whose pixels most that have a class have
        theirs; 1 without such a scene).
    """
    undecided = len(SCENE_CLASSES)  # one class more, which is never true
    counts = np.zeros((undecided + 1, undecided + 1), dtype=np.int64)
    borders: list[float] = []
    named: list[bool] = []
    for scene, found in zip(scenes, maps, strict=True):
        predicted = np.where(found == IGNORE, undecided, found)
        counts += confuse(scene.semantic, predicted, undecided + 1)
        borders += [
            boundary_f(scene.semantic == cls, found == cls, TOLERANCE)
            for cls in np.unique(scene.semantic)
            if cls > 0
        ]
        if len({item.class_name for item in scene.objects}) > 1:
            named += [_has_its_class(scene, item, found) for item in scene.objects]
    decided = counts[:-1, :-1]
    return {
        "miou": float(np.nanmean(class_ious(counts)[:-1])),
        "decided_miou": summarize(decided, SCENE_CLASSES).miou,
        "boundary_f": float(np.mean(borders)),
        "decided": float(decided.sum() / max(counts.sum(), 1)),
        "instances": float(np.mean(named)) if named else 1.0,
    }


def _has_its_class(scene: Scene, item: SceneObject, found: SemanticMap) -> bool:
    """Whether most pixels of an object that have a class have its own."""
    votes = np.bincount(found[scene.instance == item.instance], minlength=IGNORE + 1)
    votes[[0, IGNORE]] = 0
    return bool(votes.any()) and SCENE_CLASSES[votes.argmax()] == item.class_name


def label_table(result: Mapping[str, Any]) -> str:
    """Labelers by refiners in Markdown."""
    scores: Mapping[str, Mapping[str, Mapping[str, float]]] = result["scores"]
    refiners = list(next(iter(scores.values())))
    rows = [
        [
            method,
            f"{row[refiners[0]]['decided']:.1%}",
            f"{row[refiners[0]]['instances']:.3f}",
            *(f"{each['miou']:.3f} ({each['boundary_f']:.3f})" for each in row.values()),
        ]
        for method, row in scores.items()
    ]
    return (
        f"{result['num']} {result['scenes']} scenes, image-to-image with captions: mIoU, "
        f"undecided pixels being wrong (boundary F at {TOLERANCE:g} px); instances that have "
        f"their class, in scenes of several, without a refiner.\n\n"
        f"{markdown_table(['labeler', 'decided', 'instances', *refiners], rows)}"
    )


def refiner_table(result: Mapping[str, Any]) -> str:
    """Refiners in Markdown."""
    header = ("refiner", "mIoU", "of decided pixels", "boundary F", "decided", "ms / image")
    rows = [
        [
            name,
            *(f"{row[key]:.3f}" for key in ("miou", "decided_miou", "boundary_f")),
            f"{row['decided']:.1%}",
            f"{row['milliseconds']:.0f}",
        ]
        for name, row in result.items()
        if isinstance(row, Mapping)
    ]
    return (
        f"{result['num']} {result['scenes']} scenes, truth on a {GRID} x {GRID} grid, "
        f"boundary tolerance {TOLERANCE:g} px.\n\n{markdown_table(header, rows)}"
    )
