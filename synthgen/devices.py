"""Where torch computes: the device that a setting names, and threads of the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


def pick_device(name: str, setting: str, gpus: Sequence[str] = ("cuda", "mps")) -> torch.device:
    """The device of that name; auto takes the first of ``gpus`` that is there, else the CPU.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        setting: What the error calls it.
        gpus: What auto may take.

    Raises:
        ValueError: If this machine has none of that name.

    >>> pick_device("cpu", "model.device")
    device(type='cpu')
    """
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next((kind for kind in gpus if present[kind]), "cpu")
    if not present.get(name.partition(":")[0]):
        raise ValueError(f"{setting} must be present on this machine. Got {name!r:.40}; use auto.")
    return torch.device(name)


@contextmanager
def one_thread() -> Iterator[None]:
    """In the block, torch computes on one thread where this thread asks; others keep theirs."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_cores(device: torch.device) -> int:
    """Cores of this process that drawing on a device leaves idle: all but its threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    busy = torch.get_num_threads() if device.type == "cpu" else 1
    return max(0, (cores or 1) - busy)
