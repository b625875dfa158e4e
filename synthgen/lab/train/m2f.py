"""Recipe of the embedded Mask2Former: the class's own loss on the scenes' semantic truth.

A sample is a function of seed, step and its position in the batch, whoever computes it. Half of
the images are blurred, noisy or off in color as generated images are, which is what it audits.
Matching and point sampling draw from torch's global generator, which is seeded anew each step, so
that a resumed run equals an uninterrupted one. Batch norms keep the statistics of the first
process's slices; the exported weights are the averages, with those statistics.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from synthgen.embedded.mask2former import build_m2f
from synthgen.lab.train.latents import image_to_unit, soften
from synthgen.lab.train.trainer import Settings, Trainer
from synthgen.lab.world.corpus import TruthCorpus

DEGRADED_SHARE = 0.5

Labeled = tuple[
    Float[Tensor, "batch 3 height width"],
    tuple[Float[Tensor, "_mask height width"], ...],
    tuple[Int[Tensor, " _mask"], ...],
]
"""Images in [-1, 1]; of each, a mask of zeros and ones per class, which partition it, and the ids
of these classes, ascending, background included."""


class M2fTrainer(Trainer):
    """Model, optimizer and average while they are trained.

    Args:
        corpus: What batches are drawn from.
        settings: How.
    """

    def __init__(self, corpus: TruthCorpus, settings: Settings):
        torch.manual_seed(settings.seed)
        self.corpus = corpus
        self.model = build_m2f().to(settings.device).train()
        optimizer = torch.optim.AdamW(
            self.model.parameters(), settings.lr, betas=(0.9, 0.99), weight_decay=0.02, fused=True
        )
        super().__init__(settings, {"model": self.model}, optimizer, {"ema": self.model})

    def loss(self, step: int, rank: int, workers: int) -> Tensor:
        """Cross entropy of the classes, of the masks, and dice, over all decoder layers."""
        s = self.settings
        part = slice(rank, None, workers)
        images, masks, classes = draw_batch(self.corpus, s.seed, step, s.batch, part)
        torch.manual_seed((s.seed * 1_000_003 + step) * workers + rank)
        loss: Tensor = self.model(
            pixel_values=images.to(s.device),
            mask_labels=[each.to(s.device) for each in masks],
            class_labels=[each.to(s.device) for each in classes],
        ).loss
        return loss


def split_classes(
    semantic: UInt8[np.ndarray, "height width"],
) -> tuple[Float[Tensor, "mask height width"], Int[Tensor, " mask"]]:
    """The mask of each class of a semantic map, and the ids of these classes, ascending.

    >>> masks, classes = split_classes(np.array([[0, 3], [0, 0]], np.uint8))
    >>> classes.tolist(), masks.sum((1, 2)).tolist()
    ([0, 3], [3.0, 1.0])
    """
    classes = np.unique(semantic).astype(np.int64)
    masks = (semantic == classes[:, None, None]).astype(np.float32)
    return torch.from_numpy(masks), torch.from_numpy(classes)


def degrade(
    image: Float[Tensor, "3 height width"], rng: np.random.Generator
) -> Float[Tensor, "3 height width"]:
    """The image blurred by a random amount, with shifted colors and noise; in [-1, 1]."""
    blur, noise, shift = rng.random(), 0.1 * rng.random(), 0.08 * rng.standard_normal()
    gain = 1.0 + 0.1 * rng.standard_normal((3, 1, 1)).clip(-2, 2)
    soft = soften(image[None], torch.full((1, 1, 1, 1), blur**2))[0]
    grain = rng.standard_normal(tuple(image.shape), dtype=np.float32)
    changed = soft * torch.from_numpy(gain).float() + shift + noise * torch.from_numpy(grain)
    return changed.clamp(-1, 1)


def draw_batch(
    corpus: TruthCorpus, seed: int, step: int, batch: int, part: slice = slice(None)
) -> Labeled:
    """Some samples of the batch of a step.

    Args:
        corpus: Scenes to draw from, with replacement.
        seed: Of the training run.
        step: Number of the step.
        batch: Samples of the whole batch.
        part: Positions in it that are wanted.
    """
    rows = np.random.default_rng((seed, step)).integers(len(corpus), size=batch)
    samples = []
    for i in range(*part.indices(batch)):
        row, rng = int(rows[i]), np.random.default_rng((seed, step, i))
        direction = -1 if rng.random() < 0.5 else 1
        pixels = corpus.image[row][:, ::direction].copy()
        image = image_to_unit(torch.from_numpy(pixels)[None])[0]
        if rng.random() < DEGRADED_SHARE:
            image = degrade(image, rng)
        samples.append((image, *split_classes(corpus.semantic[row][:, ::direction])))
    images, masks, classes = zip(*samples, strict=True)
    return torch.stack(images), masks, classes
