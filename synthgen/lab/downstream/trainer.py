"""Training a downstream segmenter on labeled images: AdamW, averaged weights, ignored pixels.

Cross entropy over the pixels that are not 255; linear warm-up, then the linear fall of SegFormer
(Xie et al. 2021, section 4.1). Every random number is a function of seed and step, so that a run
that was stopped ends in the same bits as one that was not. What is measured, and kept, are the
averaged weights at the last step: no step is chosen by its validation score.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from synthgen import progress
from synthgen.lab.downstream.augment import DEFAULT_AUGMENTATION, Augmentation, Batch, draw_batch
from synthgen.lab.downstream.labeled_images import LabeledImages
from synthgen.lab.downstream.scoring import Scores, score_model
from synthgen.lab.downstream.segmenters import MIN_BATCH, build_segmenter
from synthgen.lab.train import checkpoint
from synthgen.lab.train.loop import set_learning_rate
from synthgen.types import IGNORE


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a downstream network is trained.

    Args:
        model: Row of DOWNSTREAM_MODELS or ``module:attribute``.
        steps: Optimizer steps.
        batch: Samples a step.
        lr: Learning rate after warming up.
        weight_decay: Of AdamW.
        warm_up: Steps over which the learning rate rises.
        size: Side that crops are resized to, in pixels; images are validated as they are.
        augmentation: How samples vary.
        ema_decay: Decay of the averaged weights.
        validate_every: Steps between validations; 0 validates once per epoch. The last step is
            always validated.
        seed: Of initialization, order and augmentation.
        device: ``cpu`` or ``cuda``.
    """

    model: str = "segformer"
    steps: int = 1200
    batch: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.01
    warm_up: int = 50
    size: int = 96
    augmentation: Augmentation = DEFAULT_AUGMENTATION
    ema_decay: float = 0.99
    validate_every: int = 0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch < MIN_BATCH:
            raise ValueError(f"batch must be at least {MIN_BATCH}. Got {self.batch}.")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1. Got {self.steps}.")
        if self.size < 32 or self.size % 32:
            raise ValueError(
                f"size must be a multiple of 32, the networks' stride. Got {self.size}."
            )


@dataclass(frozen=True, slots=True)
class Validation:
    """Where training stands: mean loss since the last validation, and scores."""

    step: int
    loss: float
    scores: Scores


