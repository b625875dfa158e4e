"""Top-n and Hungarian IoU by counted bits against boolean masks pair by pair, in one run.

Made masks at the paper's size: 43 of ours (label maps of k = 2, 5, 6, 10, 20) against 100
overlapping annotations at 512 x 512. The rival is what one would write first: ``a & b`` and
``a | b`` for every pair, then the same matching. Times are CPU seconds of this process, which
another load on the machine does not lengthen; runs are interleaved and medians compared.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from synthgen.config import TOPS
from synthgen.segmentation.metrics import mean_assigned, mean_best
from synthgen.segmentation.packed import iou_matrix

KS = (2, 5, 6, 10, 20)  # BL section 4.1: 43 masks
ANNOTATIONS = 100
SIZE = 512
ROUNDS = 3  # interleaved, each twice

Scores = dict[str, float]


def bench_audit(quick: bool = False) -> dict[str, Any]:
    """Seconds of both, their ratio, and whether every figure is equal.

    Args:
        quick: Small masks, one round; for a check that the bench runs.
    """
    size, rounds = (64, 1) if quick else (SIZE, ROUNDS)
    masks, references = made_masks(size)
    ours: list[float] = []
    theirs: list[float] = []
    equal = True
    for number in range(rounds):
        runs = [_timed(score, references, masks) for score in (packed_scores, brute_scores) * 2]
        ours += [seconds for seconds, _ in runs[::2]]
        theirs += [seconds for seconds, _ in runs[1::2]]
        equal = equal and all(scores == runs[0][1] for _, scores in runs)
        print(f"audit: round {number + 1}/{rounds}", file=sys.stderr, flush=True)
    return {
        "masks": len(masks),
        "annotations": len(references),
        "size": size,
        "seconds": median(ours),
        "brute_seconds": median(theirs),
        "ratio": median(theirs) / median(ours),
        "equal": equal,
    }


def made_masks(
    size: int,
) -> tuple[Bool[np.ndarray, "mask height width"], Bool[np.ndarray, "reference height width"]]:
    """Masks of smooth random label maps per k, and overlapping annotations of any size."""
    rng = np.random.default_rng(0)

    def field() -> Any:
        return ndimage.gaussian_filter(rng.standard_normal((size, size)), size / 24, mode="wrap")

    def ranks(values: Any, k: int) -> Any:
        return np.searchsorted(np.quantile(values, np.arange(1, k) / k), values)

    maps = [(k, ranks(field(), k)) for k in KS]
    masks = np.stack([labels == c for k, labels in maps for c in range(k)])
    fields = [field() for _ in range(ANNOTATIONS)]
    shares = rng.uniform(0.02, 0.6, ANNOTATIONS)
    seen = [f > np.quantile(f, 1 - s) for f, s in zip(fields, shares, strict=True)]
    return masks, np.stack(seen)


def packed_scores(
    references: Bool[np.ndarray, "reference height width"],
    masks: Bool[np.ndarray, "mask height width"],
) -> Scores:
    """Top-n and Hungarian IoU the way the audit computes them."""
    iou, areas = iou_matrix(references, masks), references.sum((1, 2))
    tops = {f"top_{n}": mean_best(iou, areas, n)[0] for n in TOPS}
    return {**tops, "hungarian": mean_assigned(iou)}


def brute_scores(
    references: Bool[np.ndarray, "reference height width"],
    masks: Bool[np.ndarray, "mask height width"],
) -> Scores:
    """The same from boolean masks, pair by pair."""
    iou = np.array([[(a & b).sum() / max((a | b).sum(), 1) for b in masks] for a in references])
    largest = np.argsort([-int(mask.sum()) for mask in references], kind="stable")
    tops = {f"top_{n}": float(iou[largest[:n]].max(1).mean()) for n in TOPS}
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return {**tops, "hungarian": float(iou[rows, columns].sum() / len(iou))}


def _timed(score: Callable[..., Scores], *masks: Any) -> tuple[float, Scores]:
    started = time.process_time()
    scores = score(*masks)
    return time.process_time() - started, scores
