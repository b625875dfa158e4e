"""The loop that every recipe runs: step, average the loss, report, save now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch.optim import Optimizer

REPORT_EVERY = 20
"""Steps between progress reports."""

WARM_UP = 200
"""Steps over which the learning rate rises, also after a resume without optimizer state."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands: step, mean loss since the last report, seconds per step."""

    step: int
    loss: float
    seconds_per_step: float


def learning_rate(
    step: int, steps: int, peak: float, decay_share: float, warm_up: int = WARM_UP
) -> float:
    """Linear warm-up, constant, linear fall to 2 % over the last `decay_share` of the steps.

    >>> learning_rate(500, 1000, 1.0, 0.3)
    1.0
    """
    left = (steps - step) / max(1.0, decay_share * steps)
    return peak * min(1.0, (step + 1) / warm_up, max(0.02, left))


def set_learning_rate(
    optimizer: Optimizer,
    step: int,
    steps: int,
    peak: float,
    decay_share: float,
    warm_up: int = WARM_UP,
) -> None:
    """Give an optimizer the `learning_rate` of a step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, steps, peak, decay_share, warm_up)


def run_steps(
    update: Callable[[int], float],
    save: Callable[[int], None],
    first: int,
    steps: int,
    save_every_s: float,
) -> Iterator[Progress]:
    """Run steps `first` to `steps`, saving every `save_every_s` seconds and at the end.

    Args:
        update: Does the step of the given index and returns its loss.
        save: Writes a checkpoint after the given number of steps.
        first: Steps done before.
        steps: Steps to reach.
        save_every_s: Seconds between checkpoints.
    """
    losses: list[float] = []
    begun = saved = time.monotonic()
    for step in range(first, steps):
        losses.append(update(step))
        now = time.monotonic()
        if len(losses) == REPORT_EVERY or step + 1 == steps:
            yield Progress(step + 1, sum(losses) / len(losses), (now - begun) / (step + 1 - first))
            losses = []
        if now - saved > save_every_s:
            save(step + 1)
            saved = time.monotonic()
    save(steps if steps > first else first)
