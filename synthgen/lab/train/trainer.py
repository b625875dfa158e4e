"""The one trainer of all recipes: step, average the weights, report, save, go on after a stop.

A recipe is a `Trainer` whose constructor says what is trained and whose `loss` is that of a
step. Every random number is a function of seed and step, so that a run that was stopped ends in
the bits of one that was not; and a checkpoint holds tensors and JSON, nothing that would run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from synthgen.lab.train import checkpoint
from synthgen.lab.train.parallel import GradientWorkers

REPORT_EVERY = 20
"""Steps between progress reports."""

WARM_UP = 200
"""Steps over which the learning rate rises, also after a resume without optimizer state."""

LEAST_RATE = 0.02
"""Share of the learning rate that is left at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is trained; recipes have other defaults.

    Args:
        steps: Steps in total; the learning rate falls over the last `decay_share` of them.
        batch: Samples per step.
        lr: Learning rate after warming up.
        decay_share: Share of the steps over which the rate falls linearly to 2 %.
        seed: Seed of initialization, batches and noise.
        device: `cpu` or `cuda`.
        bf16: Autocast to bfloat16, where a recipe can; worth it only where the machine
            multiplies it in hardware.
        warm_up: Steps over which the rate rises; few are enough where the moments are kept.
        ema_decay: Decay of the averages; 1 / (1 - decay) must be small against the steps.
        workers: Processes that share each batch, see `parallel`; 1 on a GPU.
        save_every_s: Seconds between checkpoints.
    """

    steps: int
    batch: int = 16
    lr: float = 1e-3
    decay_share: float = 0.4
    seed: int = 0
    device: str = "cpu"
    bf16: bool = False
    warm_up: int = WARM_UP
    ema_decay: float = 0.998
    workers: int = 1
    save_every_s: float = 180.0

    def __post_init__(self) -> None:
        if self.batch % self.workers:
            raise ValueError(
                f"batch must be a multiple of workers, which share it. Got {self.batch} and "
                f"{self.workers}."
            )


def lineage(name: str, recipe: Mapping[str, Any]) -> str:
    """What weights are that another training goes on from: every stage, the last one first.

    >>> lineage("scenes-blip", {"samples": 230400, "start": "scenes-clip"})
    'scenes-blip after 230,400 samples, from scenes-clip'
    """
    before = f", from {recipe['start']}" if recipe.get("start") else ""
    return f"{name} after {recipe['samples']:,} samples{before}"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands: step, mean loss since the last report, seconds per step."""

    step: int
    loss: float
    seconds_per_step: float


class Trainer:
    """Modules, optimizer and averages of weights while they are trained.

    Args:
        settings: How.
        modules: What a checkpoint holds, by the first part of its tensors' names.
        optimizer: Of all that is trained.
        averaged: Modules whose weights are averaged, by the same.
        max_norm: Largest norm of a step's gradient.
    """

    def __init__(
        self,
        settings: Any,
        modules: Mapping[str, nn.Module],
        optimizer: Optimizer,
        averaged: Mapping[str, nn.Module],
        max_norm: float = 1.0,
    ) -> None:
        self.settings, self.modules, self.optimizer = settings, modules, optimizer
        self.averages = {
            name: checkpoint.Average(module, settings.ema_decay)
            for name, module in averaged.items()
        }
        self.max_norm = max_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.step = self.samples = 0
        self.start_from: str | None = None
        self.curve: list[tuple[Any, ...]] = []

    def loss(self, step: int, rank: int, workers: int) -> Tensor:
        """Loss of every `workers`-th sample of a step's batch, from number `rank` on."""
        raise NotImplementedError

    def start(self, weights: Path) -> None:
        """Begin with exported weights; the optimizer begins anew."""
        raise ValueError(f"This model cannot start from exported weights. Got {weights}.")

    def meta(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        known = {"step": self.step, "samples": self.samples, "curve": self.curve}
        known["start"] = self.start_from
        return {**known, "settings": asdict(self.settings)}

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Take back what `meta` gave."""
        self.step = meta["step"]
        self.samples = meta.get("samples", self.step * self.settings.batch)
        self.curve = [tuple(row) for row in meta.get("curve", ())]
        self.start_from = meta.get("start")

    def save(self, folder: Path) -> None:
        """Write modules, averages and optimizer."""
        tensors = checkpoint.prefixed("optimizer", checkpoint.optimizer_state(self.optimizer))
        for name, module in self.modules.items():
            tensors |= checkpoint.prefixed(name, module.state_dict())
        for name, average in self.averages.items():
            tensors |= checkpoint.prefixed(name, average.state())
        checkpoint.save_state(folder, tensors, self.meta())

    def load(self, folder: Path) -> bool:
        """Continue from the checkpoint in `folder`; False where there is none."""
        found = checkpoint.load_state(folder)
        if found is None:
            return False
        tensors, meta = found
        self.restore(meta)
        for name, module in self.modules.items():
            module.load_state_dict(checkpoint.subset(tensors, name))
        for name, average in self.averages.items():
            average.load(checkpoint.subset(tensors, name))
        checkpoint.load_optimizer(self.optimizer, checkpoint.subset(tensors, "optimizer"))
        return True

    def update(self, workers: GradientWorkers) -> float:
        """One step; returns its loss."""
        s = self.settings
        rate = learning_rate(self.step, s.steps, s.lr, s.decay_share, s.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = workers.backward(self.step)
        nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.optimizer.step()
        self.step += 1
        self.samples += s.batch
        for average in self.averages.values():
            average.update(self.samples // s.batch)
        return loss

    def point(self, progress: Progress) -> tuple[Any, ...]:
        """What the curve says of a report."""
        return (progress.step, round(progress.loss, 5))

    def train(self, folder: Path, weights: Path | None = None) -> Iterator[Progress]:
        """Train up to the last step, resuming from the checkpoint in `folder`.

        Args:
            folder: Where checkpoints are kept.
            weights: Exported weights to start from where there is no checkpoint.
        """
        if not self.load(folder) and weights is not None:
            self.start(weights)
        losses: list[float] = []
        first, steps, begun = self.step, self.settings.steps, time.monotonic()
        saved = begun
        with GradientWorkers(self.parameters, self.loss, self.settings.workers) as workers:
            while self.step < steps:
                losses.append(self.update(workers))
                now = time.monotonic()
                if len(losses) == REPORT_EVERY or self.step == steps:
                    pace = (now - begun) / (self.step - first)
                    progress = Progress(self.step, sum(losses) / len(losses), pace)
                    self.curve.append(self.point(progress))
                    losses = []
                    yield progress
                if now - saved > self.settings.save_every_s:
                    self.save(folder)
                    saved = time.monotonic()
        self.save(folder)


def learning_rate(step: int, steps: int, peak: float, decay_share: float, warm_up: int) -> float:
    """Linear warm-up, constant, linear fall to 2 % over the last `decay_share` of the steps.

    >>> learning_rate(500, 1000, 1.0, 0.3, 200)
    1.0
    """
    left = (steps - step) / max(1.0, decay_share * steps)
    return peak * min(1.0, (step + 1) / warm_up, max(LEAST_RATE, left))
