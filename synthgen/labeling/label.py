"""Class labels of images: attention, a labeler, and a decision that may also say "I do not know".

    label_image = class attention → labeler (registry.LABELERS) → keep_present → decide → refiner

A labeler scores, `decide` chooses: background and absence are rows and tests there, nothing is
painted. Specks that are left join what is around them. Every label has its share as a
score; classes without a pixel are listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from synthgen.config import LabelConfig
from synthgen.labeling.decide import (
    decide,
    decision_scores,
    keep_present,
    not_found,
    nothing_prompted,
)
from synthgen.labeling.refine import reads_uncertainty, refine
from synthgen.labeling.scores import (
    ClassScores,
    Labeler,
    LabelInputs,
    attention_rows,
    score_attention,
)
from synthgen.registry import LABELERS, resolve
from synthgen.segmentation.features import head_blocks, upsampling_error
from synthgen.segmentation.refine import SPECK, join_specks
from synthgen.types import IGNORE, Heatmaps, LabelMap, MaskSet, Recorded, Segmentation, SelfMap


def label(
    recorded: Recorded,
    masks: MaskSet | Sequence[MaskSet],
    classes: Sequence[str],
    *,
    method: str = "clusters",
    image: UInt8[np.ndarray, "height width 3"] | None = None,
    prompts: Sequence[str] | None = None,
    refiner: str = "none",
    background: float = 1.0,
    presence: float = 0.1,
    presence_area: float = 0.002,
    margin: float = 0.02,
    power: int = 4,
) -> Any:
    """Classes of the pixels and masks of what was recorded, from its attention to their words.

    Args:
        recorded: A recording (`synthgen.record`).
        masks: What `synthgen.segment` made of it.
        classes: Names to look for; each prompt must name them, singular or plural.
        method: Row of LABELERS: clusters, propagate, dataset-diffusion, vote, argmax.
        image: The image, for the refiner; None: the recorded one.
        prompts: What each image was drawn from; None: what the text encoder read.
        refiner: Row of REFINERS: none, pamr, color-majority, upsampling-error, upsampling-color.
        background: Weight of the background.
        presence: A class is there if its share of the attention is at least this ...
        presence_area: ... on at least this share of the image.
        margin: A lead of no more than this is undecided, 255.
        power: Of self-attention, for dataset-diffusion.

    Returns:
        A `LabelMap`; for a recording of several images a tuple of them.

    Raises:
        ValueError: For a class that a prompt does not name, or without something that the method
            or the refiner needs.

    >>> import synthgen
    >>> pipe = synthgen.load_model()
    >>> with synthgen.record(pipe) as recording:
    ...     image = pipe("a red car", num_inference_steps=4).images[0]
    >>> labels = synthgen.label(recording, synthgen.segment(recording), classes=["car"])
    >>> labels.class_names, labels.semantic.shape
    (('car',), (128, 128))
    """
    every = [masks] if isinstance(masks, MaskSet) else list(masks)
    heatmaps = recorded.heatmaps(classes, prompts)
    if len(every) != len(heatmaps):
        raise ValueError(f"masks must be one set per image. Got {len(every)} for {len(heatmaps)}.")
    seen = [image] * len(every) if image is not None else list(recorded.images)
    if not seen:
        raise ValueError("image must be given where the VAE decoded none. Got none.")
    selves: Sequence[SelfMap | None] = recorded.self_maps() or [None] * len(every)
    found = []
    for index, own in enumerate(every):
        if not isinstance(own, Segmentation):
            raise ValueError(
                "masks must be what synthgen.segment returns, with its clusters. Got a MaskSet."
            )
        uncertainty = None
        if reads_uncertainty(refiner):
            blocks = head_blocks(recorded.features()[index])
            uncertainty = upsampling_error(blocks, seen[index].shape[:2]).float().cpu().numpy()
        found.append(
            label_image(
                own,
                heatmaps[index],
                selves[index],
                seen[index],
                uncertainty,
                method=method,
                refiner=refiner,
                margin=margin,
                background=background,
                presence=presence,
                presence_area=presence_area,
                power=power,
            )
        )
    return found[0] if len(found) == 1 else tuple(found)


def label_image(
    segmentation: Segmentation,
    heatmaps: Heatmaps | None,
    self_map: SelfMap | None,
    image: UInt8[np.ndarray, "height width 3"],
    uncertainty: Float[np.ndarray, "height width"] | None = None,
    *,
    method: str = "clusters",
    refiner: str = "none",
    margin: float = 0.02,
    background: float = 1.0,
    presence: float = 0.1,
    presence_area: float = 0.002,
    power: int = 4,
) -> LabelMap:
    """Labels of one image's pixels and masks; see `label`.

    Without heatmaps no class was prompted, and everything is undecided; some refiners need the
    upsampling error (BL eq. 6) as ``uncertainty``.

    Raises:
        ValueError: For an unknown method or refiner, or one that lacks what it needs.
    """
    if heatmaps is None or not heatmaps.class_names:
        return nothing_prompted(segmentation)
    labeler: Labeler = resolve(method, LABELERS, "labeling.method")
    inputs = LabelInputs(segmentation, attention_rows(heatmaps), self_map, image)
    scored = labeler(
        inputs,
        background=background,
        presence=presence,
        presence_area=presence_area,
        power=power,
    )
    scores = keep_present(scored, presence, presence_area)
    decided = decide(scores, heatmaps.class_names, margin)
    planes = dict(enumerate(decision_scores(scores.pixels)))
    semantic = refine(refiner, decided.semantic, image, planes, uncertainty)
    semantic = join_specks(semantic, SPECK * semantic.size)
    return _relabeled(decided, semantic, scores)


def label_sample(
    segmentation: Segmentation,
    heatmaps: Heatmaps | None,
    self_map: SelfMap | None,
    config: LabelConfig,
    image: UInt8[np.ndarray, "height width 3"],
    uncertainty: Float[np.ndarray, "height width"] | None = None,
) -> LabelMap:
    """`label_image` as a configuration has it."""
    names = ("method", "refiner", "margin", "background", "presence", "presence_area", "power")
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    return label_image(segmentation, heatmaps, self_map, image, uncertainty, **settings)


def label_by_argmax(inputs: LabelInputs, *, background: float = 1.0, **_: Any) -> ClassScores:
    """LS method 1: each pixel takes the class of most attention (eq. 1); masks take their mean."""
    return score_attention(inputs, inputs.attention, background)


def _relabeled(
    decided: LabelMap, semantic: UInt8[np.ndarray, "height width"], scores: ClassScores
) -> LabelMap:
    """The labels with another semantic map; a pixel's score is its share of what it became."""
    rows = np.where(semantic == IGNORE, decided.semantic, semantic).astype(np.int64)
    rows = np.where(rows == IGNORE, decision_scores(scores.pixels).argmax(0), rows)
    became = np.take_along_axis(scores.pixels, rows[None], axis=0)[0]
    return replace(
        decided,
        semantic=semantic,
        scores=np.where(semantic == decided.semantic, decided.scores, became),
        not_found=not_found(decided.class_names, semantic),
    )
