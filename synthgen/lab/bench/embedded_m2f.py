"""How well the embedded Mask2Former names the pixels of scenes that nothing was fitted on.

Intersections and unions are summed over all scenes, as in VOC, then averaged over classes. `miou`
is the mean of the twelve object classes; the background, which is easy, is reported beside it.

    python -m synthgen.lab.bench.embedded_m2f --num 200 --record
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from synthgen.embedded.card import record_quality
from synthgen.embedded.mask2former import (
    LABELS,
    SHIPPED_M2F,
    load_m2f,
    m2f_weights_dir,
    predict_scores,
)
from synthgen.embedded.vocabulary import VALIDATION_SEEDS
from synthgen.lab.world.render import render
from synthgen.segmentation.metrics import class_ious, confusion

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


def summarize(counts: Int[np.ndarray, "cls cls"]) -> dict[str, float]:
    """The card's figures of a confusion matrix whose class 0 is the background."""
    ious = class_ious(counts)
    return {
        "miou": round(float(np.nanmean(ious[1:])), 4),
        "background_iou": round(float(ious[0]), 4),
        "worst_class_iou": round(float(np.nanmin(ious[1:])), 4),
        "pixel_accuracy": round(float(counts.diagonal().sum() / counts.sum()), 4),
    }


def bench_m2f(
    num: int = 200, folder: Path | None = None, workers: int = 2, first: int = VALIDATION_SEEDS[0]
) -> dict[str, float]:
    """Quality of the embedded Mask2Former.

    Args:
        num: Validation scenes.
        folder: Weights; the shipped ones by default.
        workers: Processes; 0 measures in this one.
        first: Seed of the first scene.

    Returns:
        `miou` over the object classes, `background_iou`, `worst_class_iou`, `pixel_accuracy`.
    """
    folder = m2f_weights_dir() if folder is None else folder
    seeds = range(first, first + num)
    if workers == 0:
        return summarize(_count_part(folder, seeds))
    with get_context("spawn").Pool(workers) as pool:
        jobs = [(folder, seeds[rank::workers]) for rank in range(workers)]
        return summarize(np.sum(pool.starmap(_count_part, jobs), axis=0))


def main() -> None:
    """Measure the weights, print the figures as JSON, and write them into the card."""
    parser = argparse.ArgumentParser(description="Quality of the embedded Mask2Former.")
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--weights", type=Path, default=SHIPPED_M2F)
    parser.add_argument("--record", action="store_true", help="write the figures into the card")
    args = parser.parse_args()
    figures = bench_m2f(args.num, m2f_weights_dir(args.weights), args.workers)
    print(json.dumps({"num": args.num, **figures}))
    if args.record:
        record_quality({"num": args.num, **figures}, args.weights)


if __name__ == "__main__":
    main()
