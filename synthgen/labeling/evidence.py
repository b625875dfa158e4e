"""What a labeler is given of one image, and what it gives back.

Heat is cross-attention: how strongly each place attends to each class's tokens, and, as row 0,
to the start-of-text token, which gathers what no word of the text names (LS section 4.1, after
Chen et al.). Models give that token anything from 3 % to nearly all of the attention, so its map
is brought to the mean level of the class maps before a factor is applied. Scores are shares: a
row's part of all rows at the same place, so that they compare over places, images and methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8

from synthgen.config import LabelConfig
from synthgen.types import Heatmaps, Segmentation, SelfMap


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that is known of one image when its labels are chosen.

    Args:
        segmentation: Masks and label maps.
        heat: Background (row 0) and classes on the attention's grid, not negative.
        self_map: Self-attention, where it was recorded.
        image: The image; its size is that of all maps that are made.
    """

    segmentation: Segmentation
    heat: Float[np.ndarray, "row grid_height grid_width"]
    self_map: SelfMap | None
    image: UInt8[np.ndarray, "height width 3"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Shares of the background (row 0) and of each class; at each place they sum to 1.

    Args:
        pixels: Of each pixel.
        masks: Of each mask.
    """

    pixels: Float[np.ndarray, "row height width"]
    masks: Float[np.ndarray, "mask row"]


@runtime_checkable
class Labeler(Protocol):
    """What a row of LABELERS must be."""

    def __call__(self, evidence: Evidence, config: LabelConfig) -> ClassScores:
        """Score the classes at every pixel and for every mask of one image."""
        ...


def class_heat(
    heatmaps: Heatmaps, background: float
) -> Float[np.ndarray, "row grid_height grid_width"]:
    """Background and class heat; without a background map, row 0 is constant.

    Args:
        heatmaps: Cross-attention of the image to its classes.
        background: Mean of row 0, as a multiple of the mean of the class maps.

    >>> maps = Heatmaps(("cat",), torch.ones(1, 1, 2), torch.tensor([[2.0, 6.0]]))
    >>> class_heat(maps, 0.5).tolist()
    [[[0.25, 0.75]], [[1.0, 1.0]]]
    """
    classes = heatmaps.values.float().cpu().numpy()
    rest = np.ones(classes.shape[1:], dtype=np.float32)
    if heatmaps.background is not None:
        rest = heatmaps.background.float().cpu().numpy()
    level = background * classes.mean() / max(float(rest.mean()), 1e-12)
    heat: Float[np.ndarray, "row grid_height grid_width"]
    heat = np.concatenate([np.float32(level) * rest[None], classes])
    return heat


def upsample(
    maps: Float[np.ndarray, "row grid_height grid_width"], size: tuple[int, int]
) -> Float[np.ndarray, "row height width"]:
    """Bilinear interpolation, borders not aligned, as everywhere in this package.

    >>> upsample(np.array([[[0.0, 1.0]]], dtype=np.float32), (1, 4)).round(2).tolist()
    [[[0.0, 0.25, 0.75, 1.0]]]
    """
    tensor = torch.from_numpy(np.ascontiguousarray(maps))[None].float()
    grown = F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
    result: Float[np.ndarray, "row height width"] = grown[0].numpy()
    return result


def shares(values: Float[np.ndarray, "row ..."]) -> Float[np.ndarray, "row ..."]:
    """Each row's part of the sum over rows; where all are zero, the background has it all.

    >>> shares(np.array([[1.0, 0.0], [3.0, 0.0]])).tolist()
    [[0.25, 1.0], [0.75, 0.0]]
    """
    total = values.sum(0)
    part: Float[np.ndarray, "row ..."] = values / np.where(total > 0, total, 1)
    part[0] = np.where(total > 0, part[0], 1)
    return part


def mask_means(
    maps: Float[np.ndarray, "row height width"], segmentation: Segmentation
) -> Float[np.ndarray, "mask row"]:
    """LS eq. 3: mean of every map over the pixels of every mask, for all pairs in one product."""
    masks = segmentation.mask_set.masks
    flat = masks.reshape(len(masks), -1)
    sums = flat.astype(np.float32) @ maps.reshape(len(maps), -1).T.astype(np.float32)
    means: Float[np.ndarray, "mask row"] = sums / np.maximum(flat.sum(1), 1)[:, None]
    return means
