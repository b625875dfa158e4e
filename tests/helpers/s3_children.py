"""What a child process of the S3 tests runs."""

from __future__ import annotations

import os
from multiprocessing.synchronize import Event

import torch

from synthgen import jobs
from synthgen.config import Config
from synthgen.diffusion.backbones import load_backbone
from synthgen.storage import remote


def finish_remote(
    config: Config, url: str, environment: dict[str, str], part_bytes: int, ready: Event
) -> None:
    """Make or finish a dataset on a store, with the environment of its client."""
    os.environ.update(environment)
    remote.PART_BYTES = part_bytes
    torch.set_num_threads(1)
    load_backbone(config.model)
    ready.set()
    jobs.generate(config, url)
