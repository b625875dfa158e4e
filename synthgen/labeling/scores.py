"""What a labeler is given of one image, and what it gives back.

Attention here is cross-attention: how strongly each place attends to each class's tokens, and, as
row 0, to the start-of-text token, which gathers what no word of the text names (LS section 4.1,
after Chen et al.). Scores are shares: at each place those of background and classes sum to 1, so
that they compare over places, images and methods.

The background is no class among classes, but what is left when all of them are taken away; if it
had to beat each class alone, it would win more pixels the more classes are prompted (the best
factor on 60 generated images was 1.0 for one class, 2.0 for two, 2.5 for four). So a place is
background if its start-of-text attention is above the middle between the image's extremes, on the
logarithmic scale on which attention lives (it comes out of a softmax):

    b = w s / (w s + sqrt(min s * max s)),   share of class c = (1 - b) h_c / sum of h

An image whose start-of-text map is flat has b = 1/2 everywhere, and is left undecided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8

from synthgen.types import Heatmaps, Segmentation, SelfMap

_LEAST = 1e-12
"""Heat below this is none."""

_PIXELS = 8192
"""Pixels of all masks that are floats at once: what fits the cache."""


@dataclass(frozen=True, slots=True)
class LabelInputs:
    """Everything that is known of one image when its labels are chosen.

    Args:
        segmentation: Masks and label maps.
        attention: Start-of-text (row 0) and class attention on the attention's grid, not negative.
        self_map: Self-attention, where it was recorded.
        image: The image; its size is that of all maps that are made.
    """

    segmentation: Segmentation
    attention: Float[np.ndarray, "row grid_height grid_width"]
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

    def __call__(
        self,
        inputs: LabelInputs,
        *,
        background: float,
        presence: float,
        presence_area: float,
        power: int,
    ) -> ClassScores:
        """Score the classes at every pixel and for every mask of one image; settings that it has
        no use for go into ``**_``."""
        ...


def attention_rows(heatmaps: Heatmaps) -> Float[np.ndarray, "row grid_height grid_width"]:
    """Attention to the start of the text (row 0; zero without its map) and to the classes.

    >>> maps = Heatmaps(("cat",), torch.ones(1, 1, 2), torch.tensor([[2.0, 6.0]]))
    >>> attention_rows(maps).tolist()
    [[[2.0, 6.0]], [[1.0, 1.0]]]
    """
    classes = heatmaps.values.float().cpu()
    start = torch.zeros_like(classes[0])
    if heatmaps.background is not None:
        start = heatmaps.background.float().cpu()
    attention: Float[np.ndarray, "row grid_height grid_width"] = torch.cat(
        [start[None], classes]
    ).numpy()
    return attention


def geometric_midpoint(start: Float[np.ndarray, "*place"]) -> float:
    """Geometric middle between the least and the most start-of-text attention of an image.

    >>> geometric_midpoint(np.array([1.0, 2.0, 4.0]))
    2.0
    """
    return float(np.sqrt(max(float(start.min()), _LEAST) * max(float(start.max()), _LEAST)))


def score_classes(
    attention: Float[np.ndarray, "row ..."], midpoint: float, weight: float
) -> Float[np.ndarray, "row ..."]:
    """Shares of background (by its weight) and classes from attention, row 0 to the text's start.

    >>> score_classes(np.array([[3.0, 1.0], [2.0, 1.0], [0.0, 3.0]]), 1.0, 1.0).tolist()
    [[0.75, 0.5], [0.25, 0.125], [0.0, 0.375]]
    """
    level = weight * attention[0]
    background = level / np.maximum(level + midpoint, _LEAST)
    return join(background, shares(attention[1:]))


def join(
    background: Float[np.ndarray, "*place"], classes: Float[np.ndarray, "cls ..."]
) -> Float[np.ndarray, "row ..."]:
    """The background's share, and what it leaves to the classes; all of it where they are zero."""
    background = np.where(classes.any(0), background, 1)
    joined: Float[np.ndarray, "row ..."]
    joined = np.concatenate([background[None], (1 - background) * classes])
    return joined


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


def shares(values: Float[np.ndarray, "cls ..."]) -> Float[np.ndarray, "cls ..."]:
    """Each row's part of the sum over rows; zeros where all are zero.

    >>> shares(np.array([[1.0, 0.0], [3.0, 0.0]])).tolist()
    [[0.25, 0.0], [0.75, 0.0]]
    """
    total = values.sum(0)
    part: Float[np.ndarray, "cls ..."] = values / np.where(total > 0, total, 1)
    return part


def scale_rows(
    attention: Float[np.ndarray, "row height width"],
) -> Float[np.ndarray, "row height width"]:
    """Each row from 0 at its minimum to 1 at its maximum; a constant row is 0."""
    low, high = attention.min((1, 2), keepdims=True), attention.max((1, 2), keepdims=True)
    scaled: Float[np.ndarray, "row height width"] = (attention - low) / np.where(
        high > low, high - low, 1
    )
    return scaled


def score_masks(
    attention: Float[np.ndarray, "row height width"],
    segmentation: Segmentation,
    midpoint: float,
    weight: float,
) -> Float[np.ndarray, "mask row"]:
    """Shares of the mean attention over each mask (LS eq. 3); row 0 is averaged geometrically."""
    logs = np.log(np.maximum(attention[:1], _LEAST))
    means = mask_means(np.concatenate([logs, attention[1:]]), segmentation).T
    means[0] = np.exp(means[0])
    scored: Float[np.ndarray, "mask row"] = score_classes(means, midpoint, weight).T
    return scored


def score_attention(
    inputs: LabelInputs,
    attention: Float[np.ndarray, "row grid_height grid_width"],
    background: float,
) -> ClassScores:
    """Scores of every pixel from the attention at its place, and of every mask from its mean."""
    grown = upsample(attention, inputs.size)
    midpoint = geometric_midpoint(grown[0])
    return ClassScores(
        score_classes(grown, midpoint, background),
        score_masks(grown, inputs.segmentation, midpoint, background),
    )


def mask_means(
    maps: Float[np.ndarray, "row height width"], segmentation: Segmentation
) -> Float[np.ndarray, "mask row"]:
    """LS eq. 3: mean of every map over the pixels of every mask, for all pairs in one product."""
    masks = segmentation.masks
    flat = masks.reshape(len(masks), maps[0].size)  # there may be no mask
    values = torch.from_numpy(np.ascontiguousarray(maps)).flatten(1).float()
    sums = torch.zeros(len(flat), len(maps))
    for start in range(0, flat.shape[1], _PIXELS):
        part = slice(start, start + _PIXELS)
        sums += torch.from_numpy(flat[:, part]).float() @ values[:, part].T
    means: Float[np.ndarray, "mask row"] = sums.numpy() / np.maximum(flat.sum(1), 1)[:, None]
    return means
