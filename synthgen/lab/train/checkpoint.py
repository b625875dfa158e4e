"""Training state on disk: tensors as safetensors, everything else as JSON, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save_state(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Replace the state in `folder`; a kill at any moment leaves the old or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"state-{meta['step']}.safetensors"
    contiguous = {name: t.detach().contiguous().clone() for name, t in tensors.items()}
    save_file(contiguous, folder / "state.part")
    (folder / "state.part").replace(fresh)
    (folder / "meta.json.part").write_text(json.dumps({**meta, "tensors": fresh.name}))
    (folder / "meta.json.part").replace(folder / "meta.json")
    for old in folder.glob("state-*.safetensors"):
        if old != fresh:
            old.unlink()


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and meta of the state in `folder`, or None where there is none."""
    if not (folder / "meta.json").exists():
        return None
    meta = json.loads((folder / "meta.json").read_text())
    return load_file(folder / meta["tensors"]), meta


def subset(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Tensors whose names start with `part` and a dot, without them."""
    start = f"{part}."
    return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}


def prefixed(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under names that start with `part` and a dot."""
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def require_state(folder: Path, recipe: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta of a recipe's checkpoint.

    Raises:
        FileNotFoundError: Where there is none, with the command that makes one.
    """
    found = load_state(folder)
    if found is None:
        raise FileNotFoundError(
            f"{folder} must hold a checkpoint. Got none; run `python -m synthgen.lab.train "
            f"{recipe} --steps N --work {folder.parent}` first."
        )
    return found


class Average:
    """Exponential moving average of a module's parameters, fp32.

    Args:
        module: The module to follow.
        decay: Largest decay; the first steps use (1 + n) / (10 + n).
    """

    def __init__(self, module: nn.Module, decay: float = 0.998):
        self.live = [p for p in module.parameters() if p.requires_grad]
        self.names = [n for n, p in module.named_parameters() if p.requires_grad]
        self.mean = [p.detach().clone() for p in self.live]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the live parameters after step number `step`."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.live], weight)

    def state(self) -> dict[str, Tensor]:
        """Averaged parameters by name."""
        return dict(zip(self.names, self.mean, strict=True))

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from averaged parameters."""
        for name, mean in zip(self.names, self.mean, strict=True):
            mean.copy_(state[name])


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts of an Adam optimizer, by parameter number."""
    return {
        f"{i}.{key}": value
        for i, moments in optimizer.state_dict()["state"].items()
        for key, value in moments.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave; nothing happens where it is empty."""
    if not state:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        number, key = name.split(".", 1)
        like = parameters[int(number)]
        if value.shape == like.shape:  # fused steps walk memory in the parameter's order
            value = torch.empty_like(like, requires_grad=False).copy_(value)
        moments.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
