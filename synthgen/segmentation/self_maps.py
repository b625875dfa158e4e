"""What segmenters on self-attention maps share: the map, and pixels for its places' scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from synthgen.config import SegmentationConfig
from synthgen.segmentation.interpolation import upsample
from synthgen.segmentation.masks import build_masks
from synthgen.segmentation.refine import refine_clusters
from synthgen.types import Sample, Segmentation


def recorded_self_map(sample: Sample) -> tuple[Float[Tensor, "query key"], tuple[int, int]]:
    """The sample's self-attention in float32 on the CPU, rows that sum to 1, and its grid.

    Raises:
        ValueError: Where none was recorded.
    """
    if sample.self_map is None:
        raise ValueError(
            "This segmentation.method must have self-attention. Got none; record with "
            "self_layers='all', self_grid=64."
        )
    values = sample.self_map.values.float().cpu()
    return values / values.sum(1, keepdim=True), sample.self_map.grid


def largest(
    maps: Float[Tensor, "map _pos"], grid: tuple[int, int], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """The map that is largest at each pixel, bilinear between places; one at a time in memory.

    >>> largest(torch.tensor([[1.0, 0.0], [0.0, 0.5]]), (1, 2), (1, 4)).tolist()
    [[0, 0, 1, 1]]
    """
    best = torch.full(size, -torch.inf)
    index = torch.zeros(size, dtype=torch.uint8)
    for number, own in enumerate(maps):
        values = upsample(own.reshape(*grid, 1), size)[..., 0]
        index[values > best] = number
        best = torch.maximum(best, values)
    found: UInt8[np.ndarray, "height width"] = index.numpy()
    return found


def compact(labels: UInt8[np.ndarray, "height width"]) -> tuple[np.ndarray, int]:
    """Labels without gaps in their numbers, and how many there are.

    >>> compact(np.array([[7, 2]], dtype=np.uint8))
    (array([[1, 0]], dtype=uint8), 2)
    """
    values, numbers = np.unique(labels, return_inverse=True)
    return numbers.reshape(labels.shape).astype(np.uint8), len(values)


def segmentation_of(
    labels: Sequence[UInt8[np.ndarray, "height width"]],
    ks: Sequence[int],
    sample: Sample,
    config: SegmentationConfig,
) -> Segmentation:
    """Masks of finished label maps, with borders as the configuration has them."""
    ks = tuple(ks)
    stacked = refine_clusters(np.stack(labels), ks, sample.image, config.refiner)
    return Segmentation.of(build_masks(stacked, ks, **dict(config.masks)), ks, stacked, 0, True)
