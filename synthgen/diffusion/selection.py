"""What is captured: which attention layers, on which grids, at which UNet calls; what it costs.

Decided before the model runs, from the modules' names and the true latent size, so that a
request that does not fit the memory budget fails before the first step. Captures are keyed by
the index of the UNet call, not by the timestep: PNDM calls the UNet twice at one timestep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from synthgen.config import CaptureConfig
from synthgen.registry import near_miss

_PARTS: dict[str, tuple[str, ...]] = {
    "up": ("up_blocks",),
    "down": ("down_blocks",),
    "mid": ("mid_block",),
    "both": ("down_blocks", "up_blocks"),
    "all": ("down_blocks", "mid_block", "up_blocks"),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block with a self-attention (``attn1``) and a cross-attention (``attn2``).

    Args:
        name: Module name of the self-attention, ``up_blocks.1.attentions.0...attn1``.
        heads: Number of heads.
        dim: Features per head (64 in SD 2.1).
        grid: (height, width) of its positions at the latent size asked for.
    """

    name: str
    heads: int
    dim: int
    grid: tuple[int, int]

    @property
    def cross_name(self) -> str:
        """Module name of the cross-attention of the same block."""
        return self.name.removesuffix("attn1") + "attn2"


def attention_layers(unet: Any, latent_size: tuple[int, int]) -> tuple[Layer, ...]:
    """All self-attention layers of a UNet in the order of its forward pass.

    A layer's grid follows from the down- and upsamplers before it: every downsampler halves the
    latent size, rounding up.

    Args:
        unet: A diffusers ``UNet2DConditionModel``.
        latent_size: (height, width) of the latents.
    """
    levels = _levels(unet)
    named = {n: m for n, m in unet.named_modules() if n.endswith(".attn1")}
    order = {part: rank for rank, part in enumerate(_PARTS["all"])}
    return tuple(
        Layer(
            name=name,
            heads=attn.heads,
            dim=attn.inner_dim // attn.heads,
            grid=_grid(latent_size, levels[_block(name)]),
        )
        for name, attn in sorted(named.items(), key=lambda item: order[item[0].split(".")[0]])
    )


def select_layers(layers: Sequence[Layer], capture: CaptureConfig) -> tuple[Layer, ...]:
    """The layers that ``capture.layers`` (None: up) and ``capture.grids`` ask for.

    Explicit names are module names or whole leading parts of them (``up_blocks.1``).

    Raises:
        ValueError: If a name matches no layer, or no layer is left.
    """
    asked = "up" if capture.layers is None else capture.layers
    wanted = _PARTS[asked] if isinstance(asked, str) else asked
    for name in wanted:
        if not isinstance(asked, str) and not any(_under(x.name, name) for x in layers):
            hint = near_miss(name, [layer.name for layer in layers])
            raise ValueError(
                "capture.layers must be up, down, both, mid, all or module names of "
                f"self-attention layers. Got {name!r}.{hint}"
            )
    chosen = tuple(x for x in layers if any(_under(x.name, name) for name in wanted))
    if capture.grids is None:
        return chosen
    kept = tuple(layer for layer in chosen if min(layer.grid) in capture.grids)
    if not kept:
        sides = sorted({min(layer.grid) for layer in chosen})
        raise ValueError(f"capture.grids must name grids among {sides}. Got {capture.grids}.")
    return kept


