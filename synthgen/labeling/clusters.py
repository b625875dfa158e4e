"""LS method 3 at several k: a cluster's class is that of the largest mean attention.

    p_K[c] = (1 / |K|) sum over pixels j of K of CA[j, c],   class of K = argmax over c     (eq. 3)

LS labels the clusters of one k. Here every clustering has its say: a pixel takes the mean, over
all k, of the mean attention in its cluster, where a clustering weighs log k, the most that it can
tell about a pixel. Coarse clusterings steady what fine ones resolve. K is a connected piece of a
cluster: two objects apart may look alike, and need not be of one class. Each mask of the
hierarchy has its own mean (eq. 3), so that a small mask may disagree with its parent.

Start-of-text attention is averaged geometrically, as `scores.geometric_midpoint` cuts it.

Words differ in how much attention they draw, wherever they are looked for; the strong ones would
take the objects of the weak. So the attention of each class is divided by the square root of its
peak: half-way, on the logarithmic scale, between attention as it is and peaks that are all one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from synthgen.labeling.scores import (
    ClassScores,
    LabelInputs,
    geometric_midpoint,
    score_classes,
    score_masks,
    upsample,
)
from synthgen.segmentation.masks import number_pieces


def label_by_clusters(inputs: LabelInputs, *, background: float = 1.0, **_: Any) -> ClassScores:
    """Mean attention over the connected clusters of every k, and over each mask."""
    segmentation = inputs.segmentation
    attention = upsample(even_peaks(inputs.attention), inputs.size)
    logs = np.log(np.maximum(attention[:1], 1e-12))
    means = cluster_means(
        np.concatenate([logs, attention[1:]]), segmentation.labels, segmentation.ks
    )
    means[0] = np.exp(means[0])
    midpoint = geometric_midpoint(means[0])
    pixels = score_classes(means, midpoint, background)
    return ClassScores(pixels, score_masks(attention, segmentation, midpoint, background))


def even_peaks(
    attention: Float[np.ndarray, "row grid_height grid_width"],
) -> Float[np.ndarray, "row grid_height grid_width"]:
    """Attention of the classes over the square root of its peak; row 0 as it is.

    >>> even_peaks(np.array([[[3.0, 5.0]], [[0.25, 0.125]], [[0.0, 0.0]]])).tolist()
    [[[3.0, 5.0]], [[0.5, 0.25]], [[0.0, 0.0]]]
    """
    peak = np.sqrt(attention[1:].max((1, 2), keepdims=True))
    scaled: Float[np.ndarray, "row grid_height grid_width"] = np.concatenate(
        [attention[:1], attention[1:] / np.where(peak > 0, peak, 1)]
    )
    return scaled


def cluster_means(
    maps: Float[np.ndarray, "row height width"],
    labels: UInt8[np.ndarray, "k height width"],
    ks: Sequence[int],
) -> Float[np.ndarray, "row height width"]:
    """Eq. 3 for the connected cluster around each pixel, averaged over all k with weights log k.

    >>> labels = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 1]]], np.uint8)
    >>> cluster_means(np.array([[[0.0, 2.0, 4.0, 6.0]]]), labels, (2, 2)).tolist()
    [[[1.5, 1.5, 3.5, 5.5]]]
    """
    starts = np.ones(labels.shape[1:], dtype=bool)  # of runs in a row that are one at every k
    starts[:, 1:] = (labels[:, :, 1:] != labels[:, :, :-1]).any(0)
    first = np.flatnonzero(starts)
    lengths = np.diff(first, append=starts.size)
    run_sums = np.add.reduceat(maps.reshape(len(maps), -1), first, axis=1, dtype=np.float64)
    total = np.zeros(run_sums.shape)
    for clusters, k in zip(labels, ks, strict=True):
        pieces = number_pieces(clusters).ravel()[first]
        counts = np.maximum(np.bincount(pieces, lengths), 1)
        for row, sums in enumerate(run_sums):
            total[row] += (np.log(k) * (np.bincount(pieces, sums) / counts))[pieces]
    means: Float[np.ndarray, "row height width"] = np.repeat(
        total / np.log(ks).sum(), lengths, axis=1
    ).reshape(maps.shape)
    return means
