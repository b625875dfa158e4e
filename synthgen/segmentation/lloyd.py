"""Lloyd's iteration over many k-means problems at once, whatever the way features are held.

The problems of one image, one for each k, are stacked along a *slot* axis: the centroids of all of
them, one after the other. An `Engine` assigns pixels to the nearest centroid of each k. The
nearest is the one of the largest score ``x·c - |c|²/2``; of equal scores, the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one pass over all pixels gives.

    Args:
        sums: Sum of the features of each cluster's pixels.
        counts: Pixels of each cluster.
        boundary: Per k the share of cells that a border crosses; zeros from an engine
            that has no cells.
        labels: The label maps, where they were asked for.
    """

    sums: Float[Tensor, "batch slot feature"]
    counts: Float[Tensor, "batch slot"]
    boundary: Float[Tensor, "batch k"]
    labels: UInt8[Tensor, "batch k height width"] | None = None


@runtime_checkable
class Engine(Protocol):
    """Anything that can assign every pixel of a batch of images to its nearest centroid."""

    def assign(
        self,
        centroids: Float[Tensor, "batch slot feature"],
        ks: tuple[int, ...],
        return_labels: bool = False,
    ) -> Assignment:
        """Assign all pixels."""
        ...


@dataclass(frozen=True, slots=True)
class Solution:
    """Where Lloyd stopped: centroids, iterations at each k, and the assignment to them.

    ``converged`` says of each k whether it stood still, or was stopped by its last iteration.
    """

    centroids: Float[Tensor, "batch slot feature"]
    iterations: Int[Tensor, "batch k"]
    converged: Bool[Tensor, "batch k"]
    final: Assignment


def spans(ks: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """Each k with the slots of its centroids.

    >>> list(spans((2, 3)))
    [(2, slice(0, 2, None)), (3, slice(2, 5, None))]
    """
    start = 0
    for k in ks:
        yield k, slice(start, start + k)
        start += k


def owners(ks: tuple[int, ...]) -> Int[Tensor, " slot"]:
    """The place among the ks that each slot belongs to.

    >>> owners((2, 3))
    tensor([0, 0, 1, 1, 1])
    """
    return torch.repeat_interleave(torch.arange(len(ks)), torch.tensor(ks))


def lloyd(
    engine: Engine,
    start: Float[Tensor, "batch slot feature"],
    ks: tuple[int, ...],
    max_iterations: int,
    threshold: Float[Tensor, " batch"],
) -> Solution:
    """Lloyd's iteration from given centroids until every k stands still.

    Args:
        engine: Assigns pixels to centroids.
        start: Initial centroids of all ks.
        ks: Numbers of clusters, in the order of the slots.
        max_iterations: Updates at most.
        threshold: A k stops once an update lowers its inertia by no more than this (the squared
            shifts of its centroids times their pixels). One that stopped is never touched again.
    """
    owner = owners(ks).to(start.device)
    moving = torch.ones(len(start), len(ks), dtype=torch.bool, device=start.device)
    iterations = torch.zeros(len(start), len(ks), dtype=torch.long, device=start.device)
    centroids = start
    for _ in range(max_iterations):
        kept = moving.any(0)
        slots = kept[owner]
        old = centroids[:, slots]
        left = tuple(k for k, one in zip(ks, kept.tolist(), strict=True) if one)
        assigned = engine.assign(old, left)
        new = torch.where(moving[:, owner[slots], None], _update(old, assigned), old)
        gains = assigned.counts * (new - old).square().sum(-1)
        gain = sum_by_owner(gains, owner[slots], len(ks))
        centroids = centroids.clone()
        centroids[:, slots] = new
        iterations += moving
        moving = moving & (gain > threshold[:, None])
        if not moving.any():
            break
    final = engine.assign(centroids, ks, return_labels=True)
    return Solution(centroids, iterations, ~moving, final)


def inertia(
    solution: Solution, energy: Float[Tensor, " batch"], ks: tuple[int, ...]
) -> Float[Tensor, "batch k"]:
    """Squared distances of all pixels to their centroids: E - 2 c·S + n |c|², exact.

    E is the sum of the squared norms of the pixels' features, which should be centered; S and n
    are sums and counts of the clusters.
    """
    centroids, sums = solution.centroids.double(), solution.final.sums.double()
    per_slot = solution.final.counts.double() * centroids.square().sum(-1)
    per_slot = per_slot - 2 * (centroids * sums).sum(-1)
    owner = owners(ks).to(per_slot.device)
    return energy.double()[:, None] + sum_by_owner(per_slot, owner, len(ks))


def sum_by_owner(
    per_slot: Float[Tensor, "batch slot"], owner: Int[Tensor, " slot"], num: int
) -> Float[Tensor, "batch k"]:
    """Sums over the slots of each k; a product, so that GPUs add in a fixed order too.

    >>> sum_by_owner(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([0, 1, 1]), 2)
    tensor([[1., 6.]])
    """
    return per_slot @ torch.nn.functional.one_hot(owner, num).to(per_slot)


def _update(
    old: Float[Tensor, "batch slot feature"], assignment: Assignment
) -> Float[Tensor, "batch slot feature"]:
    counts = assignment.counts[..., None]
    return torch.where(counts > 0, assignment.sums / counts.clamp(min=1), old)
