"""Planted samples: head outputs whose regions are known, each head separating one pair only."""

from __future__ import annotations

import numpy as np
import torch

from synthgen.types import HeadFeatures, Prompt, Sample

GRID, DIM = 16, 8
PIXELS = 64


def quadrants(size: int) -> np.ndarray:
    """Four regions, 0..3."""
    half = np.arange(size) >= size // 2
    return (half[:, None] * 2 + half[None, :]).astype(np.uint8)


def planted_sample(noise: float = 0.02, seed: int = 0) -> Sample:
    """Six heads, one per pair of the four quadrants, whose mean over the heads is constant.

    Head (i, j) is +u on region i, -u on region j, 0 elsewhere. The signs are chosen so that each
    region meets as many + as - weights: averaged over the heads, every region has the same value.
    """
    generator = torch.Generator().manual_seed(seed)
    region = torch.from_numpy(quadrants(GRID).reshape(-1)).long()
    u = torch.zeros(DIM)
    u[0] = 1.0
    heads = []
    for i, j in [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (2, 0), (1, 3), (3, 1)]:
        sign = (region == i).float() - (region == j).float()
        heads.append(sign[:, None] * u)
    values = torch.stack(heads)
    assert values.mean(0).abs().max() == 0
    values = values + noise * torch.randn(values.shape, generator=generator)
    image = np.full((PIXELS, PIXELS, 3), 127, dtype=np.uint8)
    features = HeadFeatures({"up.0": values}, {"up.0": (GRID, GRID)})
    return Sample(Prompt("planted", "four quadrants"), seed, image, features)


def random_sample(
    grids: tuple[tuple[int, int], ...] = ((4, 4), (8, 8)),
    size: tuple[int, int] = (32, 32),
    heads: int = 2,
    dim: int = 8,
    seed: int = 0,
) -> Sample:
    """Random heads, two layers per grid, and a random image."""
    generator = torch.Generator().manual_seed(seed)
    values, shapes = {}, {}
    for grid in grids:
        for layer in range(2):
            name = f"up.{grid[0]}.{layer}"
            values[name] = torch.randn(heads, grid[0] * grid[1], dim, generator=generator)
            shapes[name] = grid
    image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator).numpy()
    return Sample(Prompt("random", "noise"), seed, image, HeadFeatures(values, shapes))
