"""Training a downstream segmenter on labeled images: AdamW, averaged weights, ignored pixels.

Cross entropy over the pixels that are not 255; linear warm-up, then the linear fall of SegFormer
(Xie et al. 2021, section 4.1). Every random number is a function of seed and step, so that a run
that was stopped ends in the same bits as one that was not. What is measured, and kept, are the
averaged weights at the last step: no step is chosen by its validation score.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from synthgen import progress
from synthgen.config.settings import Section
from synthgen.lab.downstream.augment import DEFAULT_AUGMENTATION, Augmentation, draw_batch
from synthgen.lab.downstream.labeled_images import LabeledImages
from synthgen.lab.downstream.scoring import score_model
from synthgen.lab.downstream.segmenters import MIN_BATCH, build_segmenter
from synthgen.lab.train import checkpoint
from synthgen.lab.train.parallel import GradientWorkers
from synthgen.lab.train.trainer import Trainer
from synthgen.types import IGNORE


class TrainSettings(Section):
    """How a downstream network is trained."""

    model: str = Field("segformer", description="Row of DOWNSTREAM_MODELS or 'module:attribute'.")
    backbone: str | None = Field(
        None, description="Folder of a trained encoder, of transformers or timm; replaces model."
    )
    steps: int = Field(1200, ge=1, description="Optimizer steps.")
    batch: int = Field(16, ge=MIN_BATCH, description="Samples a step.")
    lr: float = Field(3e-3, ge=0.0, description="Learning rate after warming up.")
    weight_decay: float = Field(0.01, ge=0.0, description="Of AdamW.")
    warm_up: int = Field(50, ge=1, description="Steps over which the learning rate rises.")
    size: int = Field(
        96, ge=32, description="Side of the crops in pixels; images are validated as they are."
    )
    augmentation: Augmentation = DEFAULT_AUGMENTATION
    ema_decay: float = Field(0.99, ge=0.0, le=1.0, description="Decay of the averaged weights.")
    validate_every: int = Field(
        0, ge=0, description="Steps between validations; 0: once per epoch. And at the last step."
    )
    seed: int = Field(0, description="Of initialization, order and augmentation.")
    device: str = Field("cpu", description="cpu or cuda.")

    @field_validator("size")
    @classmethod
    def _fits(cls, size: int) -> int:
        if size % 32:
            raise ValueError(f"must be a multiple of 32, the networks' stride. Got {size}.")
        return size

    @property
    def decay_share(self) -> float:
        """SegFormer's learning rate falls over all steps."""
        return 1.0


class SegmenterTrainer(Trainer):
    """A network, its optimizer and average, with the losses and validations so far.

    Args:
        sources: What is learned from, each as often as the others; with the same classes.
        validation: What is measured on, with the same classes.
        settings: How.

    Raises:
        ValueError: If the classes differ.
    """

    def __init__(
        self,
        sources: Sequence[LabeledImages],
        validation: LabeledImages,
        settings: TrainSettings,
    ) -> None:
        names = validation.class_names
        if any(source.class_names != names for source in sources) or not len(validation):
            raise ValueError(
                "Training and validation data must have the same classes, and images."
            )
        self.sources, self.validation = sources, validation
        self.identity = {
            "settings": settings.model_dump(mode="json"),
            "class_names": list(names),
            "sources": [source.fingerprint() for source in sources],
            "validation": validation.fingerprint(),
        }
        self.losses: list[float] = []
        self.history: list[dict[str, Any]] = []
        torch.manual_seed(settings.seed)
        self.model = (
            build_segmenter(settings.model, len(names), settings.backbone)
            .to(settings.device)
            .train()
        )
        optimizer = torch.optim.AdamW(
            self.model.parameters(), settings.lr, weight_decay=settings.weight_decay
        )
        super().__init__(settings, {"model": self.model}, optimizer, {"ema": self.model})

    def meta(self) -> dict[str, Any]:
        """The data and settings that it was begun with, losses since the last validation."""
        known = {"step": self.step, "losses": self.losses, "history": self.history}
        return {**known, "identity": self.identity}

    def restore(self, meta: Mapping[str, Any]) -> None:
        """A checkpoint goes on only with the data and settings that it was begun with."""
        found = {"backbone": None, **meta["identity"], **meta["identity"]["settings"]}
        wanted = {**self.identity, **self.settings.model_dump(mode="json")}
        different = {name for name, value in wanted.items() if found.get(name) != value}
        changed = sorted(different - {"settings"})
        if changed:
            raise ValueError(
                f"A training must be gone on with as it was begun. Got another "
                f"{', '.join(changed)}; choose another folder, or delete this one."
            )
        self.step, self.samples = meta["step"], meta["step"] * self.settings.batch
        self.losses, self.history = meta["losses"], meta["history"]

    def loss(self, step: int, rank: int, workers: int) -> Tensor:
        """Loss of the batch of a step."""
        s = self.settings
        size, augmentation = (s.size, s.size), s.augmentation
        images, semantics = draw_batch(self.sources, s.seed, step, s.batch, size, augmentation)
        torch.manual_seed(s.seed * 1_000_003 + step)  # dropout
        return segmentation_loss(self.model(images.to(s.device)), semantics.to(s.device))

    def validate(self) -> dict[str, Any]:
        """Scores of the averaged weights, and the mean loss since they were last taken."""
        model = copy.deepcopy(self.model).eval()
        model.load_state_dict(self.averages["ema"].state(), strict=False)  # buffers stay
        scores = score_model(model, self.validation, self.settings.device)
        row = {"step": self.step, "loss": sum(self.losses) / len(self.losses), **asdict(scores)}
        self.losses.clear()
        self.history.append(row)
        progress.report("validation", step=self.step, loss=row["loss"], miou=scores.miou)
        return row


