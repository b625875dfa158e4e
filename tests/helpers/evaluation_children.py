"""The jobs of `tests/lab/test_evaluation.py` in processes of their own; imports no torch."""

from __future__ import annotations

import time
from pathlib import Path

from synthgen import progress


def note(folder: Path, name: str) -> None:
    """Report a step, and leave a file."""
    progress.report("step", step=0, steps=1)
    (folder / name).write_text("done")


def refuse(folder: Path) -> None:
    """Fail as a user's mistake does."""
    raise ValueError(f"{folder} must not be")


def wait_for_the_end(folder: Path) -> None:
    """Report until a stop is requested, then leave a file and stop."""
    (folder / "begun").write_text("")
    try:
        while True:
            progress.report("step", step=0, steps=1)
            time.sleep(0.02)
    except progress.Stopped:
        (folder / "stopped").write_text("")
        raise
