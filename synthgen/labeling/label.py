"""Class labels of one image: heat, a labeler, and a decision that may also say "I do not know".

    label_sample = class heat → labeler (registry.LABELERS) → keep_present → decide → refiner

A labeler scores, `decide` chooses: background and absence are rows and tests there, not paint.
Every label has its share as a score; classes without a pixel are listed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from synthgen.config import LabelConfig
from synthgen.labeling.decide import (
    contest,
    decide,
    keep_present,
    not_found,
    nothing_prompted,
)
from synthgen.labeling.evidence import (
    ClassScores,
    Evidence,
    Labeler,
    class_heat,
    score_heat,
)
from synthgen.labeling.refine import refine
from synthgen.registry import LABELERS, resolve
from synthgen.types import IGNORE, Heatmaps, LabelMap, Segmentation, SelfMap


def label_sample(
    segmentation: Segmentation,
    heatmaps: Heatmaps | None,
    self_map: SelfMap | None,
    config: LabelConfig,
    image: UInt8[np.ndarray, "height width 3"],
    uncertainty: Float[np.ndarray, "height width"] | None = None,
) -> LabelMap:
    """Labels of one image's pixels and masks.

    Args:
        segmentation: Its masks.
        heatmaps: Cross-attention to its classes; None where no class was prompted, and then
            everything is undecided.
        self_map: Its self-attention, for the methods that need it.
        config: Method, thresholds, refiner.
        image: Its pixels.
        uncertainty: Upsampling error (BL eq. 6), for the refiners that need it.

    Raises:
        ValueError: For an unknown method or refiner, or one that lacks what it needs.
    """
    if heatmaps is None or not heatmaps.class_names:
        return nothing_prompted(segmentation)
    labeler: Labeler = resolve(config.method, LABELERS, "labeling.method")
    heat = class_heat(heatmaps)
    scores = keep_present(labeler(Evidence(segmentation, heat, self_map, image), config), config)
    decided = decide(scores, heatmaps.class_names, config.margin)
    if config.refiner == "none":
        return decided
    evidence = dict(enumerate(contest(scores.pixels)))
    semantic = refine(config.refiner, decided.semantic, image, evidence, uncertainty)
    return _relabeled(decided, semantic, scores)


def label_by_argmax(evidence: Evidence, config: LabelConfig) -> ClassScores:
    """LS method 1: each pixel takes the class of most heat (eq. 1); masks take their mean."""
    return score_heat(evidence, evidence.heat, config)


def _relabeled(
    decided: LabelMap, semantic: UInt8[np.ndarray, "height width"], scores: ClassScores
) -> LabelMap:
    """The labels with another semantic map; a pixel's score is its share of what it became."""
    rows = np.where(semantic == IGNORE, decided.semantic, semantic).astype(np.int64)
    rows = np.where(rows == IGNORE, contest(scores.pixels).argmax(0), rows)
    became = np.take_along_axis(scores.pixels, rows[None], axis=0)[0]
    return LabelMap(
        class_names=decided.class_names,
        semantic=semantic,
        scores=np.where(semantic == decided.semantic, decided.scores, became),
        mask_labels=decided.mask_labels,
        mask_scores=decided.mask_scores,
        not_found=not_found(decided.class_names, semantic),
    )
