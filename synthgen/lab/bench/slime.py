"""What learning parts takes at full size: memory of one step on SD 2.1, by construction.

A step of `synthgen.oneshot` is made with tensors that have shapes and no values (PyTorch's fake
tensors), on a UNet of SD 2.1-base, and the bytes of all that are alive are added up: no weights
are needed, no minute of arithmetic, and no allocator's rounding is in the figure. The reference
is the same step in which whole maps of all self-attention layers are built, as in a plain reading
of eq. 5 and 6.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from synthgen.diffusion.probabilities import split_heads
from synthgen.lab.bench.capture import SD21_UNET
from synthgen.oneshot import attending, slime
from synthgen.oneshot.attending import ClassReader
from synthgen.oneshot.learn import trainable
from synthgen.oneshot.parts import place_parts
from synthgen.oneshot.settings import PartSettings
from synthgen.oneshot.slime import Projected, slime_losses

CLASSES, TOKENS, LATENTS = 6, 77, 64  # car: five parts and the background, at 512 x 512 px


class AliveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of storages while they are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and hold what it makes."""
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.hold(tensor)
        return out


def bench_slime(quick: bool = False) -> dict[str, Any]:
    """Peak memory in GB of one step at 512 x 512 px, UNet included, by precision.

    Args:
        quick: A small UNet: shows that it runs.

    Returns:
        Of float32 and float16: ``weights_gb`` of the UNet, ``peak_gb`` of a step, the same with
        checkpointed blocks, and with whole self-attention maps.
    """
    size = {"block_out_channels": (32, 64, 64, 64)} if quick else {}
    result: dict[str, Any] = {}
    for dtype in (torch.float32, torch.float16):
        rows = {
            "peak_gb": step_peak(dtype, size),
            "peak_checkpointed_gb": step_peak(dtype, size, checkpointing=True),
            "peak_whole_maps_gb": step_peak(dtype, size, accumulate=_whole_maps),
        }
        weights = next(iter(rows.values()))[0]
        result[str(dtype).removeprefix("torch.")] = {
            "weights_gb": weights / 1e9,
            **{name: peak / 1e9 for name, (_, peak) in rows.items()},
        }
    return result


def step_peak(
    dtype: torch.dtype,
    changes: Mapping[str, Any],
    checkpointing: bool = False,
    accumulate: Callable[..., Tensor] | None = None,
) -> tuple[int, int]:
    """Bytes of the UNet's weights, and of all tensors at the fullest moment of a step."""
    with FakeTensorMode(), AliveBytes() as alive:
        torch.set_default_dtype(dtype)
        try:
            unet = UNet2DConditionModel(**{**SD21_UNET, **changes}).requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)
        alive.now = 0  # what the layers' own initialization left
        for parameter in unet.parameters():
            alive.now += parameter.nbytes
        weights = alive.peak = alive.now
        pipe = SimpleNamespace(
            unet=unet,
            text_encoder=None,
            scheduler=diffusers.DDIMScheduler(),
            tokenizer=SimpleNamespace(model_max_length=TOKENS),
        )
        reader = ClassReader(pipe, PartSettings())
        features = unet.config.cross_attention_dim
        embeddings = torch.zeros(CLASSES - 1, features).requires_grad_()
        latents = torch.zeros(1, 4, LATENTS, LATENTS, dtype=dtype)
        with trainable(unet, checkpointing), _accumulating(accumulate):
            states = place_parts(torch.zeros(1, TOKENS, features), embeddings)
            seen = reader(latents, 50, [0], states, CLASSES)
            mask = torch.zeros(1, LATENTS, LATENTS, dtype=torch.long)
            entropy, squares = slime_losses(seen.cross, seen.was, mask)
            loss = entropy + squares + F.mse_loss(seen.output.float(), seen.target.float())
            torch.autograd.grad(loss, [embeddings])
    return weights, alive.peak


@contextmanager
def _accumulating(accumulate: Callable[..., Tensor] | None) -> Iterator[None]:
    """Put another way to make WAS maps in place of ours."""
    with ExitStack() as undone:
        if accumulate is not None:
            undone.callback(setattr, attending, "was_maps", slime.was_maps)
            setattr(attending, "was_maps", accumulate)  # noqa: B010
        yield


def _whole_maps(cross: Tensor, layers: list[Projected]) -> Tensor:
    """Eq. 5 and 6 as they are written."""
    maps = []
    for layer in layers:
        query, key = (
            split_heads(states.float(), layer.heads) for states in (layer.query, layer.key)
        )
        maps.append((query @ key.mT * layer.scale).softmax(-1).mean(1))
    grid = layers[0].grid
    resized = F.interpolate(cross, size=grid, mode="bilinear", align_corners=False)
    return (resized.flatten(2) @ torch.stack(maps).mean(0)).reshape(*cross.shape[:2], *grid)
