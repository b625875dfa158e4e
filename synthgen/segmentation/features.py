"""From head outputs to clustering features (BL section 4.1, eq. 5, eq. 6).

Every head is reduced on its own: PCA over the positions of its grid, centered, not whitened.
The components of all heads of one grid size stand side by side in a *block*; blocks keep their
grids, upsampling is left to the clustering. BL leaves the components as they are, so that a few
loud heads decide; here each is scaled to unit standard deviation (72 tuning scenes: class IoU .762
for .701, part IoU .622 for .564). BL's weight per block (eq. 5) may follow; its tables advise
against it.

Head averaging, the rival that BL argues against: the outputs of the heads of a layer are averaged
(``mean_h softmax(Q_h K_h^T) V_h``, positions and the head dimension kept) and PCA reduces the
mean to the same number of components. A layer then gives one block of n components, not heads * n.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from synthgen.config import FeatureConfig
from synthgen.segmentation.interpolation import upsample
from synthgen.types import HeadFeatures

ROUNDING = 1e-5
"""A component's share of the largest spread below which it may be rounding (scenes: 2e-5 up)."""


def pca_heads(
    values: Float[Tensor, "head pos dim"], components: int
) -> Float[Tensor, "head pos comp"]:
    """Projection of each head's positions on its first principal axes.

    Centered, not whitened; the sign of an axis makes its loading of largest magnitude positive,
    as in scikit-learn. By ``eigh`` of the covariance in float64. A constant head projects to
    zeros.

    Args:
        values: Outputs of the heads of one layer.
        components: Axes kept, largest variance first; at most the head dimension.
    """
    if components > values.shape[-1]:
        warnings.warn(
            f"features.components must be at most the head dimension. Got {components} for heads "
            f"of {values.shape[-1]}; all {values.shape[-1]} are kept.",
            stacklevel=2,
        )
    centered = (values.cpu() if values.device.type == "mps" else values).double()
    centered = centered - centered.mean(1, keepdim=True)
    _, axes = torch.linalg.eigh(centered.mT @ centered)
    axes = axes.flip(-1)[..., :components]
    peak = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * torch.where(peak < 0, -1.0, 1.0)
    kept = values.dtype if values.dtype == torch.float64 else torch.float32
    projected: Tensor = centered @ axes
    return projected.to(kept)


def normalize(
    block: Float[Tensor, "height width feature"], kind: str
) -> Float[Tensor, "height width feature"]:
    """Each feature of a block as it is, scaled to [0, 1], or to unit standard deviation.

    What spreads less than `ROUNDING` of the widest feature is scaled as that one is.

    >>> normalize(torch.tensor([[[2.0, 5.0], [4.0, 5.0]]]), "minmax")
    tensor([[[0., 0.],
             [1., 0.]]])
    """
    if kind == "none":
        return block
    if kind == "minmax":
        low, high = block.amin((0, 1)), block.amax((0, 1))
        return (block - low) / torch.where(high > low, high - low, 1.0)
    spread = block.std((0, 1), correction=0)
    widest = spread.max()
    divisor = torch.where(spread > widest * ROUNDING, spread, widest)
    return block / torch.where(divisor > 0, divisor, 1.0)


def reweighted(
    blocks: Sequence[Float[Tensor, "_height _width _feature"]],
) -> tuple[Float[Tensor, "_height _width _feature"], ...]:
    """BL eq. 5: the features of grid r times r / max(r); r is the grid's shorter side.

    >>> [float(b.max()) for b in reweighted([torch.ones(16, 16, 1), torch.ones(64, 64, 1)])]
    [0.25, 1.0]
    """
    largest = max(min(block.shape[:2]) for block in blocks)
    return tuple(block * (min(block.shape[:2]) / largest) for block in blocks)


def xy_block(height: int, width: int, like: Tensor) -> Float[Tensor, "height width 2"]:
    """Row and column of each position, cell centers in [0, 1].

    >>> xy_block(1, 2, torch.zeros(1))
    tensor([[[0.5000, 0.2500],
             [0.5000, 0.7500]]])
    """
    axes = ((torch.arange(side).to(like) + 0.5) / side for side in (height, width))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


