"""How much memory this process holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_below(num_bytes: int) -> Iterator[None]:
    """The process's highest resident memory inside the block, over that before it."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    yield
    assert _status("VmHWM") - before < num_bytes


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) * 1024
