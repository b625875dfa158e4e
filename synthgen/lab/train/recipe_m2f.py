"""Recipe of the embedded Mask2Former: the class's own loss on the scenes' semantic truth.

Matching and point sampling draw from torch's global generator, which is seeded anew each step, so
that a resumed run equals an uninterrupted one. Batch norms keep the statistics of the first
process's slices; the exported weights are the averages, with those statistics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation

from synthgen.embedded.card import CARD_NAME, draft_of, file_digests, thinned
from synthgen.embedded.mask2former import SHIPPED_M2F, build_m2f, save_m2f
from synthgen.embedded.vocabulary import IMAGE_SIZE
from synthgen.lab.train import checkpoint
from synthgen.lab.train.loop import WARM_UP, Progress, run_steps, set_learning_rate
from synthgen.lab.train.m2f_data import SemanticBatch, draw_batch
from synthgen.lab.world.parallel import GradientWorkers
from synthgen.lab.world.truth_corpus import TruthCorpus


@dataclass(frozen=True, slots=True)
class M2fSettings:
    """How the model is trained.

    Args:
        steps: Steps to reach; the learning rate falls over the last `decay_share` of them.
        batch: Samples per step.
        lr: Learning rate after warming up.
        decay_share: Share of the steps over which the rate falls linearly to 2 %.
        seed: Seed of initialization, batches and sampled points.
        device: `cpu` or `cuda`.
        warm_up: Steps over which the rate rises.
        ema_decay: Decay of the average.
        workers: Processes that share each batch, see `parallel`; 1 on a GPU.
        save_every_s: Seconds between checkpoints.
    """

    steps: int
    batch: int = 16
    lr: float = 1e-3
    decay_share: float = 0.4
    seed: int = 0
    device: str = "cpu"
    warm_up: int = WARM_UP
    ema_decay: float = 0.998
    workers: int = 1
    save_every_s: float = 180.0


@dataclass(slots=True)
class M2fState:
    """Everything that a checkpoint holds."""

    model: Mask2FormerForUniversalSegmentation
    optimizer: torch.optim.Optimizer
    average: checkpoint.Average
    step: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)


def create_state(settings: M2fSettings) -> M2fState:
    """Fresh model and optimizer."""
    torch.manual_seed(settings.seed)
    model = build_m2f().to(settings.device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.lr, betas=(0.9, 0.99), weight_decay=0.02, fused=True
    )
    return M2fState(model, optimizer, checkpoint.Average(model, settings.ema_decay))


def save_state(state: M2fState, folder: Path, settings: M2fSettings) -> None:
    """Write model, average and optimizer."""
    tensors = {
        **checkpoint.prefixed("model.", state.model.state_dict()),
        **checkpoint.prefixed("ema.", state.average.state()),
        **checkpoint.prefixed("optimizer.", checkpoint.optimizer_state(state.optimizer)),
    }
    meta = {"step": state.step, "curve": state.curve, "settings": asdict(settings)}
    checkpoint.save_state(folder, tensors, meta)


def load_state(state: M2fState, folder: Path) -> None:
    """Continue from the checkpoint in `folder`, if there is one."""
    found = checkpoint.load_state(folder)
    if found is None:
        return
    tensors, meta = found
    state.model.load_state_dict(checkpoint.subset(tensors, "model."))
    state.average.load(checkpoint.subset(tensors, "ema."))
    checkpoint.load_optimizer(state.optimizer, checkpoint.subset(tensors, "optimizer."))
    state.step = meta["step"]
    state.curve = [tuple(row) for row in meta["curve"]]


def m2f_loss(
    model: Mask2FormerForUniversalSegmentation, batch: SemanticBatch, device: str
) -> Tensor:
    """Cross entropy of the classes, of the masks, and dice, over all decoder layers."""
    output = model(
        pixel_values=batch.images.to(device),
        mask_labels=[masks.to(device) for masks in batch.masks],
        class_labels=[classes.to(device) for classes in batch.classes],
    )
    loss: Tensor = output.loss
    return loss


def train_step(state: M2fState, workers: GradientWorkers, settings: M2fSettings) -> float:
    """One update of model and average; returns the loss."""
    s = settings
    set_learning_rate(state.optimizer, state.step, s.steps, s.lr, s.decay_share, s.warm_up)
    loss = workers.backward(state.step)
    nn.utils.clip_grad_norm_(workers.parameters, 1.0)
    state.optimizer.step()
    state.step += 1
    state.average.update(state.step)
    return loss


def train_m2f(corpus: TruthCorpus, folder: Path, settings: M2fSettings) -> Iterator[Progress]:
    """Train up to `settings.steps`, resuming from the checkpoint in `folder`."""
    state = create_state(settings)
    load_state(state, folder)

    def partial_loss(step: int, rank: int, workers: int) -> Tensor:
        part = slice(rank, None, workers)
        batch = draw_batch(corpus, settings.seed, step, settings.batch, part)
        torch.manual_seed((settings.seed * 1_000_003 + step) * workers + rank)
        return m2f_loss(state.model, batch, settings.device)

    def save(_step: int) -> None:
        save_state(state, folder, settings)

    parameters = list(state.model.parameters())
    with GradientWorkers(parameters, partial_loss, settings.workers) as workers:

        def update(_step: int) -> float:
            return train_step(state, workers, settings)

        steps, save_every = settings.steps, settings.save_every_s
        for progress in run_steps(update, save, state.step, steps, save_every):
            state.curve.append((progress.step, round(progress.loss, 5)))
            yield progress


def export_m2f(checkpoint_dir: Path, folder: Path = SHIPPED_M2F) -> None:
    """Write the averaged weights of a checkpoint, in fp16, with a card, to `folder`.

    The measured quality of a former card is dropped: measure the new weights.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    found = checkpoint.load_state(checkpoint_dir)
    if found is None:
        raise FileNotFoundError(
            f"{checkpoint_dir} must hold a checkpoint. Got none; run `python -m "
            f"synthgen.lab.train m2f --steps N --work {checkpoint_dir.parent}` first."
        )
    tensors, meta = found
    model = build_m2f()
    model.load_state_dict(
        checkpoint.subset(tensors, "model.") | checkpoint.subset(tensors, "ema.")
    )
    with draft_of(folder) as draft:
        save_m2f(model, draft)
        (draft / CARD_NAME).write_text(json.dumps(_card(meta, draft), indent=1))


def _card(meta: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {
        "name": "scenes-m2f",
        "license": "Apache-2.0",
        "image_size": IMAGE_SIZE,
        "seed": meta["settings"]["seed"],
        "recipe": {
            "step": meta["step"],
            "settings": meta["settings"],
            "curve": thinned(meta["curve"]),
        },
        "quality": {},
        "sha256": file_digests(folder),
    }
