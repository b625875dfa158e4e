"""A small convolutional network that names the class and the colors of a single object.

It is trained on rendered scenes only, blurred, noisy, with shifted colors, and judges generated
images; it never guides them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from synthgen.embedded.vocabulary import CLASSES, COLORS
from synthgen.lab.train.latents import image_to_unit, soften
from synthgen.lab.train.trainer import Settings, Trainer
from synthgen.lab.world.corpus import Corpus

WIDTHS = (16, 32, 48, 64)
CLASSIFIED_AT_ONCE = 50  # images
FILE_NAME = "classifier.safetensors"


class SceneClassifier(nn.Module):
    """Four strided convolutions and one more, mean and maximum over positions, linear heads."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (3, *WIDTHS, WIDTHS[-1])
        for number, (before, after) in enumerate(pairwise(widths)):
            stride = 2 if number < len(WIDTHS) else 1
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.class_head = nn.Linear(2 * WIDTHS[-1], len(CLASSES))
        self.color_head = nn.Linear(2 * WIDTHS[-1], len(COLORS))

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, " batch kind"], Float[Tensor, " batch color"]]:
        """Logits of classes (softmax) and of colors (one sigmoid each).

        Args:
            images: sRGB in [-1, 1].
        """
        field = self.trunk(images)
        pooled = torch.cat([field.mean((2, 3)), field.amax((2, 3))], 1)
        return self.class_head(pooled), self.color_head(pooled)


def save_classifier(model: SceneClassifier, folder: Path) -> None:
    """Write the weights in fp16."""
    tensors = {name: t.detach().half().contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, folder / FILE_NAME)


def load_classifier(folder: Path) -> SceneClassifier:
    """Classifier with the weights in `folder`, fp32, for inference."""
    model = SceneClassifier()
    model.load_state_dict({k: t.float() for k, t in load_file(folder / FILE_NAME).items()})
    return model.eval()


@torch.no_grad()
def classify(
    model: SceneClassifier, images: Float[Tensor, "batch 3 height width"]
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Most likely class and most likely color of each image, as indices."""
    pairs = [model(part) for part in torch.split(images, CLASSIFIED_AT_ONCE)]
    return torch.cat([c for c, _ in pairs]).argmax(1), torch.cat([k for _, k in pairs]).argmax(1)


def single_object_accuracy(model: SceneClassifier, corpus: Corpus) -> tuple[float, float]:
    """Shares of single-object scenes whose class, and one of whose colors, are recognized."""
    rows = corpus.singles()
    classes, colors = classify(model, image_to_unit(torch.from_numpy(corpus.images[rows])))
    class_hits = [CLASSES[c] == corpus.classes[r][0] for c, r in zip(classes, rows, strict=True)]
    names = tuple(COLORS)
    color_hits = [names[k] in corpus.colors[r][0] for k, r in zip(colors, rows, strict=True)]
    return float(np.mean(class_hits)), float(np.mean(color_hits))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierSettings(Settings):
    """How the classifier is trained."""

    batch: int = 64
    lr: float = 3e-3
    decay_share: float = 0.5


class ClassifierTrainer(Trainer):
    """Classifier and optimizer while they are trained; nothing is averaged or cut.

    Args:
        corpus: Whose scenes of one object are learned from.
        settings: How.
    """

    def __init__(self, corpus: Corpus, settings: ClassifierSettings):
        torch.manual_seed(settings.seed)
        self.corpus, self.rows = corpus, corpus.singles()
        names = [corpus.classes[row][0] for row in self.rows]
        self.classes = torch.tensor([CLASSES.index(name) for name in names])
        colors = [[float(name in corpus.colors[row][0]) for name in COLORS] for row in self.rows]
        self.colors = torch.tensor(colors)
        self.model = SceneClassifier().to(settings.device)
        optimizer = torch.optim.AdamW(self.model.parameters(), settings.lr, weight_decay=0.02)
        super().__init__(settings, {"model": self.model}, optimizer, {}, max_norm=math.inf)

    def loss(self, step: int, rank: int, workers: int) -> Tensor:
        """Cross entropy of the class plus binary cross entropy of each color."""
        s = self.settings
        picks = np.random.default_rng((s.seed, step)).integers(len(self.rows), size=s.batch)
        picks = picks[np.argsort(self.rows[picks], kind="stable")]  # as they lie on the disk
        images = image_to_unit(torch.from_numpy(self.corpus.images[self.rows[picks]]))
        images = augment(images, torch.Generator().manual_seed(s.seed * 1_000_003 + step))
        part = slice(rank, None, workers)
        order = torch.from_numpy(picks)[part]
        class_logits, color_logits = self.model(images[part].to(s.device))
        classes, colors = self.classes[order].to(s.device), self.colors[order].to(s.device)
        smooth = F.cross_entropy(class_logits, classes, label_smoothing=0.02)
        return smooth + 2.0 * F.binary_cross_entropy_with_logits(color_logits, colors)


def augment(
    images: Float[Tensor, "batch 3 height width"], rng: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    """Mirrored, blurred by a random amount, with shifted brightness and noise."""
    shape = (len(images), 1, 1, 1)
    images = torch.where(torch.rand(shape, generator=rng) < 0.5, images.flip(3), images)
    images = soften(images, torch.rand(shape, generator=rng).square())
    gain = 1.0 + 0.1 * torch.randn((len(images), 3, 1, 1), generator=rng).clamp(-2, 2)
    shift = 0.08 * torch.randn(shape, generator=rng)
    noise = 0.12 * torch.rand(shape, generator=rng) * torch.randn(images.shape, generator=rng)
    return (images * gain + shift + noise).clamp(-1, 1)