@dataclass(slots=True)
class _State:
    """Everything that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: checkpoint.Average
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    sources: Sequence[LabeledImages],
    validation: LabeledImages,
    folder: Path,
    settings: TrainSettings,
    save_every: int = 100,
) -> Iterator[Validation]:
    """Train up to the last step, going on from the checkpoint in a folder.

    Args:
        sources: What is learned from, each as often as the others; with the same classes.
        validation: What is measured on, with the same classes.
        folder: Where the checkpoint is kept.
        settings: How.
        save_every: Steps between checkpoints; one is also written when a stop is requested.

    Yields:
        A validation as it is made; those of a former process are not repeated.

    Raises:
        ValueError: If the classes differ, or the checkpoint is of other data or settings.
        Stopped: After a stop was requested; run again to go on.
    """
    names = validation.class_names
    if any(source.class_names != names for source in sources) or not len(validation):
        raise ValueError("Training and validation data must have the same classes, and images.")
    identity = _identity(sources, validation, settings)
    state = _create(settings, len(names))
    _load(state, folder, identity)
    every = settings.validate_every or epoch_steps(sources, settings.batch)
    try:
        while state.step < settings.steps:
            progress.report("step", step=state.step, steps=settings.steps)
            _step(state, sources, settings)
            if state.step % every == 0 or state.step == settings.steps:
                yield _validate(state, validation, settings)
            if state.step % save_every == 0 or state.step == settings.steps:
                _save(state, folder, identity)
    except progress.Stopped:
        _save(state, folder, identity)
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
    _require_same(found[1]["identity"], _identity(sources, validation, settings), folder)
    return list(found[1]["history"]) if found[1]["step"] == settings.steps else None


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


def load_averaged(folder: Path) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The averaged network of a checkpoint, ready to predict, and its history.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    found = checkpoint.load_state(folder)
    if found is None:
        raise FileNotFoundError(f"{folder} must hold a checkpoint. Got none; train first.")
    tensors, meta = found
    identity = meta["identity"]
    model = build_segmenter(identity["settings"]["model"], len(identity["class_names"]))
    model.load_state_dict(
        checkpoint.subset(tensors, "model.") | checkpoint.subset(tensors, "ema.")
    )
    return model.eval(), list(meta["history"])


def export_segmenter(checkpoint_folder: Path, folder: Path) -> None:
    """Write the averaged weights (``weights.safetensors``) and what they are (``segmenter.json``).

    ``build_segmenter(model, len(class_names))`` takes the weights by ``load_state_dict``.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    model, history = load_averaged(checkpoint_folder)
    found = checkpoint.load_state(checkpoint_folder)
    assert found is not None, "load_averaged has just read it"
    identity = found[1]["identity"]
    about = {**identity, "model": identity["settings"]["model"], "scores": history[-1]}
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    (folder / "segmenter.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


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


def _create(settings: TrainSettings, num_classes: int) -> _State:
    torch.manual_seed(settings.seed)
    model = build_segmenter(settings.model, num_classes).to(settings.device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.lr, weight_decay=settings.weight_decay
    )
    return _State(model, optimizer, checkpoint.Average(model, settings.ema_decay))


def _step(state: _State, sources: Sequence[LabeledImages], settings: TrainSettings) -> None:
    """One update of the weights and of their average."""
    s = settings
    set_learning_rate(state.optimizer, state.step, s.steps, s.lr, 1.0, s.warm_up)
    size = (settings.size, settings.size)
    batch = draw_batch(
        sources, settings.seed, state.step, settings.batch, size, settings.augmentation
    )
    torch.manual_seed(settings.seed * 1_000_003 + state.step)  # dropout
    state.optimizer.zero_grad(set_to_none=True)
    loss = _loss(state.model, batch, settings.device)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step()
    state.step += 1
    state.average.update(state.step)
    state.losses.append(float(loss.detach()))


def _loss(model: nn.Module, batch: Batch, device: str) -> Tensor:
    return segmentation_loss(model(batch.images.to(device)), batch.semantics.to(device))


def _validate(state: _State, validation: LabeledImages, settings: TrainSettings) -> Validation:
    model = copy.deepcopy(state.model).eval()
    model.load_state_dict(state.average.state(), strict=False)  # buffers stay
    scores = score_model(model, validation, settings.device)
    loss = sum(state.losses) / len(state.losses)
    state.losses.clear()
    state.history.append({"step": state.step, "loss": loss, **asdict(scores)})
    progress.report("validation", step=state.step, loss=loss, miou=scores.miou)
    return Validation(state.step, loss, scores)


def _identity(
    sources: Sequence[LabeledImages], validation: LabeledImages, settings: TrainSettings
) -> dict[str, Any]:
    return {
        "settings": asdict(settings),
        "class_names": list(validation.class_names),
        "sources": [source.fingerprint() for source in sources],
        "validation": validation.fingerprint(),
    }


def _save(state: _State, folder: Path, identity: dict[str, Any]) -> None:
    tensors = {
        **checkpoint.prefixed("model.", state.model.state_dict()),
        **checkpoint.prefixed("ema.", state.average.state()),
        **checkpoint.prefixed("optimizer.", checkpoint.optimizer_state(state.optimizer)),
    }
    meta = {
        "step": state.step,
        "losses": state.losses,
        "history": state.history,
        "identity": identity,
    }
    checkpoint.save_state(folder, tensors, meta)


def _load(state: _State, folder: Path, identity: dict[str, Any]) -> None:
    found = checkpoint.load_state(folder)
    if found is None:
        return
    tensors, meta = found
    _require_same(meta["identity"], identity, folder)
    state.model.load_state_dict(checkpoint.subset(tensors, "model."))
    state.average.load(checkpoint.subset(tensors, "ema."))
    checkpoint.load_optimizer(state.optimizer, checkpoint.subset(tensors, "optimizer."))
    state.step, state.losses, state.history = meta["step"], meta["losses"], meta["history"]


def _require_same(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """A checkpoint goes on only with the data and settings that it was begun with."""
    wanted = json.loads(json.dumps({**wanted, **wanted["settings"]}))
    found = {**found, **found["settings"]}
    changed = sorted(
        wanted.keys() - {"settings"} - {k for k in wanted if found.get(k) == wanted[k]}
    )
    if changed:
        raise ValueError(
            f"{folder} must be gone on with as it was begun. Got another {', '.join(changed)}; "
            f"choose another folder, or delete this one."
        )
