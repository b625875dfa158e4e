"""What the child processes of the exports' tests run; imported once, by the server of forks."""

from __future__ import annotations

from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from synthgen.export.export import export


def finish_export(data: Path, out: Path, name: str, ready: Event) -> None:
    """Export or finish the export; ``ready`` is set once everything is imported."""
    torch.set_num_threads(1)
    ready.set()
    export(data, out, name, split="0.5/0.5")
