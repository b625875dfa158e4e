"""How well the embedded Mask2Former names the pixels of scenes that nothing was fitted on.

Intersections and unions are summed over all scenes, as in VOC, then averaged over classes. `miou`
is the mean of the twelve object classes; the background, which is easy, is reported by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from synthgen.embedded.mask2former import (
    LABELS,
    SHIPPED_M2F,
    load_m2f,
    m2f_weights_dir,
    predict_scores,
)
from synthgen.embedded.vocabulary import VALIDATION_SEEDS
from synthgen.lab.downstream.scoring import summarize
from synthgen.lab.processes import in_processes
from synthgen.lab.world.render import render
from synthgen.segmentation.metrics import confusion

BATCH = 10


def _count_part(folder: Path, seeds: Sequence[int]) -> Int[np.ndarray, "cls cls"]:
    """Confusion over the scenes of some seeds, on one thread."""
    torch.set_num_threads(1)
    model, processor = load_m2f(folder)
    counts = np.zeros((len(LABELS), len(LABELS)), np.int64)
    for first in range(0, len(seeds), BATCH):
        scenes = [render(seed) for seed in seeds[first : first + BATCH]]
        scores = predict_scores(model, processor, [scene.image for scene in scenes])
        for scene, score in zip(scenes, scores, strict=True):
            predicted = score.argmax(0).numpy()
            counts += confusion(scene.semantic.astype(np.int64), predicted, len(LABELS))
    return counts


def bench_m2f(
    num: int = 200, weights: Path = SHIPPED_M2F, workers: int = 2, first: int = VALIDATION_SEEDS[0]
) -> dict[str, float]:
    """Quality of the embedded Mask2Former.

    Args:
        num: Validation scenes.
        weights: Their folder.
        workers: Processes; 0 measures in this one.
        first: Seed of the first scene.

    Returns:
        `miou` over the object classes, `background_iou`, `worst_class_iou`, `pixel_accuracy`.
    """
    seeds = range(first, first + num)
    jobs = [
        (m2f_weights_dir(weights), seeds[rank :: max(1, workers)]) for rank in range(workers or 1)
    ]
    scores = summarize(np.sum(in_processes(_count_part, jobs, workers), axis=0), LABELS)
    background, *objects = (scores.class_iou[name] for name in LABELS if name in scores.class_iou)
    figures = {
        "miou": scores.object_miou,
        "background_iou": background,
        "worst_class_iou": min(objects),
        "pixel_accuracy": scores.pixel_accuracy,
    }
    return {name: round(value, 4) for name, value in figures.items()}
