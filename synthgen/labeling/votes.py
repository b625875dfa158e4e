"""Votes of clusters and thresholds, as BL's authors label their own dataset (PCC).

For each of three numbers of clusters and each of the thresholds .3, .5, .8: attention, brought to
0..1 per class, is cut at the threshold into class masks, the background being where no class
reaches 1.2 times it, and every 8-connected component of a cluster takes the class whose mask it
has the highest IoU with. Nine votes per pixel; a pixel's share of a class is its share of them.

The authors cluster with k in {4, 7, 10}; of the ks at hand the three nearest are taken. Their
scaling by minimum and maximum paints every prompted class; here only classes that pass the
presence test on the plain attention take part. Agreement below .56 is undecided (`AGREEMENT`);
such pixels are half background and half those classes, so that no margin lets them through,
whichever of the classes `decide` leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from synthgen.labeling.decide import present_classes
from synthgen.labeling.scores import (
    ClassScores,
    LabelInputs,
    geometric_midpoint,
    join,
    mask_means,
    scale_rows,
    score_classes,
    shares,
    upsample,
)
from synthgen.segmentation.masks import label_components
from synthgen.segmentation.packed import iou_matrix

KS = (4, 7, 10)
THRESHOLDS = (0.3, 0.5, 0.8)
BACKGROUND_FACTOR = 1.2
AGREEMENT = 0.56
"""Five of nine votes are .556, below it: six must agree."""


def label_by_votes(
    inputs: LabelInputs,
    *,
    background: float = 1.0,
    presence: float = 0.1,
    presence_area: float = 0.002,
    **_: Any,
) -> ClassScores:
    """The authors' 3 x 3 votes."""
    attention = upsample(inputs.attention, inputs.size)
    scored = score_classes(attention, geometric_midpoint(attention[0]), background)
    there = present_classes(scored, presence, presence_area)
    scaled = scale_rows(attention[1:]) * there[1:, None, None]
    maps = inputs.segmentation.labels
    chosen = [maps[i] for i in nearest_ks(inputs.segmentation.ks)]
    votes = np.zeros((len(attention), *inputs.size), dtype=np.float32)
    for components in map(split_regions, chosen):
        for threshold in THRESHOLDS:
            elected = vote(components, class_masks(scaled, threshold))
            np.add.at(votes, (elected, *np.indices(elected.shape)), 1)
    pixels = votes / (len(chosen) * len(THRESHOLDS))
    masks = mask_means(pixels, inputs.segmentation)
    spread = shares(there[1:, None, None].astype(np.float32))
    even = join(np.full((1, 1), 0.5, dtype=np.float32), spread)
    pixels = np.where(pixels.max(0) < AGREEMENT, even, pixels)
    return ClassScores(pixels, masks)


def nearest_ks(ks: Sequence[int]) -> list[int]:
    """Positions of the ks nearest to the authors', each used once, fewer where there are fewer.

    >>> nearest_ks((2, 5, 6, 10, 20)), nearest_ks((3,))
    ([1, 2, 3], [0])
    """
    left = dict(enumerate(ks))
    taken = []
    for wanted in KS[: len(left)]:
        best = min(left, key=lambda position: (abs(left[position] - wanted), position))
        taken.append(best)
        del left[best]
    return taken


def class_masks(
    scaled: Float[np.ndarray, "row height width"], threshold: float
) -> Bool[np.ndarray, "more height width"]:
    """Background (row 0) and classes at a threshold of their attention."""
    background = scaled.max(0, keepdims=True, initial=0) < BACKGROUND_FACTOR * threshold
    return np.concatenate([background, scaled >= threshold])


def split_regions(
    labels: UInt8[np.ndarray, "height width"],
) -> Bool[np.ndarray, "region height width"]:
    """The 8-connected components of every cluster."""
    regions = []
    for cluster in np.unique(labels):
        components, num = label_components(labels == cluster)
        regions += [components == number for number in range(1, num + 1)]
    return np.stack(regions)


def vote(
    regions: Bool[np.ndarray, "region height width"],
    masks: Bool[np.ndarray, "row height width"],
) -> UInt8[np.ndarray, "height width"]:
    """At each pixel the row whose mask has the highest IoU with the region around it.

    A region that meets no mask at all is background.
    """
    elected = iou_matrix(regions, masks).argmax(1)
    found: UInt8[np.ndarray, "height width"] = elected[regions.argmax(0)].astype(np.uint8)
    return found
