"""A backbone without a network: samples whose regions are known, a millisecond each.

Everything behind the model is real (segmentation, encoding, shards, markers, flow), so that what
is told about thousands of shards, about kills and about full disks needs no UNet to be told.
Name it as ``model.card=synthgen.lab.bench.fake_model:load_fake``.

Four regions meet at a point, and each head separates one pair of them only: per-head features
recover all regions, their mean over the heads none (BL's claim in checkable form).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import DDIMScheduler
from jaxtyping import UInt8

from synthgen.config import GenerationConfig, ModelConfig
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.cards import Card
from synthgen.types import Failure, HeadFeatures, Prompt, Sample

CARD = "synthgen.lab.bench.fake_model:load_fake"
SIDE = 32  # pixels of an image whose size is not asked for
PATCH = 4  # pixels per grid node
DIM = 8  # of a head
NOISE = 0.02  # standard deviation beside head outputs of 1
PAIRS = ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (2, 0), (1, 3), (3, 1))
"""Regions that each head separates. Each region is as often first as second: averaged over the
heads, all have the same value."""


def regions(height: int, width: int, row: int, column: int) -> UInt8[np.ndarray, "height width"]:
    """Four regions, 0 to 3, that meet at a row and a column.

    >>> regions(2, 3, 1, 1).tolist()
    [[0, 1, 1], [2, 3, 3]]
    """
    below, right = np.arange(height) >= row, np.arange(width) >= column
    return (below[:, None] * 2 + right[None, :]).astype(np.uint8)


def fake_heads(
    region: UInt8[np.ndarray, "height width"], noise: float, generator: torch.Generator
) -> HeadFeatures:
    """One layer of eight heads: +u on the first region of a pair, -u on the second, else 0.

    Args:
        region: Regions 0 to 3 on the grid.
        noise: Standard deviation of what is added.
        generator: Of the noise.
    """
    flat = torch.from_numpy(region.reshape(-1)).long()
    u = torch.zeros(DIM)
    u[0] = 1.0
    signs = [(flat == first).float() - (flat == second).float() for first, second in PAIRS]
    values = torch.stack([sign[:, None] * u for sign in signs])
    assert values.mean(0).abs().max() == 0
    values = values + noise * torch.randn(values.shape, generator=generator)
    height, width = region.shape
    return HeadFeatures({"up.0": values}, {"up.0": (height, width)})


def draw(
    prompts: Sequence[Prompt], seeds: Sequence[int], generation: GenerationConfig
) -> list[Sample | Failure]:
    """One sample per prompt and seed; a seed fixes where the regions meet, and their colors."""
    height, width = generation.height or SIDE, generation.width or SIDE
    return [
        _sample(prompt, seed, height, width) for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def load_fake(_config: ModelConfig) -> Backbone:
    """The backbone, as a configuration names it."""
    return Backbone(
        pipeline=SimpleNamespace(scheduler=DDIMScheduler()),
        card=Card(name="fake", height=SIDE, width=SIDE, num_inference_steps=1),
        identity={"id": "fake", "revision": None, "sha256": {}},
        device=torch.device("cpu"),
        dtype=torch.float32,
        draw=draw,
    )


def _sample(prompt: Prompt, seed: int, height: int, width: int) -> Sample:
    generator = torch.Generator("cpu").manual_seed(seed)
    grid = (height // PATCH, width // PATCH)
    row, column = (int(torch.randint(2, side - 1, (), generator=generator)) for side in grid)
    colors = torch.randint(0, 256, (4, 3), dtype=torch.uint8, generator=generator).numpy()
    region = regions(*grid, row, column)
    image = colors[region].repeat(PATCH, axis=0).repeat(PATCH, axis=1)
    return Sample(prompt, seed, image, fake_heads(region, NOISE, generator))
