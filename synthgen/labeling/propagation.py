"""Cross-attention spread by self-attention: places that look at each other share their classes.

`label_by_propagation` is LS method 2, AGG = SA^T CA (eq. 2): each place hands its heat to the
places that it looks at. `label_by_powers` is Dataset Diffusion's SA^4 CA: each place takes the
heat of the places that it looks at, four times over. The rows of SA (queries) sum to 1, so the
second keeps the level of the heat; the first multiplies all rows of a place by one number.
Cross-attention is brought to the grid of the self-attention map.

Both blur: the wider self-attention looks, the nearer all places come to the mean. Dataset
Diffusion therefore stretches each class to 0..1 (its section 3.3) and takes .6 of it for the class
and below .5 for background, with 255 between. Stretching paints every prompted class, so that only
those that pass the presence test on the plain heat take part.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from synthgen.config import LabelConfig
from synthgen.labeling.decide import present_classes
from synthgen.labeling.evidence import (
    ClassScores,
    Evidence,
    join,
    mask_means,
    middle,
    scale_rows,
    score_classes,
    score_heat,
    shares,
    upsample,
)
from synthgen.types import SelfMap

CLASS_FROM, BACKGROUND_BELOW = 0.6, 0.5


def label_by_propagation(evidence: Evidence, config: LabelConfig) -> ClassScores:
    """LS eq. 2.

    Raises:
        ValueError: If self-attention was not recorded.
    """
    self_map = _recorded(evidence)
    return score_heat(evidence, propagate(evidence.heat, self_map), config)


def label_by_powers(evidence: Evidence, config: LabelConfig) -> ClassScores:
    """Dataset Diffusion, with ``config.power`` in place of four.

    Raises:
        ValueError: If self-attention was not recorded.
    """
    heat = upsample(evidence.heat, evidence.size)
    plain = score_classes(heat, middle(heat[0]), config.background)
    there = present_classes(plain, config.presence, config.presence_area)
    smoothed = upsample(
        smooth(evidence.heat[1:], _recorded(evidence), config.power), evidence.size
    )
    stretched = scale_rows(smoothed) * there[1:, None, None]
    pixels = score_stretched(stretched)
    return ClassScores(pixels, mask_means(pixels, evidence.segmentation))


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
    heat: Float[np.ndarray, "row heat_height heat_width"], self_map: SelfMap
) -> Float[np.ndarray, "row grid_height grid_width"]:
    """LS eq. 2: SA^T CA, on the grid of the self-attention map."""
    attention = self_map.values.float().cpu().numpy()
    flat = _on_grid(heat, self_map.grid).reshape(len(heat), -1)
    spread: Float[np.ndarray, "row grid_height grid_width"]
    spread = (flat @ attention).reshape(len(heat), *self_map.grid)
    return spread


def smooth(
    heat: Float[np.ndarray, "row heat_height heat_width"], self_map: SelfMap, power: int
) -> Float[np.ndarray, "row grid_height grid_width"]:
    """Dataset Diffusion: SA^power CA, applied from the right, so that no power is ever built."""
    attention = self_map.values.float().cpu().numpy()
    flat = _on_grid(heat, self_map.grid).reshape(len(heat), -1)
    for _ in range(power):
        flat = flat @ attention.T
    return flat.reshape(len(heat), *self_map.grid)


def _on_grid(
    heat: Float[np.ndarray, "row heat_height heat_width"], grid: tuple[int, int]
) -> Float[np.ndarray, "row grid_height grid_width"]:
    return heat if heat.shape[1:] == grid else upsample(heat, grid)


def _recorded(evidence: Evidence) -> SelfMap:
    if evidence.self_map is None:
        raise ValueError(
            "This labeling.method must have self-attention. Got none; set labeling.self_map=true."
        )
    return evidence.self_map
