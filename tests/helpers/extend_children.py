"""What the child processes of the tests of growth and merging run."""

from __future__ import annotations

from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from synthgen import jobs
from synthgen.config import Config
from synthgen.diffusion.backbones import load_backbone


def extend(config: Config, out: Path, shards: int, ready: Event) -> None:
    """Extend a dataset; ``ready`` is set once the model is loaded."""
    torch.set_num_threads(1)
    load_backbone(config.model)
    ready.set()
    jobs.extend(out, shards)


def merge(sources: list[Path], out: Path, ready: Event) -> None:
    """Merge datasets."""
    torch.set_num_threads(1)
    ready.set()
    jobs.merge(sources, out)
