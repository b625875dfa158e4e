"""Batches for the embedded Mask2Former: mirrored and degraded scenes with a mask per class.

A sample is a function of seed, step and its position in the batch, whoever computes it. Half of
the images are blurred, noisy or off in color as generated images are, which is what it audits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from synthgen.lab.train.latents import image_to_unit
from synthgen.lab.world.truth_corpus import TruthCorpus

DEGRADED_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class SemanticBatch:
    """What the model's loss takes.

    Args:
        images: sRGB in [-1, 1].
        classes: Class ids that an image shows, ascending, background included.
        masks: One mask of zeros and ones for each of them; they partition the image.
    """

    images: Float[Tensor, "batch 3 height width"]
    classes: tuple[Int[Tensor, " _mask"], ...]
    masks: tuple[Float[Tensor, "_mask height width"], ...]


def split_classes(
    semantic: UInt8[np.ndarray, "height width"],
) -> tuple[Int[Tensor, " mask"], Float[Tensor, "mask height width"]]:
    """Class ids of a semantic map, ascending, and the mask of each.

    >>> classes, masks = split_classes(np.array([[0, 3], [0, 0]], np.uint8))
    >>> classes.tolist(), masks.sum((1, 2)).tolist()
    ([0, 3], [3.0, 1.0])
    """
    classes = np.unique(semantic).astype(np.int64)
    masks = (semantic == classes[:, None, None]).astype(np.float32)
    return torch.from_numpy(classes), torch.from_numpy(masks)


def degrade(
    image: Float[Tensor, "3 height width"], rng: np.random.Generator
) -> Float[Tensor, "3 height width"]:
    """The image blurred by a random amount, with shifted colors and noise; in [-1, 1]."""
    blur, noise, shift = rng.random(), 0.1 * rng.random(), 0.08 * rng.standard_normal()
    gain = 1.0 + 0.1 * rng.standard_normal((3, 1, 1)).clip(-2, 2)
    coarse = F.avg_pool2d(image[None], 4)
    coarse = F.interpolate(coarse, size=image.shape[-2:], mode="bilinear")[0]
    image = torch.lerp(image, coarse, blur**2) * torch.from_numpy(gain).float() + shift
    grain = rng.standard_normal(tuple(image.shape), dtype=np.float32)
    return (image + noise * torch.from_numpy(grain)).clamp(-1, 1)


def draw_batch(
    corpus: TruthCorpus, seed: int, step: int, batch: int, part: slice = slice(None)
) -> SemanticBatch:
    """The samples `part` of the batch of a step.

    Args:
        corpus: Scenes to draw from, with replacement.
        seed: Of the training run.
        step: Number of the step.
        batch: Samples of the whole batch.
        part: Positions in it that are wanted.
    """
    rows = np.random.default_rng((seed, step)).integers(len(corpus), size=batch)
    samples = [
        _draw_sample(corpus, int(rows[i]), np.random.default_rng((seed, step, i)))
        for i in range(*part.indices(batch))
    ]
    images, classes, masks = zip(*samples, strict=True)
    return SemanticBatch(torch.stack(images), classes, masks)


def _draw_sample(
    corpus: TruthCorpus, row: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    direction = -1 if rng.random() < 0.5 else 1
    pixels = corpus.image[row][:, ::direction].copy()
    image = image_to_unit(torch.from_numpy(pixels)[None])[0]
    if rng.random() < DEGRADED_SHARE:
        image = degrade(image, rng)
    return image, *split_classes(corpus.semantic[row][:, ::direction])