def call_groups(
    calls: Literal["last"] | tuple[float, ...] | int, num_calls: int
) -> tuple[tuple[int, ...], ...]:
    """Groups of UNet calls; each group is averaged into one capture.

    Args:
        calls: ``last``; fractions of the run, 0 the first call and 1 the last, each its own
            capture; or n, the mean of the last n.
        num_calls: UNet calls of the run (``len(scheduler.timesteps)``).

    Raises:
        ValueError: If more calls are asked for than the run has, or none.

    >>> call_groups("last", 51), call_groups(3, 51), call_groups((0.0, 0.5, 1.0), 51)
    (((50,),), ((48, 49, 50),), ((0,), (25,), (50,)))
    """
    if calls == "last":
        return ((num_calls - 1,),)
    if isinstance(calls, int):
        if calls > num_calls:
            raise ValueError(
                f"capture.calls must be at most {num_calls}, the UNet calls of this run. "
                f"Got {calls}; raise generation.num_inference_steps."
            )
        return (tuple(range(num_calls - calls, num_calls)),)
    if not calls:
        raise ValueError("capture.calls must name at least one call. Got ().")
    assert not isinstance(calls, str)
    indices = dict.fromkeys(round(fraction * (num_calls - 1)) for fraction in calls)
    return tuple((index,) for index in indices)


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """What one batch's recording is going to hold.

    Args:
        layers: Layers read.
        groups: UNet calls read, in groups that are averaged.
        num_calls: UNet calls of the run.
        batch_size: Images; a guided UNet batch has twice as many rows, [negative, positive].
        guided: Classifier-free guidance is on.
        rows: Half of the guided batch that is kept: cond, uncond or both.
        dtype: Of the kept head outputs.
        device: Where captures are kept; None where the model is.
    """

    layers: tuple[Layer, ...]
    groups: tuple[tuple[int, ...], ...]
    num_calls: int
    batch_size: int
    guided: bool
    rows: Literal["cond", "uncond", "both"]
    dtype: torch.dtype
    device: torch.device | None

    def __post_init__(self) -> None:
        if self.rows != "cond" and not self.guided:
            raise ValueError(
                f"capture.rows must be 'cond' without guidance. Got {self.rows!r}; raise "
                "generation.guidance_scale above 1."
            )

    @property
    def head_bytes(self) -> int:
        """Bytes of the head outputs; means over several calls are kept in float32."""
        values = sum(x.heads * x.dim * math.prod(x.grid) for x in self.layers)
        sizes = [4 if len(group) > 1 else self.dtype.itemsize for group in self.groups]
        return values * self.batch_size * sum(sizes) * (2 if self.rows == "both" else 1)

    def map_bytes(
        self, num_groups: int, self_maps: bool, pooled_grid: tuple[int, int] | None = None
    ) -> int:
        """Bytes of the token maps (one per token group) and self-attention maps, in float32."""
        positions = [math.prod(x.grid) for x in self.layers]
        per_image = sum(pos * (num_groups + (pos if self_maps else 0)) for pos in positions)
        pooled = 0 if pooled_grid is None else math.prod(pooled_grid) ** 2
        return 4 * (per_image + pooled) * self.batch_size


def plan_capture(
    unet: Any,
    capture: CaptureConfig,
    *,
    latent_size: tuple[int, int],
    num_calls: int,
    batch_size: int,
    guided: bool,
) -> CapturePlan:
    """Settle what is captured of a batch.

    Args:
        unet: A diffusers ``UNet2DConditionModel``.
        capture: The settings.
        latent_size: (height, width) of the latents.
        num_calls: UNet calls of the run: the number of the scheduler's timesteps.
        batch_size: Images.
        guided: Whether the UNet sees [negative, positive] rows.

    Raises:
        ValueError: For settings that this model or this run cannot satisfy.
    """
    return CapturePlan(
        layers=select_layers(attention_layers(unet, latent_size), capture),
        groups=call_groups(capture.calls, num_calls),
        num_calls=num_calls,
        batch_size=batch_size,
        guided=guided,
        rows=capture.rows,
        dtype=getattr(torch, capture.dtype),
        device=torch.device("cpu") if capture.device == "cpu" else None,
    )


def self_map_grid(layers: Sequence[Layer], side: int | None) -> tuple[int, int] | None:
    """The largest grid of the layers whose shorter side is at most ``side``; None for None.

    Where every grid is larger, the smallest is halved until it fits.

    >>> layers = [Layer("a", 1, 1, (64, 96)), Layer("b", 1, 1, (32, 48))]
    >>> self_map_grid(layers, 40), self_map_grid(layers, 16)
    ((32, 48), (16, 24))
    """
    if side is None:
        return None
    grids = sorted({layer.grid for layer in layers}, key=math.prod)
    fitting = [grid for grid in grids if min(grid) <= side]
    if fitting:
        return fitting[-1]
    height, width = grids[0]
    while min(height, width) > side:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return height, width


def check_budget(num_bytes: int, budget_mb: float) -> None:
    """Refuse a capture that would not fit.

    Raises:
        ValueError: If ``num_bytes`` is more than ``budget_mb`` million bytes.

    >>> check_budget(3_500_000, 2.0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: capture.memory_budget_mb must be at least 4. Got 2; raise it, ...
    """
    needed = num_bytes / 1e6
    if needed > budget_mb:
        raise ValueError(
            f"capture.memory_budget_mb must be at least {math.ceil(needed)}. Got {budget_mb:g}; "
            "raise it, lower generation.batch_size, keep fewer capture.layers, capture.grids or "
            "capture.calls, or set capture.dtype to float16."
        )


def _levels(unet: Any) -> dict[str, int]:
    """Number of halvings before each block."""
    levels: dict[str, int] = {}
    level = 0
    for index, block in enumerate(unet.down_blocks):
        levels[f"down_blocks.{index}"] = level
        level += len(getattr(block, "downsamplers", None) or ())
    levels["mid_block"] = level
    for index, block in enumerate(unet.up_blocks):
        levels[f"up_blocks.{index}"] = level
        level -= len(getattr(block, "upsamplers", None) or ())
    return levels


def _block(name: str) -> str:
    part, index, *_ = name.split(".")
    return part if part == "mid_block" else f"{part}.{index}"


def _grid(latent_size: tuple[int, int], level: int) -> tuple[int, int]:
    height, width = latent_size
    return math.ceil(height / 2**level), math.ceil(width / 2**level)


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")
