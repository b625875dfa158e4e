"""Peak memory: of a GPU's allocator, or resident memory of this process as Linux counts it."""

from __future__ import annotations

from pathlib import Path

import torch


def reset_peak(on_gpu: bool = False) -> int:
    """Start a new measurement of peak memory; returns what is in use now, 0 where unknown."""
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
    except OSError:
        return 0
    return _status_bytes("VmRSS")


def peak_bytes(on_gpu: bool = False) -> int:
    """Most memory in use since `reset_peak`, or since this process began; 0 where unknown."""
    return torch.cuda.max_memory_allocated() if on_gpu else _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)
