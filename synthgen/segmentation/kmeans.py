"""Exact k-means at image resolution, for all k and images at once (BL section 4.1).

The features of a pixel are the bilinearly upsampled grids, concatenated. Lloyd's iteration needs
to know of them only the nearest centroid of each pixel and the sum of each cluster's features;
a `lloyd.Engine` answers both without building the features:

- `knots.KnotEngine` opens only the cells that a border crosses; its cost hardly depends on the
  resolution. Needs bilinear features and sides divisible by twice every grid side.
- `implicit.ImplicitEngine` upsamples scores, not features; any size, nearest too.

It starts from the clusters of Ward's linkage (`seeding`), which are near its end. Most updates are
made on a lattice of a few thousand points, whose iterations cost a fraction: where k-means stands
still there, it nearly does on the pixels. Lloyd goes on from there at image resolution, exactly,
until it stands still.

Decided here: features are centered (shifts change no label and cost accuracy in float32); a k
stands still once an update lowers its inertia by at most ``tolerance`` times that of k = 1
(scikit-learn asks for small shifts of the centroids, which is the stricter the more features there
are: in 840 dimensions its 1e-4 goes on for twice as many updates, which gain 0.05 % in most);
the limit of 300 updates bounds the work, and images that reach it are counted; labels belong to
the final centroids. An empty cluster keeps its centroid: it began with places of the image, so it
is empty only among pixels that are nearly equal, where any other start would be as empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from synthgen.segmentation.implicit import ImplicitEngine
from synthgen.segmentation.interpolation import Interpolant, Interpolation
from synthgen.segmentation.knots import KnotEngine
from synthgen.segmentation.lloyd import Engine, inertia, lloyd
from synthgen.segmentation.seeding import first_centroids

KS = (2, 5, 6, 10, 20)  # BL section 4.1

DENSITY = 3 / 2
"""Points of the lattice per node of the finest grid, along each axis: 96 x 96 for grids of 64."""


@dataclass(frozen=True, slots=True)
class Clustering:
    """One image, clustered at every k.

    Args:
        ks: Numbers of clusters, in the order of everything below.
        labels: Cluster of each pixel, 0..k-1.
        centroids: Per k the centroids, in the features' own origin.
        inertia: Per k the sum of squared distances of the pixels to their centroids.
        iterations: Per k the updates made, those on the lattice among them.
        converged: Whether all of those stood still before ``max_iterations``.
    """

    ks: tuple[int, ...]
    labels: UInt8[np.ndarray, "k height width"]
    centroids: tuple[Float[Tensor, "_cluster feature"], ...]
    inertia: tuple[float, ...]
    iterations: tuple[int, ...]
    converged: bool


def cluster(
    blocks: Sequence[Float[Tensor, "_grid_height _grid_width _feature"]],
    size: tuple[int, int],
    ks: Sequence[int] = KS,
    **settings: Any,
) -> Clustering:
    """`cluster_batch` of one image."""
    return cluster_batch([block[None] for block in blocks], size, ks, **settings)[0]


def cluster_batch(
    blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
    size: tuple[int, int],
    ks: Sequence[int] = KS,
    *,
    max_iterations: int = 300,
    tolerance: float = 2e-5,
    interpolation: Interpolation = "bilinear",
) -> list[Clustering]:
    """Cluster the pixels of images of one size at every k; each as it would be alone, up to
    rounding. Grids may have any sizes; they are upsampled and concatenated in thought.

    Raises:
        ValueError: For features that are not finite.
    """
    if not all(bool(block.sum(dtype=torch.float64).isfinite()) for block in blocks):
        raise ValueError("Features must be finite. Got NaN or infinity: reject the sample.")
    ks = tuple(ks)
    blocks, mean, energy = _center(blocks, size, interpolation)
    start = first_centroids(blocks, size, ks, interpolation)
    lattice = ImplicitEngine.of(blocks, size, interpolation, lattice_size(blocks, size))
    coarse = lloyd(lattice, start, ks, max_iterations, tolerance * energy)
    engine = make_engine(blocks, size, interpolation)
    solution = lloyd(engine, coarse.centroids, ks, max_iterations, tolerance * energy)
    costs, final = inertia(solution, energy, ks), solution.final
    assert final.labels is not None
    return [
        Clustering(
            ks=ks,
            labels=final.labels[image].cpu().numpy(),
            centroids=torch.split(solution.centroids[image] + mean[image], list(ks)),
            inertia=tuple(costs[image].tolist()),
            iterations=tuple((coarse.iterations + solution.iterations)[image].tolist()),
            converged=bool(solution.converged[image].all()),
        )
        for image in range(len(mean))
    ]


def lattice_size(
    blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
    size: tuple[int, int],
) -> tuple[int, int]:
    """Rows and columns of the lattice: `DENSITY` of the finest grid, at most every other pixel."""
    finest = (max(block.shape[1 + axis] for block in blocks) for axis in (0, 1))
    rows, columns = (
        max(1, min(int(DENSITY * grid), pixels // 2))
        for grid, pixels in zip(finest, size, strict=True)
    )
    return rows, columns


def make_engine(
    blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
) -> Engine:
    """The knot engine where the sizes divide, else the implicit one."""
    knots = KnotEngine.of(blocks, size) if interpolation == "bilinear" else None
    return knots or ImplicitEngine.of(blocks, size, interpolation)


def _center(
    blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
    size: tuple[int, int],
    interpolation: Interpolation,
) -> tuple[list[Tensor], Float[Tensor, "batch feature"], Float[Tensor, " batch"]]:
    """Blocks whose features have zero mean over the pixels, those means, and the energy left."""
    blocks = [block if block.dtype == torch.float64 else block.float() for block in blocks]
    mean = Interpolant.at(blocks, size, kind=interpolation).totals() / (size[0] * size[1])
    parts = torch.split(mean[:, None, None], [block.shape[-1] for block in blocks], dim=-1)
    centered = [block - part for block, part in zip(blocks, parts, strict=True)]
    return centered, mean, Interpolant.at(centered, size, kind=interpolation).energy()
