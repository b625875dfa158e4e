"""LS method 3 on the mask hierarchy: a mask's class is that of the largest mean heat (eq. 3).

    p_K[c] = (1 / |K|) sum over pixels j of K of CA[j, c],   class of K = argmax over c

LS labels the clusters of one k. Here masks of several k overlap, each with its own mean, so that
a small mask may disagree with the one that contains it. A pixel takes the scores of the smallest
mask around it that has an opinion: one whose two best rows differ by the margin.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from synthgen.config import LabelConfig
from synthgen.labeling.decide import lead
from synthgen.labeling.evidence import ClassScores, Evidence, mask_means, shares, upsample
from synthgen.types import MaskSet


def label_by_clusters(evidence: Evidence, config: LabelConfig) -> ClassScores:
    """Mean heat over each mask; pixels take it from the smallest opinionated mask around them."""
    heat = upsample(evidence.heat, evidence.size)
    masks = shares(mask_means(heat, evidence.segmentation).T).T
    painted = paint_hierarchy(
        shares(heat), masks, evidence.segmentation.mask_set, lead(masks.T) >= config.margin
    )
    return ClassScores(painted, masks)


def paint_hierarchy(
    pixels: Float[np.ndarray, "row height width"],
    masks: Float[np.ndarray, "mask row"],
    mask_set: MaskSet,
    opinionated: Bool[np.ndarray, " mask"],
) -> Float[np.ndarray, "row height width"]:
    """Scores of pixels from those of the masks around them, the smallest one first.

    Args:
        pixels: Scores where no mask is.
        masks: Scores of the masks.
        mask_set: Largest first; of equal masks the later one counts as smaller.
        opinionated: Masks without an opinion are painted only where no larger one is.
    """
    painted = pixels.copy()
    covered = np.zeros(pixels.shape[1:], dtype=bool)
    for mask, scores, sure in zip(mask_set.masks, masks, opinionated, strict=True):
        where = mask if sure else mask & ~covered
        painted[:, where] = scores[:, None]
        covered |= mask
    return painted
