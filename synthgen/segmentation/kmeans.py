"""Exact k-means at image resolution, for all k, restarts and images at once (BL section 4.1).

The features of a pixel are the bilinearly upsampled grids, concatenated. Lloyd's iteration needs
to know of them only the nearest centroid of each pixel and the sum of each cluster's features;
a `lloyd.Engine` answers both without building the features:

- ``knot``: `knots.KnotEngine` opens only the cells that a border crosses; its cost hardly depends
  on the resolution. Needs bilinear features and sides divisible by twice every grid side.
- ``implicit``: `implicit.ImplicitEngine` upsamples scores, not features; any size, nearest too.
  ``knot`` falls back to it where the sizes do not divide.
- ``sklearn``: scikit-learn on the features in full; slow, large, the outside witness.

Decided here: features are centered (shifts change no label and cost accuracy in float32); a run
stops as in scikit-learn, once the squared shift of its centroids is at most ``tolerance`` times
the mean variance of the features (k = 20 has needed up to 82 updates; the limit of 300 bounds
the work, and images that reach it are counted); labels belong to the final centroids; the restart
of least inertia wins, the first of equals. An empty cluster keeps its centroid: it was seeded at a
pixel, so it is empty only among equal pixels, where any other seed would be as empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from synthgen.config import ClusterConfig
from synthgen.segmentation.explicit import sklearn_solve
from synthgen.segmentation.implicit import ImplicitEngine
from synthgen.segmentation.interpolation import Interpolant, Interpolation
from synthgen.segmentation.knots import KnotEngine
from synthgen.segmentation.lloyd import Engine, Runs, Solution, inertia, lloyd
from synthgen.segmentation.seeding import seed_runs


@dataclass(frozen=True, slots=True)
class Clustering:
    """One image, clustered at every k.

    Args:
        ks: Numbers of clusters, in the order of everything below.
        labels: Cluster of each pixel, 0..k-1.
        centroids: Per k the centroids, in the features' own origin.
        inertia: Per k the sum of squared distances of the pixels to their centroids.
        iterations: Per k the updates of the run that won.
        converged: Whether all of those stood still before ``max_iterations``.
        boundary_share: Mean over k of the share of knot cells that a border crosses; 0 where
            no knot grid was used.
    """

    ks: tuple[int, ...]
    labels: UInt8[np.ndarray, "k height width"]
    centroids: tuple[Float[Tensor, "_cluster feature"], ...]
    inertia: tuple[float, ...]
    iterations: tuple[int, ...]
    converged: bool
    boundary_share: float


def cluster(
    blocks: Sequence[Float[Tensor, "_grid_height _grid_width _feature"]],
    size: tuple[int, int],
    config: ClusterConfig,
    interpolation: Interpolation = "bilinear",
) -> Clustering:
    """Cluster the pixels of one image at every k of the configuration.

    Args:
        blocks: Features on grids of any sizes; they are upsampled and concatenated in thought.
        size: Height and width of the label maps.
        config: Numbers of clusters, solver, restarts, convergence, seed.
        interpolation: How grids become pixels.

    Raises:
        ValueError: For features that are not finite.
    """
    return cluster_batch([block[None] for block in blocks], size, config, interpolation)[0]


def cluster_batch(
    blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
    size: tuple[int, int],
    config: ClusterConfig,
    interpolation: Interpolation = "bilinear",
) -> list[Clustering]:
    """Cluster a batch of images of one size; each as `cluster` would alone, up to rounding."""
    if not all(bool(block.isfinite().all()) for block in blocks):
        raise ValueError("Features must be finite. Got NaN or infinity: reject the sample.")
    blocks, mean, energy = _center(blocks, size, interpolation)
    pixels = Interpolant.at(blocks, size, kind=interpolation)
    start = seed_runs(pixels, size, config.ks, config.restarts, config.seed)
    runs = tuple((k, config.restarts) for k in config.ks)
    if config.solver == "sklearn":
        solution = sklearn_solve(blocks, size, start, runs, config, interpolation)
    else:
        engine = make_engine(blocks, size, config.solver, interpolation)
        variance = energy / (size[0] * size[1] * start.shape[-1])
        solution = lloyd(engine, start, runs, config.max_iterations, config.tolerance * variance)
    costs = inertia(solution, energy, runs)
    return [_best(solution, costs, runs, mean, image) for image in range(len(mean))]


def make_engine(
    blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
    size: tuple[int, int],
    solver: str = "knot",
    interpolation: Interpolation = "bilinear",
) -> Engine:
    """The knot engine where it is asked for and the sizes divide, else the implicit one."""
    knots = (
        KnotEngine.of(blocks, size) if solver == "knot" and interpolation == "bilinear" else None
    )
    return knots or ImplicitEngine.of(blocks, size, interpolation)


def _center(
    blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
    size: tuple[int, int],
    interpolation: Interpolation,
) -> tuple[list[Tensor], Float[Tensor, "batch feature"], Float[Tensor, " batch"]]:
    """Blocks whose features have zero mean over the pixels, those means, and the energy left."""
    blocks = [block if block.dtype == torch.float64 else block.float() for block in blocks]
    totals, _ = Interpolant.at(blocks, size, kind=interpolation).moments()
    mean = totals / (size[0] * size[1])
    parts = torch.split(mean[:, None, None], [block.shape[-1] for block in blocks], dim=-1)
    centered = [block - part for block, part in zip(blocks, parts, strict=True)]
    _, energy = Interpolant.at(centered, size, kind=interpolation).moments()
    return centered, mean, energy


def _best(
    solution: Solution,
    costs: Float[Tensor, "batch run"],
    runs: Runs,
    mean: Float[Tensor, "batch feature"],
    image: int,
) -> Clustering:
    """The restart of least inertia of each k of one image."""
    assert solution.final.labels is not None
    winners, centroids, run, slot = [], [], 0, 0
    for k, count in runs:
        restart = int(costs[image, run : run + count].argmin())
        winners.append(run + restart)
        first = slot + restart * k
        centroids.append(solution.centroids[image, first : first + k] + mean[image])
        run, slot = run + count, slot + count * k
    return Clustering(
        ks=tuple(k for k, _ in runs),
        labels=solution.final.labels[image, winners].cpu().numpy(),
        centroids=tuple(centroids),
        inertia=tuple(costs[image, winners].tolist()),
        iterations=tuple(solution.iterations[image, winners].tolist()),
        converged=bool(solution.converged[image, winners].all()),
        boundary_share=float(solution.final.boundary[image, winners].mean()),
    )
