"""Cross-attention spread by self-attention: places that look at each other share their classes.

`label_by_propagation` is LS method 2, AGG = SA^T CA (eq. 2): each place hands its heat to the
places that it looks at. `label_by_powers` is Dataset Diffusion's SA^4 CA: each place takes the
heat of the places that it looks at, four times over. The rows of SA (queries) sum to 1, so the
second keeps the level of the heat, and the first multiplies all rows of a place by one number
that shares do not see. Cross-attention is brought to the grid of the self-attention map.

Both blur: the wider self-attention looks, the nearer all places come to the mean. Dataset
Diffusion stretches each class to 0..1 afterwards, which paints absent classes; that is not done
here, and on 12 tuning scenes both stay behind plain heat (`argmax`).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from synthgen.config import LabelConfig
from synthgen.labeling.evidence import ClassScores, Evidence, mask_means, shares, upsample
from synthgen.types import SelfMap


def label_by_propagation(evidence: Evidence, config: LabelConfig) -> ClassScores:
    """LS eq. 2.

    Raises:
        ValueError: If self-attention was not recorded.
    """
    self_map = _recorded(evidence)
    return _scores(evidence, propagate(evidence.heat, self_map))


def label_by_powers(evidence: Evidence, config: LabelConfig) -> ClassScores:
    """Dataset Diffusion, with ``config.power`` in place of four.

    Raises:
        ValueError: If self-attention was not recorded.
    """
    self_map = _recorded(evidence)
    return _scores(evidence, smooth(evidence.heat, self_map, config.power))


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


def _scores(
    evidence: Evidence, heat: Float[np.ndarray, "row grid_height grid_width"]
) -> ClassScores:
    grown = upsample(heat, evidence.size)
    masks = shares(mask_means(grown, evidence.segmentation).T).T
    return ClassScores(shares(grown), masks)


def _recorded(evidence: Evidence) -> SelfMap:
    if evidence.self_map is None:
        raise ValueError(
            "This labeling.method must have self-attention. Got none; set labeling.self_map=true."
        )
    return evidence.self_map
