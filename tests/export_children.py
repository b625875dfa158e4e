"""What the child processes of the exports' tests run; imported once, by the server of forks."""

from __future__ import annotations

import sys
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import torch

from synthgen.export.export import export


def finish_export(data: Path, out: Path, name: str, ready: Event) -> None:
    """Export or finish the export; ``ready`` is set once everything is imported."""
    torch.set_num_threads(1)
    ready.set()
    export(data, out, name, split="0.5/0.5")


def race_export(data: Path, out: Path, name: str, go: Barrier) -> None:
    """Export once all are ready; exit code 3 where the target is another's."""
    torch.set_num_threads(1)
    go.wait(300)
    try:
        export(data, out, name, split="0.5/0.5")
    except (RuntimeError, ValueError) as error:
        told = "one writer at a time" in str(error) or "begun with format" in str(error)
        sys.exit(3 if told else 1)
