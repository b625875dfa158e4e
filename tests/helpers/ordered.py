"""The fake backbone (`synthgen.lab.bench.fake_model`), which runs out of memory when ordered to.

The folder that ``ORDERS`` names may hold a file ``memory`` with a seed and a number: batches with
that seed must have no more samples than that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from cluster_children import ORDERS
from tiny_run import write_prompts

from synthgen.config import Config, GenerationConfig, ModelConfig, load
from synthgen.diffusion.backbones import Backbone
from synthgen.lab.bench.fake_model import draw, load_fake
from synthgen.types import Failure, Prompt, Sample

OVERRIDES = (
    *("model.card=ordered:load_ordered", "num=40", "dataset.shard_size=4"),
    *(
        "dataset.preview_every=8",
        "generation.batch_size=2",
        "generation.workers=2",
        "segmentation.clusters.ks=[2,3]",
    ),
    *("segmentation.clusters.max_iterations=8", "segmentation.features.components=2"),
)


def ordered_config(folder: Path, *overrides: str) -> Config:
    """Forty samples of the fake model in ten shards: about a second, when nothing happens."""
    prompts = write_prompts(folder / "prompts.jsonl")
    return load(overrides=[*OVERRIDES, f"prompts={prompts}", *overrides])


def load_ordered(config: ModelConfig) -> Backbone:
    """The backbone, as a configuration names it."""
    return replace(load_fake(config), draw=draw_as_ordered)


def draw_as_ordered(
    prompts: Sequence[Prompt], seeds: Sequence[int], generation: GenerationConfig
) -> list[Sample | Failure]:
    """Planted samples, if they fit."""
    order = Path(os.environ.get(ORDERS, os.devnull)) / "memory"
    if order.is_file():
        seed, most = map(int, order.read_text().split())
        if seed in seeds and len(seeds) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 TiB")
    return draw(prompts, seeds, generation)
