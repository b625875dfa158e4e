"""What the child processes of the labels' tests run; imported once, by the server of forks."""

from __future__ import annotations

from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from synthgen.config import LabelConfig
from synthgen.diffusion.backbones import load_backbone
from synthgen.jobs.identity import read_config
from synthgen.jobs.label import label
from synthgen.storage.publish import open_storage

SETTINGS = LabelConfig(method="clusters", presence=0.05, margin=0.001, background=0.05)


def finish_labels(out: Path, label_id: str, ready: Event) -> None:
    """Label or finish the labels; ``ready`` is set once the model is loaded."""
    torch.set_num_threads(1)
    load_backbone(read_config(open_storage(out)).model)
    ready.set()
    label(out, SETTINGS, label_id=label_id)
