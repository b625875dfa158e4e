"""Planted samples: head outputs whose regions are known, each head separating one pair only."""

from __future__ import annotations

import numpy as np
import torch

from synthgen.config import FeatureConfig
from synthgen.lab.bench.fake_model import fake_heads, regions
from synthgen.types import HeadFeatures, Prompt, Sample, SelfMap

GRID = 16
PIXELS = 64
AS_PLANTED = FeatureConfig(normalization="none")
"""One component of each head says something; the others are noise, which is not for scaling up."""


def quadrants(size: int) -> np.ndarray:
    """Four regions, 0..3."""
    return regions(size, size, size // 2, size // 2)


def planted_sample(noise: float = 0.02, seed: int = 0) -> Sample:
    """Eight heads of the planted backbone; an image of one color, which gives nothing away."""
    features = fake_heads(quadrants(GRID), noise, torch.Generator().manual_seed(seed))
    image = np.full((PIXELS, PIXELS, 3), 127, dtype=np.uint8)
    alike = torch.from_numpy(quadrants(GRID).reshape(-1, 1) == quadrants(GRID).flatten())
    self_map = SelfMap((4.0 * alike).softmax(1), (GRID, GRID))
    return Sample(Prompt("planted", "four quadrants"), seed, image, features, self_map=self_map)


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
    places = grids[-1][0] * grids[-1][1]
    looks = torch.randn(places, places, generator=generator).softmax(1)
    return Sample(
        Prompt("random", "noise"),
        seed,
        image,
        HeadFeatures(values, shapes),
        self_map=SelfMap(looks, grids[-1]),
    )