def train(
    sources: Sequence[LabeledImages],
    validation: LabeledImages,
    folder: Path,
    settings: TrainSettings,
    save_every: int = 100,
) -> Iterator[dict[str, Any]]:
    """Train up to the last step, going on from the checkpoint in a folder.

    Args:
        sources: What is learned from, each as often as the others; with the same classes.
        validation: What is measured on, with the same classes.
        folder: Where the checkpoint is kept.
        settings: How.
        save_every: Steps between checkpoints; one is also written when a stop is requested.

    Yields:
        A row of the history as it is made; those of a former process are not repeated.

    Raises:
        ValueError: If the classes differ, or the checkpoint is of other data or settings.
        Stopped: After a stop was requested; run again to go on.
    """
    trainer = SegmenterTrainer(sources, validation, settings)
    trainer.load(folder)
    every = settings.validate_every or epoch_steps(sources, settings.batch)
    try:
        with GradientWorkers(trainer.parameters, trainer.loss, 1) as workers:
            while trainer.step < settings.steps:
                progress.report("step", step=trainer.step, steps=settings.steps)
                trainer.losses.append(trainer.update(workers))
                last = trainer.step == settings.steps
                if trainer.step % every == 0 or last:
                    yield trainer.validate()
                if trainer.step % save_every == 0 or last:
                    trainer.save(folder)
    except progress.Stopped:
        trainer.save(folder)
        raise


def finished_history(
    sources: Sequence[LabeledImages],
    validation: LabeledImages,
    folder: Path,
    settings: TrainSettings,
) -> list[dict[str, Any]] | None:
    """The validations of a training that has reached its last step, None where it has not.

    Raises:
        ValueError: If the folder holds a training of other data or settings.
    """
    found = checkpoint.load_state(folder)
    if found is None:
        return None
    trainer = SegmenterTrainer(sources, validation, settings)
    trainer.restore(found[1])
    return trainer.history if trainer.step == settings.steps else None


def epoch_steps(sources: Sequence[LabeledImages], batch: int) -> int:
    """Steps in which every image of the largest source is seen once."""
    largest = max(len(source) for source in sources)
    return -(-largest * len(sources) // batch)


def crop_side(data: LabeledImages) -> int:
    """Three quarters of the shorter side of the first image, a multiple of 32.

    Crops keep 0.6 to 1 of the sides, so objects appear at about their own size, at half the cost.
    """
    shorter: int = min(data.images[0].shape[:2])
    return max(32, shorter * 3 // 4 // 32 * 32)


def load_averaged(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The averaged network of a checkpoint, ready to predict, and what is known of it.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    found = checkpoint.load_state(folder)
    if found is None:
        raise FileNotFoundError(f"{folder} must hold a checkpoint. Got none; train first.")
    tensors, meta = found
    identity = meta["identity"]
    known, num = identity["settings"], len(identity["class_names"])
    model = build_segmenter(known["model"], num, known.get("backbone"))
    model.load_state_dict(checkpoint.subset(tensors, "model") | checkpoint.subset(tensors, "ema"))
    return model.eval(), meta


def export_segmenter(checkpoint_folder: Path, folder: Path) -> list[dict[str, Any]]:
    """Write the averaged weights (``weights.safetensors``) and what they are (``segmenter.json``).

    ``build_segmenter(model, len(class_names))`` takes the weights by ``load_state_dict``.

    Returns:
        The history of the training.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    model, meta = load_averaged(checkpoint_folder)
    identity, history = meta["identity"], meta["history"]
    about = {**identity, "model": identity["settings"]["model"], "scores": history[-1]}
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    (folder / "segmenter.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return list(history)


def segmentation_loss(
    logits: Float[Tensor, "batch cls height width"], semantics: Int[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """Mean cross entropy over the pixels that are not 255; 0 where all of them are.

    >>> logits = torch.zeros(1, 2, 1, 2)
    >>> round(float(segmentation_loss(logits, torch.tensor([[[1, 255]]]))), 4)
    0.6931
    """
    total = F.cross_entropy(logits, semantics, ignore_index=IGNORE, reduction="sum")
    return total / (semantics != IGNORE).sum().clamp(min=1)
