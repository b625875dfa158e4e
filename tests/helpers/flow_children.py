"""Children that run flows against a server; importing this makes them start with Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.synchronize import Event
from pathlib import Path

import children
import torch
from prefect import tags
from prefect_server import used

from synthgen.config import Config
from synthgen.diffusion.backbones import load_backbone
from synthgen.flows.generate import generate

children.PRELOADED.append(__name__)


def finish_flow(
    config: Config, out: Path, environment: Mapping[str, str], workers: int, ready: Event
) -> None:
    """Make or finish the dataset by the flow, as a client of a server."""
    torch.set_num_threads(1)
    load_backbone(config.model)
    with used(environment), tags("synthgen"):  # as a deployment's run
        ready.set()
        generate(config, str(out), workers=workers)
