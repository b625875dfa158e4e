"""Recipe of the classifier: rendered single-object scenes, blurred, noisy, with shifted colors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from synthgen.embedded.vocabulary import CLASSES, COLORS
from synthgen.lab.train import checkpoint
from synthgen.lab.train.classifier import SceneClassifier, classifier_loss, classify
from synthgen.lab.train.latents import image_to_unit
from synthgen.lab.train.loop import Progress, run_steps, set_learning_rate
from synthgen.lab.world.corpus import Corpus


@dataclass(frozen=True, slots=True)
class ClassifierSettings:
    """How the classifier is trained: see `VaeSettings` for the meaning of the fields."""

    steps: int
    batch: int = 64
    lr: float = 3e-3
    decay_share: float = 0.5
    seed: int = 0
    device: str = "cpu"
    save_every_s: float = 120.0


def color_targets(colors: list[tuple[str, ...]]) -> Float[Tensor, "scene color"]:
    """One row per object, 1 for each of its colors."""
    rows = [[float(name in names) for name in COLORS] for names in colors]
    return torch.tensor(rows, dtype=torch.float32)


def augment(
    images: Float[Tensor, "batch 3 height width"], rng: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    """Mirrored, blurred by a random amount, with shifted brightness and noise."""
    shape = (len(images), 1, 1, 1)
    images = torch.where(torch.rand(shape, generator=rng) < 0.5, images.flip(3), images)
    size = images.shape[-2:]
    coarse = F.interpolate(F.avg_pool2d(images, 4), size=size, mode="bilinear")
    images = torch.lerp(images, coarse, torch.rand(shape, generator=rng).square())
    gain = 1.0 + 0.1 * torch.randn((len(images), 3, 1, 1), generator=rng).clamp(-2, 2)
    shift = 0.08 * torch.randn(shape, generator=rng)
    noise = 0.12 * torch.rand(shape, generator=rng) * torch.randn(images.shape, generator=rng)
    return (images * gain + shift + noise).clamp(-1, 1)


class ClassifierTrainer:
    """Classifier and optimizer while they are trained."""

    def __init__(self, corpus: Corpus, settings: ClassifierSettings):
        torch.manual_seed(settings.seed)
        self.settings, self.corpus = settings, corpus
        self.rows = corpus.singles()
        names = [corpus.classes[row][0] for row in self.rows]
        self.classes = torch.tensor([CLASSES.index(name) for name in names])
        self.colors = color_targets([corpus.colors[row][0] for row in self.rows])
        self.model = SceneClassifier().to(settings.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), settings.lr, weight_decay=0.02)
        self.step = 0

    def update(self, step: int) -> float:
        """One step; returns the loss."""
        s = self.settings
        set_learning_rate(self.optimizer, step, s.steps, s.lr, s.decay_share)
        picks = np.random.default_rng((s.seed, step)).integers(len(self.rows), size=s.batch)
        images = image_to_unit(torch.from_numpy(self.corpus.images[np.sort(self.rows[picks])]))
        order = torch.from_numpy(picks[np.argsort(self.rows[picks], kind="stable")])
        images = augment(images, torch.Generator().manual_seed(s.seed * 1_000_003 + step))
        logits = self.model(images.to(s.device))
        classes, colors = self.classes[order].to(s.device), self.colors[order].to(s.device)
        loss = classifier_loss(logits, classes, colors)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step = step + 1
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """Write model and optimizer."""
        tensors = {
            **checkpoint.prefixed("model.", self.model.state_dict()),
            **checkpoint.prefixed("optimizer.", checkpoint.optimizer_state(self.optimizer)),
        }
        checkpoint.save_state(
            folder, tensors, {"step": self.step, "settings": asdict(self.settings)}
        )

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint in `folder`, if there is one."""
        found = checkpoint.load_state(folder)
        if found is None:
            return
        tensors, meta = found
        self.model.load_state_dict(checkpoint.subset(tensors, "model."))
        checkpoint.load_optimizer(self.optimizer, checkpoint.subset(tensors, "optimizer."))
        self.step = meta["step"]


def train_classifier(
    corpus: Corpus, folder: Path, settings: ClassifierSettings
) -> Iterator[Progress]:
    """Train up to `settings.steps`, resuming from `folder`."""
    trainer = ClassifierTrainer(corpus, settings)
    trainer.load(folder)

    def save(_step: int) -> None:
        trainer.save(folder)

    yield from run_steps(trainer.update, save, trainer.step, settings.steps, settings.save_every_s)


def single_object_accuracy(model: SceneClassifier, corpus: Corpus) -> tuple[float, float]:
    """Shares of single-object scenes whose class, and one of whose colors, are recognized."""
    rows = corpus.singles()
    images = image_to_unit(torch.from_numpy(corpus.images[rows]))
    classes, colors = classify(model, images)
    class_hits = [CLASSES[c] == corpus.classes[r][0] for c, r in zip(classes, rows, strict=True)]
    names = tuple(COLORS)
    color_hits = [names[k] in corpus.colors[r][0] for k, r in zip(colors, rows, strict=True)]
    return float(np.mean(class_hits)), float(np.mean(color_hits))
