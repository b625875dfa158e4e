"""Lloyd's iteration over many k-means problems at once, whatever the way features are held.

A *run* is one k-means problem: one k, one restart, one image. Runs of one image are stacked along
a *slot* axis: the centroids of all of them, one after the other, runs of equal k side by side.
An `Engine` assigns pixels to the nearest centroid of each run. The nearest is the one of the
largest score ``x·c - |c|²/2``; of equal scores, the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Runs = tuple[tuple[int, int], ...]
"""Per distinct k, in the order of the slots: (k, how many runs have it)."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one pass over all pixels gives.

    Args:
        sums: Sum of the features of each cluster's pixels.
        counts: Pixels of each cluster.
        boundary: Per run the share of cells that a border crosses; zeros from an engine
            that has no cells.
        labels: The label maps, where they were asked for.
    """

    sums: Float[Tensor, "batch slot feature"]
    counts: Float[Tensor, "batch slot"]
    boundary: Float[Tensor, "batch run"]
    labels: UInt8[Tensor, "batch run height width"] | None = None


@runtime_checkable
class Engine(Protocol):
    """Anything that can assign every pixel of a batch of images to its nearest centroid."""

    def assign(
        self, centroids: Float[Tensor, "batch slot feature"], runs: Runs, paint: bool = False
    ) -> Assignment:
        """Assign all pixels; with ``paint`` also return the label maps."""
        ...


@dataclass(frozen=True, slots=True)
class Solution:
    """Where Lloyd stopped: centroids, iterations of each run, and the assignment to them.

    ``converged`` says of each run whether it stood still, or was stopped by its last iteration.
    """

    centroids: Float[Tensor, "batch slot feature"]
    iterations: Int[Tensor, "batch run"]
    converged: Bool[Tensor, "batch run"]
    final: Assignment


def spans(runs: Runs) -> Iterator[tuple[int, int, slice]]:
    """Each (k, count) with the slots it occupies.

    >>> list(spans(((2, 1), (3, 2))))
    [(2, 1, slice(0, 2, None)), (3, 2, slice(2, 8, None))]
    """
    start = 0
    for k, count in runs:
        yield k, count, slice(start, start + k * count)
        start += k * count


def run_of_slot(runs: Runs) -> Int[Tensor, " slot"]:
    """The run that each slot belongs to.

    >>> run_of_slot(((2, 1), (3, 2)))
    tensor([0, 0, 1, 1, 1, 2, 2, 2])
    """
    sizes = torch.tensor([k for k, count in runs for _ in range(count)])
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes)


def lloyd(
    engine: Engine,
    start: Float[Tensor, "batch slot feature"],
    runs: Runs,
    max_iterations: int,
    threshold: Float[Tensor, " batch"],
) -> Solution:
    """Lloyd's iteration from given centroids until every run stands still.

    Args:
        engine: Assigns pixels to centroids.
        start: Initial centroids of all runs.
        runs: How the slots are divided into runs.
        max_iterations: Updates at most.
        threshold: A run stops once the squared shift of its centroids, summed over clusters
            and features, is at most this. A run that stopped is never touched again.
    """
    owner = run_of_slot(runs).to(start.device)
    num_runs = sum(count for _, count in runs)
    moving = torch.ones(len(start), num_runs, dtype=torch.bool, device=start.device)
    iterations = torch.zeros(len(start), num_runs, dtype=torch.long, device=start.device)
    centroids = start
    for _ in range(max_iterations):
        kept = moving.any(0)
        slots = kept[owner]
        old = centroids[:, slots]
        new = _update(old, engine.assign(old, _restrict(runs, kept)))
        new = torch.where(moving[:, owner[slots], None], new, old)
        shift = sum_by_run((new - old).square().sum(-1), owner[slots], num_runs)
        centroids = centroids.clone()
        centroids[:, slots] = new
        iterations += moving
        moving = moving & (shift > threshold[:, None])
        if not moving.any():
            break
    return Solution(centroids, iterations, ~moving, engine.assign(centroids, runs, paint=True))


def inertia(
    solution: Solution, energy: Float[Tensor, " batch"], runs: Runs
) -> Float[Tensor, "batch run"]:
    """Squared distances of all pixels to their centroids: E - 2 c·S + n |c|², exact.

    Args:
        solution: Centroids c and the sums S and counts n of the assignment to them.
        energy: E, the squared norms of all pixels' features; features should be centered.
        runs: How the slots are divided into runs.
    """
    centroids, sums = solution.centroids.double(), solution.final.sums.double()
    per_slot = solution.final.counts.double() * centroids.square().sum(-1)
    per_slot = per_slot - 2 * (centroids * sums).sum(-1)
    owner = run_of_slot(runs).to(per_slot.device)
    return energy.double()[:, None] + sum_by_run(per_slot, owner, int(owner[-1]) + 1)


def sum_by_run(
    per_slot: Float[Tensor, "batch slot"], owner: Int[Tensor, " slot"], num_runs: int
) -> Float[Tensor, "batch run"]:
    """Sums over the slots of each run; a product, so that GPUs add in a fixed order too.

    >>> sum_by_run(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([0, 1, 1]), 2)
    tensor([[1., 6.]])
    """
    return per_slot @ torch.nn.functional.one_hot(owner, num_runs).to(per_slot)


def _update(
    old: Float[Tensor, "batch slot feature"], assignment: Assignment
) -> Float[Tensor, "batch slot feature"]:
    counts = assignment.counts[..., None]
    return torch.where(counts > 0, assignment.sums / counts.clamp(min=1), old)


def _restrict(runs: Runs, kept: Bool[Tensor, " run"]) -> Runs:
    flags = iter(kept.tolist())
    left = ((k, sum(next(flags) for _ in range(count))) for k, count in runs)
    return tuple((k, count) for k, count in left if count)
