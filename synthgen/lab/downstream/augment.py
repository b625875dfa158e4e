"""Batches of augmented samples: mirrored, cropped and resized, off in color, pasted over.

A sample is a function of seed, step and position in the batch, so that a run that was stopped
sees what it would have seen. The same affine grid samples image (bilinear) and labels (nearest).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from synthgen.lab.downstream.labeled_images import LabeledImages
from synthgen.types import BACKGROUND, IGNORE


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How much samples vary; zeros and (1, 1) leave them alone.

    Args:
        flip: Share of the samples that are mirrored.
        scale: Smallest and largest share of the image's sides that a crop keeps; the crop is
            resized to the training size.
        color: Standard deviation of brightness, contrast and gain of each channel, cut at two.
        paste: Chance that the objects of another sample are pasted over this one, and of those of
            one more after it (Ghiasi et al. 2021, Simple Copy-Paste).
        paste_scale: The same as ``scale`` for what is pasted; above 1 it becomes smaller.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.8, 1.0)
    color: float = 0.1
    paste: float = 0.5
    paste_scale: tuple[float, float] = (1.0, 2.5)


DEFAULT_AUGMENTATION = Augmentation()

PASTE_REACH = 0.75
"""How far from the center what is pasted may stand, in half sides of the sample."""

Sample = tuple[Float[Tensor, "3 height width"], Int[Tensor, "height width"]]


def draw_batch(
    sources: Sequence[LabeledImages],
    seed: int,
    step: int,
    batch: int,
    size: tuple[int, int],
    augmentation: Augmentation,
) -> tuple[Float[Tensor, "batch 3 height width"], Int[Tensor, "batch height width"]]:
    """The batch of a step: images in [-1, 1], and class ids with 255 for ignored.

    Args:
        sources: Drawn from in turns, so that a small one weighs as much as a large one; each is
            run through in a new order again and again.
        seed: Of the training run.
        step: Number of the step.
        batch: Samples.
        size: Height and width of the samples.
        augmentation: How they vary.
    """
    samples = []
    for position in range(batch):
        source, row = pick(sources, seed, step * batch + position)
        rng = np.random.default_rng((seed, step, position))
        sample = crop(sources[source], row, crop_grid(size, augmentation, rng), augmentation, rng)
        while rng.random() < augmentation.paste:
            other = sources[int(rng.integers(len(sources)))]
            grid = paste_grid(size, augmentation, rng)
            pasted = crop(other, int(rng.integers(len(other))), grid, augmentation, rng)
            sample = paste_objects(sample, pasted)
        samples.append(sample)
    images, semantics = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(semantics)


def pick(sources: Sequence[LabeledImages], seed: int, number: int) -> tuple[int, int]:
    """Source and row of the n-th sample of a run: sources in turns, each in a new order a round.

    >>> pixel, label = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)
    >>> few = LabeledImages((pixel,) * 3, (label,) * 3, ("background", "cat"))
    >>> sorted(pick([few], 0, number)[1] for number in range(3, 6))
    [0, 1, 2]
    """
    turn, source = divmod(number, len(sources))
    num = len(sources[source])
    return source, int(_order(seed, source, turn // num, num)[turn % num])


@functools.lru_cache(maxsize=16)
def _order(seed: int, source: int, turn: int, num: int) -> Int[np.ndarray, " row"]:
    return np.random.default_rng((seed, source, turn)).permutation(num)


def crop(
    data: LabeledImages,
    row: int,
    grid: Float[Tensor, "1 height width 2"],
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> Sample:
    """Image and labels of a row where the grid looks, recolored; background beyond the image."""
    labels = torch.from_numpy(data.semantics[row].astype(np.float32))[None, None]
    image = to_unit(data.images[row])[None]
    pixels = F.grid_sample(image, grid, padding_mode="border", align_corners=False)[0]
    labels = F.grid_sample(labels, grid, "nearest", padding_mode="zeros", align_corners=False)
    return recolor(pixels, augmentation.color, rng), labels[0, 0].long()


def paste_objects(sample: Sample, other: Sample) -> Sample:
    """The first sample, with those pixels of the other that show one of its classes.

    >>> sample, other = torch.zeros(3, 1, 3), torch.ones(3, 1, 3)
    >>> under, over = torch.tensor([[5, 0, 5]]), torch.tensor([[0, 2, 255]])
    >>> image, labels = paste_objects((sample, under), (other, over))
    >>> image[0].tolist(), labels.tolist()
    ([[0.0, 1.0, 0.0]], [[5, 2, 5]])
    """
    (image, labels), (other_image, other_labels) = sample, other
    shown = (other_labels != BACKGROUND) & (other_labels != IGNORE)
    return torch.where(shown, other_image, image), torch.where(shown, other_labels, labels)


def crop_grid(
    size: tuple[int, int], augmentation: Augmentation, rng: np.random.Generator
) -> Float[Tensor, "1 height width 2"]:
    """Where in [-1, 1] each pixel of a crop looks: a random window, mirrored or not."""
    share = rng.uniform(*augmentation.scale)
    return _window(size, share, 1.0 - share, augmentation.flip, rng)


def paste_grid(
    size: tuple[int, int], augmentation: Augmentation, rng: np.random.Generator
) -> Float[Tensor, "1 height width 2"]:
    """The same for what is pasted: a window of any size, around any place."""
    share = rng.uniform(*augmentation.paste_scale)
    return _window(size, share, share * PASTE_REACH, augmentation.flip, rng)


def _window(
    size: tuple[int, int], share: float, reach: float, flip: float, rng: np.random.Generator
) -> Float[Tensor, "1 height width 2"]:
    """A window of a share of the sides, whose center is at most `reach` from the image's."""
    right, down = (reach * rng.uniform(-1.0, 1.0, 2)).tolist()
    across = -share if rng.random() < flip else share
    theta = torch.tensor([[[across, 0.0, right], [0.0, share, down]]], dtype=torch.float32)
    return F.affine_grid(theta, [1, 1, *size], align_corners=False)


def recolor(
    image: Float[Tensor, "3 height width"], amount: float, rng: np.random.Generator
) -> Float[Tensor, "3 height width"]:
    """The image with another contrast, gain of each channel, and brightness; in [-1, 1]."""
    contrast, brightness, *gain = (amount * rng.standard_normal(5)).clip(-2 * amount, 2 * amount)
    factors = torch.tensor([(1.0 + contrast) * (1.0 + g) for g in gain], dtype=torch.float32)
    return (image * factors[:, None, None] + float(brightness)).clamp(-1.0, 1.0)


def to_unit(image: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "3 height width"]:
    """sRGB bytes to [-1, 1].

    >>> to_unit(np.array([[[0, 255, 51]]], np.uint8)).flatten().tolist()
    [-1.0, 1.0, -0.6000000238418579]
    """
    return torch.from_numpy(image.astype(np.float32) / 127.5 - 1.0).movedim(-1, 0)
