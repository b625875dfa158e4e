"""How good scenes-sam is in automatic mode: mean best IoU of objects and of parts.

For each object and each part of a scene that nothing was chosen on, the best IoU of any mask that
`SamAutomaticMaskGenerator` returns. A part is all pixels of it in one object. Left out are parts
of classes that are their own only part (they are objects already), and objects and parts of fewer
than 20 visible pixels, a disc of five across: less than a cell of the 16x16 points.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from segment_anything import SamAutomaticMaskGenerator

from synthgen.embedded.sam import AUTOMATIC_DEFAULTS, SHIPPED_SAM, load_folder
from synthgen.embedded.vocabulary import TUNING_SEEDS, VALIDATION_SEEDS
from synthgen.lab.processes import in_processes
from synthgen.lab.world.render import render
from synthgen.lab.world.truth import true_objects, true_parts
from synthgen.segmentation.packed import iou_matrix


def best_ious(
    references: Bool[np.ndarray, "reference height width"],
    masks: Bool[np.ndarray, "mask height width"],
) -> list[float]:
    """Best IoU of any mask with each reference; 0 where there is no mask."""
    if not len(masks) or not len(references):
        return [0.0] * len(references)
    best: list[float] = iou_matrix(references, masks).max(1).tolist()
    return best


def _evaluate_part(
    folder: Path, parameters: dict[str, Any], seeds: list[int]
) -> list[tuple[list[float], list[float], int]]:
    """Per scene the IoU of its objects and parts, and the number of masks, on one thread."""
    torch.set_num_threads(1)
    generator = SamAutomaticMaskGenerator(load_folder(folder), **parameters)
    rows = []
    for seed in seeds:
        scene = render(seed)
        found = [record["segmentation"] for record in generator.generate(scene.image)]
        masks = np.stack(found) if found else np.zeros((0, *scene.instance.shape), dtype=bool)
        objects = best_ious(true_objects(scene), masks)
        rows.append((objects, best_ious(true_parts(scene), masks), len(masks)))
    return rows


def bench_sam(
    num: int = 200,
    weights: Path = SHIPPED_SAM,
    workers: int = 2,
    parameters: Mapping[str, Any] | None = None,
    tuning: bool = False,
) -> dict[str, float]:
    """Figures of automatic mode.

    Args:
        num: Validation scenes.
        weights: Their folder.
        workers: Processes; 0 evaluates in this one.
        parameters: Of the generator, over `AUTOMATIC_DEFAULTS`.
        tuning: Tuning scenes instead, to choose parameters by.

    Returns:
        `object_iou` and `part_iou`, means over all objects and parts; `masks_per_image`.
    """
    seeds = list((TUNING_SEEDS if tuning else VALIDATION_SEEDS)[:num])
    settings: dict[str, Any] = {**AUTOMATIC_DEFAULTS, **(parameters or {})}
    jobs = [(weights, settings, seeds[first :: max(1, workers)]) for first in range(workers or 1)]
    results = in_processes(_evaluate_part, jobs, workers)
    rows = [row for part in results for row in part]
    return {
        "object_iou": round(float(np.mean([iou for row in rows for iou in row[0]])), 4),
        "part_iou": round(float(np.mean([iou for row in rows for iou in row[1]])), 4),
        "masks_per_image": round(float(np.mean([row[2] for row in rows])), 2),
    }
