"""From shares to labels: presence, argmax, margin.

Nothing is painted for being prompted. A class is *there* if its share of the heat is large enough
over enough of the image; classes that are not there leave the comparison. The background is a row
like any other. Where the best row is not ahead of the second by the margin, the label is 255.

Limit, measured on 12 tuning scenes of the embedded model: classes that were put behind a caption
and are not in the image draw as much heat as those that are (area under the ROC curve .43 to .57
for nine statistics of their maps), so the presence test finds faint classes, not foreign ones.
LS reports the same of Stable Diffusion: cross-attention is to be asked for classes that are there.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8

from synthgen.config import LabelConfig
from synthgen.labeling.evidence import ClassScores, shares
from synthgen.types import LabelMap, Segmentation

BACKGROUND, UNDECIDED = 0, 255


def decide(scores: ClassScores, class_names: tuple[str, ...], config: LabelConfig) -> LabelMap:
    """Labels from shares: presence, argmax, margin.

    Args:
        scores: Of background (row 0) and classes.
        class_names: Of rows 1, 2, …
        config: ``presence``, ``presence_area``, ``margin``.
    """
    there = present_classes(scores.pixels, config.presence, config.presence_area)
    pixels = shares(scores.pixels * _column(there, 2))
    masks = shares(scores.masks.T * _column(there, 1))
    semantic, pixel_scores = choose(pixels, config.margin)
    mask_labels, mask_scores = choose(masks, config.margin)
    return LabelMap(
        class_names=class_names,
        semantic=semantic,
        scores=pixel_scores,
        mask_labels=mask_labels,
        mask_scores=mask_scores,
        not_found=not_found(class_names, semantic),
    )


def present_classes(
    pixels: Float[np.ndarray, "row height width"], presence: float, area: float
) -> Bool[np.ndarray, " row"]:
    """Rows that reach a share of ``presence`` on at least ``area`` of the image; row 0 always.

    >>> pixels = np.array([[[0.6, 0.5]], [[0.4, 0.1]], [[0.0, 0.4]]])
    >>> present_classes(pixels, 0.4, 0.5).tolist(), present_classes(pixels, 0.4, 0.6).tolist()
    ([True, True, True], [True, False, False])
    """
    reached = (pixels >= presence).mean((1, 2))
    there: Bool[np.ndarray, " row"] = (reached >= area) & (reached > 0)
    there[BACKGROUND] = True
    return there


def choose(
    scores: Float[np.ndarray, "row ..."], margin: float
) -> tuple[UInt8[np.ndarray, "*place"], Float[np.ndarray, "*place"]]:
    """The best row of each place and its share; 255 where the second is nearer than the margin.

    >>> labels, best = choose(np.array([[0.5, 0.2], [0.45, 0.8]]), 0.1)
    >>> labels.tolist(), best.tolist()
    ([255, 1], [0.5, 0.8])
    """
    if len(scores) > UNDECIDED:
        raise ValueError(
            f"An image must have at most {UNDECIDED - 1} classes. Got {len(scores) - 1}."
        )
    labels = scores.argmax(0).astype(np.uint8)
    undecided = lead(scores) < margin
    return np.where(undecided, np.uint8(UNDECIDED), labels), scores.max(0)


def lead(scores: Float[np.ndarray, "row ..."]) -> Float[np.ndarray, "*place"]:
    """How far the best row is ahead of the second best.

    >>> lead(np.array([[0.5, 0.25], [0.25, 0.25], [0.25, 0.5]])).tolist()
    [0.25, 0.25]
    """
    best = np.sort(scores, axis=0)
    ahead: Float[np.ndarray, "*place"] = best[-1] - best[-2]
    return ahead


def nothing_prompted(segmentation: Segmentation) -> LabelMap:
    """Labels where no class was prompted: nothing is known, so everything is undecided."""
    masks = segmentation.mask_set.masks
    num, size = len(masks), masks.shape[1:]
    return LabelMap(
        class_names=(),
        semantic=np.full(size, UNDECIDED, dtype=np.uint8),
        scores=np.zeros(size, dtype=np.float32),
        mask_labels=np.full(num, UNDECIDED, dtype=np.uint8),
        mask_scores=np.zeros(num, dtype=np.float32),
        not_found=(),
    )


def not_found(
    class_names: tuple[str, ...], semantic: UInt8[np.ndarray, "height width"]
) -> tuple[str, ...]:
    """The classes that no pixel of a semantic map has.

    >>> not_found(("cat", "dog"), np.array([[0, 2]], dtype=np.uint8))
    ('cat',)
    """
    held = set(np.unique(semantic).tolist())
    return tuple(name for i, name in enumerate(class_names, start=1) if i not in held)


def _column(there: Bool[np.ndarray, " row"], places: int) -> Float[np.ndarray, "row ..."]:
    return there.astype(np.float32).reshape(-1, *(1,) * places)
