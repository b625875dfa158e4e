"""Where torch computes: the device that a setting names."""

from __future__ import annotations

from collections.abc import Sequence

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
