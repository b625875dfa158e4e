"""What refiners do to edges that a coarse grid has spoiled, on scenes whose truth is known.

The truth of a scene is brought to a grid (the class of most pixels of each cell, as a labeler on
the finest features of the embedded model would see it) and back to pixels; the upsampling error
(BL eq. 6) is that of the shares of the classes in the cells. A refiner then has to find the edges
that the image shows. Choices are made on tuning scenes and reported on validation scenes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from synthgen.embedded.vocabulary import CLASSES, TUNING_SEEDS, VALIDATION_SEEDS
from synthgen.lab.downstream.scoring import confuse, summarize
from synthgen.lab.world.render import Scene, render
from synthgen.labeling.refine import refine
from synthgen.registry import REFINERS
from synthgen.segmentation.features import upsampling_error
from synthgen.segmentation.metrics import boundary_f, class_ious
from synthgen.types import IGNORE

GRID = 32  # the finest grid of the embedded model, and a quarter of its images
TOLERANCE = 1.0
"""Distance in pixels up to which a boundary counts as found; the blocks are off by up to four."""

NAMES = ("background", *CLASSES)


def measure_refiners(num: int = 100, tuning: bool = False) -> dict[str, Any]:
    """Scores of each refiner on degraded truth.

    Args:
        num: Scenes.
        tuning: Take tuning scenes, on which settings may be chosen, in place of validation ones.

    Returns:
        ``num``, ``scenes``, ``grid``, and per refiner ``miou`` (undecided pixels are wrong),
        ``decided_miou`` (they are left out), ``boundary_f`` of the objects, ``decided``
        (share of the pixels), ``milliseconds`` per image.
    """
    seeds = (TUNING_SEEDS if tuning else VALIDATION_SEEDS)[:num]
    scenes = [render(seed) for seed in seeds]
    degraded = [degrade_truth(scene.semantic, GRID) for scene in scenes]
    result: dict[str, Any] = {"num": num, "scenes": "tuning" if tuning else "validation"}
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


def refiner_table(result: Mapping[str, Any]) -> str:
    """The measurement as a Markdown table."""
    rows = [
        f"| {name} | {row['miou']:.3f} | {row['decided_miou']:.3f} | {row['boundary_f']:.3f} "
        f"| {row['decided']:.1%} | {row['milliseconds']:.0f} |"
        for name, row in result.items()
        if isinstance(row, Mapping)
    ]
    return "\n".join(
        [
            f"{result['num']} {result['scenes']} scenes, truth on a {GRID} x {GRID} grid, "
            f"boundary tolerance {TOLERANCE:g} px.",
            "",
            "| refiner | mIoU | of decided pixels | boundary F | decided | ms / image |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def degrade_truth(
    semantic: UInt8[np.ndarray, "height width"], grid: int
) -> tuple[UInt8[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
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


def score_maps(
    scenes: Sequence[Scene], maps: Sequence[UInt8[np.ndarray, "height width"]]
) -> dict[str, float]:
    """IoU and boundary F of semantic maps against the truth of their scenes."""
    undecided = len(NAMES)  # one class more, which is never true
    counts = np.zeros((len(NAMES) + 1, len(NAMES) + 1), dtype=np.int64)
    borders: list[float] = []
    for scene, found in zip(scenes, maps, strict=True):
        predicted = np.where(found == IGNORE, undecided, found)
        counts += confuse(scene.semantic, predicted, len(NAMES) + 1)
        borders += [
            boundary_f(scene.semantic == cls, found == cls, TOLERANCE)
            for cls in np.unique(scene.semantic)
            if cls > 0
        ]
    decided = counts[:-1, :-1]
    return {
        "miou": float(np.nanmean(class_ious(counts)[:-1])),
        "decided_miou": summarize(decided, NAMES).miou,
        "boundary_f": float(np.mean(borders)),
        "decided": _share(decided, counts),
    }


def _share(part: Int[np.ndarray, "cls cls"], whole: Int[np.ndarray, "more more"]) -> float:
    return float(part.sum() / max(whole.sum(), 1))
