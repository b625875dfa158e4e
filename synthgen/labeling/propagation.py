"""Cross-attention spread by self-attention: places that look at each other share their classes.

`label_by_propagation` is LS method 2, AGG = SA^T CA (eq. 2): each place hands its attention to the
places that it looks at. `label_by_powers` is Dataset Diffusion's SA^4 CA: each place takes
that of the places that it looks at, four times over. The rows of SA (queries) sum to 1, so the
second keeps the level of the attention; the first multiplies all rows of a place by one number.
Cross-attention is brought to the grid of the self-attention map.

Both blur: the wider self-attention looks, the nearer all places come to the mean. Dataset
Diffusion therefore stretches each class to 0..1 (its section 3.3) and takes .6 of it for the class
and below .5 for background, with 255 between. Stretching paints every prompted class, so that only
those that pass the presence test on the plain attention take part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from synthgen.labeling.decide import present_classes
from synthgen.labeling.scores import (
    ClassScores,
    LabelInputs,
    geometric_midpoint,
    join,
    mask_means,
    scale_rows,
    score_attention,
    score_classes,
    shares,
    upsample,
)
from synthgen.types import SelfMap

CLASS_FROM, BACKGROUND_BELOW = 0.6, 0.5


def label_by_propagation(inputs: LabelInputs, *, background: float = 1.0, **_: Any) -> ClassScores:
    """LS eq. 2.

    Raises:
        ValueError: If self-attention was not recorded.
    """
    self_map = _recorded(inputs)
    return score_attention(inputs, propagate(inputs.attention, self_map), background)


def label_by_powers(
    inputs: LabelInputs,
    *,
    background: float = 1.0,
    presence: float = 0.1,
    presence_area: float = 0.002,
    power: int = 4,
) -> ClassScores:
    """Dataset Diffusion, with any power in place of four.

    Raises:
        ValueError: If self-attention was not recorded.
    """
    attention = upsample(inputs.attention, inputs.size)
    plain = score_classes(attention, geometric_midpoint(attention[0]), background)
    there = present_classes(plain, presence, presence_area)
    smoothed = upsample(smooth(inputs.attention[1:], _recorded(inputs), power), inputs.size)
    stretched = scale_rows(smoothed) * there[1:, None, None]
    pixels = score_stretched(stretched)
    return ClassScores(pixels, mask_means(pixels, inputs.segmentation))


def score_stretched(
    stretched: Float[np.ndarray, "cls height width"],
) -> Float[np.ndarray, "row height width"]:
    """Dataset Diffusion's two thresholds as shares: from .6 a class, below .5 background.

    >>> score_stretched(np.array([[[0.9, 0.55, 0.3]], [[0.0, 0.55, 0.0]]]))[0].round(1).tolist()
    [[0.1, 0.5, 0.7]]
    """
    best = stretched.max(0)
    between = (best >= BACKGROUND_BELOW) & (best < CLASS_FROM)
    return join(np.where(between, 0.5, 1 - best), shares(stretched))


def propagate(
    attention: Float[np.ndarray, "row attention_height attention_width"], self_map: SelfMap
) -> Float[np.ndarray, "row grid_height grid_width"]:
    """LS eq. 2: SA^T CA, on the grid of the self-attention map."""
    matrix = self_map.values.float().cpu().numpy()
    flat = _on_grid(attention, self_map.grid).reshape(len(attention), -1)
    spread: Float[np.ndarray, "row grid_height grid_width"]
    spread = (flat @ matrix).reshape(len(attention), *self_map.grid)
    return spread


def smooth(
    attention: Float[np.ndarray, "row attention_height attention_width"],
    self_map: SelfMap,
    power: int,
) -> Float[np.ndarray, "row grid_height grid_width"]:
    """Dataset Diffusion: SA^power CA, applied from the right, so that no power is ever built."""
    matrix = self_map.values.float().cpu().numpy()
    flat = _on_grid(attention, self_map.grid).reshape(len(attention), -1)
    for _ in range(power):
        flat = flat @ matrix.T
    return flat.reshape(len(attention), *self_map.grid)


def _on_grid(
    attention: Float[np.ndarray, "row attention_height attention_width"], grid: tuple[int, int]
) -> Float[np.ndarray, "row grid_height grid_width"]:
    return attention if attention.shape[1:] == grid else upsample(attention, grid)


def _recorded(inputs: LabelInputs) -> SelfMap:
    if inputs.self_map is None:
        raise ValueError(
            "This labeling.method must have self-attention. Got none; set labeling.self_map=true, "
            "or record with self_grid=32."
        )
    return inputs.self_map