_recent: WeakKeyDictionary[HeadFeatures, tuple[Any, tuple[Tensor, ...]]] = WeakKeyDictionary()
"""Blocks that were computed last from features that are still in use: masks, labels and previews
of a sample ask for the same ones."""


def head_blocks(
    features: HeadFeatures,
    components: int = 8,
    *,
    reweight: bool = False,
    normalization: str = "std",
    xy: float = 0.0,
    average_heads: bool = False,
) -> tuple[Float[Tensor, "_height _width _feature"], ...]:
    """The clustering features of an image: one block per grid size, smallest grid first.

    Settings as in `segment.segment`; the position is added to the largest grid as two features.

    Float64 is needed on the way, so features on an Apple GPU are brought to the CPU.

    Raises:
        ValueError: For features that are not finite, or none at all.
    """
    asked = (components, reweight, normalization, xy, average_heads)
    known = _recent.get(features)
    if known is not None and known[0] == asked:
        return known[1]
    if not features.values:
        raise ValueError("Head features must name at least one layer. Got none: see capture.")
    for name, value in features.values.items():
        if not bool(value.sum(dtype=torch.float32).isfinite()):  # asking each costs ten times
            raise ValueError(f"Head features must be finite. Got NaN or infinity in {name}.")
    layers = sorted(features.values.items(), key=lambda item: features.grids[item[0]])
    if average_heads:
        layers = [(name, value.float().mean(0, keepdim=True)) for name, value in layers]
    blocks = [
        torch.cat([_on_grid(pca_heads(value, components), grid) for _, value in own], -1)
        for grid, own in groupby(layers, lambda item: features.grids[item[0]])
    ]
    blocks = [normalize(block, normalization) for block in blocks]
    if reweight:
        blocks = list(reweighted(blocks))
    if xy > 0:
        height, width = blocks[-1].shape[:2]
        blocks[-1] = torch.cat([blocks[-1], xy * xy_block(height, width, blocks[-1])], -1)
    _recent[features] = (asked, tuple(blocks))
    return tuple(blocks)


def feature_blocks(
    features: HeadFeatures, config: FeatureConfig
) -> tuple[Float[Tensor, "_height _width _feature"], ...]:
    """`head_blocks` as a configuration has them."""
    return head_blocks(
        features,
        config.components,
        reweight=config.reweight,
        normalization=config.normalization,
        xy=config.xy,
    )


def rgbxy_block(image: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "height width 5"]:
    """Color and position of each pixel, each in [0, 1]: the color baseline's features."""
    color = torch.from_numpy(image.astype(np.float32) / 255)
    return torch.cat([color, xy_block(image.shape[0], image.shape[1], color)], dim=-1)


def upsampling_error(
    blocks: Sequence[Float[Tensor, "_grid_height _grid_width _feature"]], size: tuple[int, int]
) -> Float[Tensor, "height width"]:
    """BL eq. 6: mean over all components of |bilinear - nearest| at each pixel; marks contours.

    >>> upsampling_error([torch.tensor([[[0.0], [4.0]]])], (1, 4))
    tensor([[0., 1., 1., 0.]])
    """
    total = torch.zeros(size).to(blocks[0])
    for block in blocks:
        for part in torch.split(block, 64, dim=-1):  # not all features at image size at once
            total += (upsample(part, size) - upsample(part, size, "nearest")).abs().sum(-1)
    return total / sum(block.shape[-1] for block in blocks)


def _on_grid(
    values: Float[Tensor, "head pos comp"], grid: tuple[int, int]
) -> Float[Tensor, "height width feature"]:
    """The components of one layer, laid out on its grid: head-major features."""
    assert values.shape[1] == grid[0] * grid[1], "pos must be height * width"
    return torch.unflatten(values.movedim(0, 1).flatten(1), 0, grid)
