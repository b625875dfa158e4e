"""DiffSeg (Tian et al., CVPR 2024): places that look at the same things are one segment.

Rows of a self-attention map, averaged over the layers of all resolutions, are distributions over
places. Those of a grid of anchors become proposals, near ones are merged again and again, and each
pixel goes to the proposal that gives it most (non-maximum suppression):

    D(a, b) = (KL(a || b) + KL(b || a)) / 2                                                 (1)
    V_i = mean of all rows r with D(anchor_i, r) < tau                           pass 1     (2)
    greedily, V_i and all V_j with D(V_i, V_j) < tau become their mean           passes 2,3 (3)
    label(p) = argmax_i V_i(p), bilinear between places                                     (4)

tau is 0.9 (the paper; 1.1 on COCO) or 0.8 (LS). It belongs to the backbone: the wider attention
looks, the nearer all rows are. ``diffseg`` is as published, one partition; ``diffseg-k`` takes,
for each k, the least tau that leaves at most k proposals, so that masks are as many as of others.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from synthgen.config import SegmentationConfig
from synthgen.segmentation.self_maps import compact, largest, recorded_self_map, segmentation_of
from synthgen.types import Sample, Segmentation

THRESHOLD, ANCHORS, PASSES = 0.9, 16, 3
MOST = 254
"""Proposals that are kept, in the order of their anchors: label maps have eight bits."""

STEPS = 32
"""Values of tau that ``diffseg-k`` chooses from, evenly in their logarithms."""

Rows = Float[Tensor, "row place"]


def segment_diffseg(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """DiffSeg as published, in place of k-means at every k."""
    rows, grid = recorded_self_map(sample)
    size = (sample.image.shape[0], sample.image.shape[1])
    labels, num = compact(diffseg(rows, grid, size))
    return segmentation_of([labels], (num,), sample, config)


def segment_diffseg_k(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """DiffSeg with the tau of each k, in place of k-means."""
    rows, grid = recorded_self_map(sample)
    size, ks = (sample.image.shape[0], sample.image.shape[1]), config.clusters.ks
    distances = divergences(rows[anchors(grid)], rows)
    taus = np.geomspace(max(float(distances.quantile(0.001)), 1e-6), float(distances.max()), STEPS)
    known: dict[int, Rows] = {}

    def proposals_at(step: int) -> Rows:
        if step not in known:
            known[step] = proposals(rows, grid, float(taus[step]) * 1.000001, distances)
        return known[step]

    labels = []
    for k in ks:
        low, high = 0, STEPS - 1  # at the last one everything is near everything
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(proposals_at(middle)) <= k else (middle + 1, high)
        labels.append(largest(proposals_at(high)[:k], grid, size))
    return segmentation_of(labels, ks, sample, config)


def diffseg(
    rows: Float[Tensor, "place place"],
    grid: tuple[int, int],
    size: tuple[int, int],
    threshold: float = THRESHOLD,
) -> UInt8[np.ndarray, "height width"]:
    """Eq. 1 to 4: number of the proposal of each pixel; some may be of none.

    Args:
        rows: Self-attention, each row (query) summing to 1; ``SelfMap.values``.
        grid: Height and width of its places; ``SelfMap.grid``.
        size: Height and width of the labels.
        threshold: tau.

    >>> halves = torch.kron(torch.eye(2), torch.full((8, 8), 1 / 8))
    >>> np.unique(diffseg(halves, (4, 4), (8, 8))).tolist()
    [0, 1]
    """
    return largest(proposals(rows, grid, threshold)[:MOST], grid, size)


def proposals(
    rows: Float[Tensor, "place place"],
    grid: tuple[int, int],
    threshold: float = THRESHOLD,
    distances: Float[Tensor, "anchor place"] | None = None,
    passes: int = PASSES,
) -> Float[Tensor, "proposal place"]:
    """Eq. 2 and 3.

    Args:
        rows: Self-attention.
        grid: Of its places.
        threshold: tau.
        distances: Eq. 1 of anchors and all rows, if it is known.
        passes: Of merging, the first one included.
    """
    if distances is None:
        distances = divergences(rows[anchors(grid)], rows)
    near = (distances < threshold).to(rows)
    found = near @ rows / near.sum(1, keepdim=True).clamp(min=1)
    for _ in range(passes - 1):
        near_ones, waiting = divergences(found, found) < threshold, set(range(len(found)))
        near_ones.fill_diagonal_(True)
        merged = []
        for number, own in enumerate(near_ones):
            if number in waiting:
                waiting -= set(own.nonzero().flatten().tolist())
                merged.append(found[own].mean(0))
        found = torch.stack(merged)
    return found


def divergences(a: Float[Tensor, "one place"], b: Float[Tensor, "other place"]) -> Tensor:
    """Eq. 1, as products: sum a log a - a log b + b log b - b log a, halved.

    >>> divergences(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    tensor([[0.0000, 0.4394]])
    """
    log_a, log_b = (x.clamp(min=1e-12).log() for x in (a, b))
    own = (a * log_a).sum(1)[:, None] + (b * log_b).sum(1)
    return ((own - a @ log_b.T - log_a @ b.T) / 2).clamp(min=0)


def anchors(grid: tuple[int, int], per_side: int = ANCHORS) -> Int[Tensor, " anchor"]:
    """Places of an even grid of anchors, fewer where a side has fewer places.

    >>> anchors((64, 64))[:3].tolist(), anchors((2, 3)).tolist()
    ([65, 69, 73], [0, 1, 2, 3, 4, 5])
    """
    axes = []
    for side in grid:
        num = min(per_side, side)
        step = (side - 1) // max(1, num - 1)
        axes.append((side - 1 - step * (num - 1)) // 2 + step * torch.arange(num))
    return (axes[0][:, None] * grid[1] + axes[1]).flatten()
