"""Every job by name, in this process or as what a child process runs; imports all that they use.

``world`` is a folder with ``config.yaml`` (the fake model), ``photos.yaml`` (photographs), and the
finished datasets ``data`` and ``other`` of the tiny pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from synthgen import jobs
from synthgen.config import LabelConfig, load, load_audit
from synthgen.diffusion.backbones import load_backbone
from synthgen.jobs import export
from synthgen.progress import Progress, report

LABELS = LabelConfig(method="clusters", presence=0.05, margin=0.001, background=0.05)
HALVES = load_audit(
    ["auditor.name=halves:load_halves", "auditor.batch_size=1", "color_baseline=false"]
)

JOBS: Mapping[str, Callable[[Path, Path, Progress], Any]] = {
    "generate": lambda world, out, told: jobs.generate(
        load(world / "config.yaml"), out, progress=told
    ),
    "annotate": lambda world, out, told: jobs.generate(
        load(world / "photos.yaml"), out, progress=told
    ),
    "extend": lambda world, out, told: jobs.extend(out, 2, progress=told),
    "merge": lambda world, out, told: jobs.merge([world / "data", world / "other"], out, told),
    "label": lambda world, out, told: jobs.label(out, LABELS, label_id="a", progress=told),
    "audit": lambda world, out, told: jobs.audit(out, HALVES, "a", progress=told),
    "export": lambda world, out, told: export(
        world / "data", out, "coco", split="0.5/0.5", progress=told
    ),
}
BESIDE = ("extend", "label", "audit")
"""Jobs that begin with a dataset in their output."""


def run_job(name: str, world: Path, out: Path, ready: Event) -> None:
    """Do or finish a job; ``ready`` is set once its model is loaded."""
    torch.set_num_threads(1)
    files = {"generate": "config.yaml", "annotate": "photos.yaml"}
    config = load(world / files.get(name, "data/config.yaml"))
    if name in ("generate", "annotate", "extend", "label"):
        load_backbone(config.model)
    ready.set()
    JOBS[name](world, out, report)
