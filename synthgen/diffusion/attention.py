"""Recording attention while a UNet runs, by hooks that change nothing.

The datum is the per-head attention output ``softmax(QK^T / sqrt(d)) V`` before the heads are
concatenated and projected (BL section 3). A forward pre-hook on ``attn1.to_out[0]`` is handed
exactly that, under every attention processor of diffusers, so no processor is replaced, nothing
is computed twice and the image is bit-identical with and without.

Probability maps exist nowhere in a fused kernel; they are computed, only where asked for, from
the outputs of ``to_q`` and ``to_k`` (``to_kv``, ``to_qkv`` after ``fuse_qkv_projections``), see
`probabilities`. Cross-attention can be read through a text other than the prompt: keys of that
text, queries of the real pass.

Register after LoRA weights are loaded: loading wraps the modules that are hooked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from synthgen.config import CaptureConfig
from synthgen.diffusion.probabilities import (
    Attribution,
    attention_probabilities,
    pooled_self_map,
    split_heads,
)
from synthgen.diffusion.selection import (
    CapturePlan,
    Layer,
    check_budget,
    plan_capture,
    self_map_grid,
)
from synthgen.types import HeadFeatures, SelfMap

Keep = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a recording really holds.

    Args:
        heads: Layer name to the number of heads captured.
        grids: Layer name to (height, width).
        calls: Indices of the UNet calls read, in groups that were averaged.
        num_calls: UNet calls seen.
        rows: Half of the guided batch that was kept.
    """

    heads: Mapping[str, int]
    grids: Mapping[str, tuple[int, int]]
    calls: tuple[tuple[int, ...], ...]
    num_calls: int
    rows: str

    def __str__(self) -> str:
        sides = sorted({f"{height}x{width}" for height, width in self.grids.values()})
        calls = ", ".join("+".join(map(str, group)) for group in self.calls)
        return (
            f"{sum(self.heads.values())} heads in {len(self.heads)} layers on grids "
            f"{', '.join(sides)}; UNet calls {calls} of {self.num_calls}; rows {self.rows}"
        )


@dataclass(slots=True)
class Recording:
    """Captures of one batch; complete once the UNet has made its calls."""

    plan: CapturePlan
    maps: CapturePlan
    num_calls: int = 0
    pooled_grid: tuple[int, int] | None = None
    _heads: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _token_maps: dict[str, Tensor] = field(default_factory=dict)
    _self_maps: dict[str, Tensor] = field(default_factory=dict)
    _pooled: dict[str, Tensor] = field(default_factory=dict)

    @property
    def coverage(self) -> Coverage:
        """Which layers, heads and UNet calls were captured."""
        seen = {name: value.shape[1] for (name, _), value in self._heads.items()}
        return Coverage(
            heads=seen,
            grids={x.name: x.grid for x in self.plan.layers if x.name in seen},
            calls=tuple(g for g in self.plan.groups if max(g) < self.num_calls),
            num_calls=self.num_calls,
            rows=self.plan.rows,
        )

    def features(self) -> tuple[HeadFeatures, ...]:
        """Head outputs per image; ``rows="both"`` gives the cond heads, then the uncond heads.

        Layers carry their module names, followed by ``@call`` where several calls were kept.

        Raises:
            RuntimeError: If the run was shorter than announced, or a layer was not reached (an
                attention processor passes ``to_out`` by).
        """
        self._check_complete()
        several = len(self.plan.groups) > 1
        values, grids = {}, {}
        for index, group in enumerate(self.plan.groups):
            for layer in self.plan.layers:
                key = f"{layer.name}@{group[-1]}" if several else layer.name
                values[key] = self._heads[layer.name, index].to(self.plan.dtype)
                grids[key] = layer.grid
        return tuple(
            HeadFeatures({key: value[image] for key, value in values.items()}, grids)
            for image in range(self.plan.batch_size)
        )

    def token_maps(self) -> dict[str, Float[Tensor, "batch group pos"]]:
        """Per layer: probability of each token group, mean over heads and calls, cond rows."""
        return {name: value.transpose(1, 2) for name, value in self._token_maps.items()}

    def self_maps(self) -> dict[str, Float[Tensor, "batch query key"]]:
        """Per layer: self-attention probabilities, mean over heads and calls, cond rows."""
        return dict(self._self_maps)

    def pooled_maps(self) -> tuple[SelfMap, ...]:
        """Per image the self-attention of all layers on one grid; empty if none was asked for."""
        if self.pooled_grid is None:
            return ()
        return tuple(SelfMap(values, self.pooled_grid) for values in self._pooled["all"])

    def keep_heads(self, layer: Layer, states: Float[Tensor, "row pos feature"]) -> None:
        """Keep a layer's concatenated head outputs if the present call is wanted."""
        for index, size in self._wanted(self.plan):
            self._check(layer, states)
            heads = split_heads(states.detach(), layer.heads)
            dtype = torch.float32 if size > 1 else self.plan.dtype
            self._add(self._heads, (layer.name, index), self._rows(heads), size, dtype)

    def keep_maps(
        self, store: dict[str, Tensor], layer: Layer, compute: Callable[[], Tensor]
    ) -> None:
        """Keep probability maps if the present call is wanted; computed only then."""
        for _, size in self._wanted(self.maps):
            weight = size * len(self.maps.groups)
            self._add(store, layer.name, compute(), weight, torch.float32)

    def keep_pooled(self, layer: Layer, compute: Callable[[], Tensor]) -> None:
        """Add a layer's map to the mean over layers, weighted by its grid's side (LS)."""
        total = sum(min(each.grid) for each in self.maps.layers)
        for _, size in self._wanted(self.maps):
            share = min(layer.grid) / (total * size * len(self.maps.groups))
            value = compute()
            value = value.to(self.maps.device or value.device)
            mean = self._pooled.setdefault("all", torch.zeros_like(value))
            mean.add_(value, alpha=share)

    def cond(self, states: Float[Tensor, "row ..."]) -> Float[Tensor, "batch ..."]:
        """The conditional rows: diffusers stacks [negative, positive], under guidance only."""
        return states.detach()[-self.plan.batch_size :]

    def _rows(self, heads: Tensor) -> Tensor:
        if not self.plan.guided:
            return heads
        uncond, cond = heads.chunk(2)
        if self.plan.rows == "both":
            return torch.cat([cond, uncond], dim=1)
        return cond if self.plan.rows == "cond" else uncond

    def _wanted(self, plan: CapturePlan) -> list[tuple[int, int]]:
        """Groups that the present UNet call belongs to, each with its size."""
        call = self.num_calls - 1
        return [(i, len(group)) for i, group in enumerate(plan.groups) if call in group]

    def _add(
        self, store: dict[Any, Tensor], key: Any, value: Tensor, size: int, dtype: torch.dtype
    ) -> None:
        """Copy a value (once, with its cast), or add its share to a mean over ``size`` calls."""
        device = self.plan.device or value.device
        if size == 1:
            store[key] = torch.empty(value.shape, dtype=dtype, device=device).copy_(value)
            return
        mean = store.setdefault(key, torch.zeros(value.shape, dtype=dtype, device=device))
        mean.add_(value.to(device), alpha=1 / size)

    def _check(self, layer: Layer, states: Tensor) -> None:
        rows = self.plan.batch_size * (2 if self.plan.guided else 1)
        expected = (rows, layer.grid[0] * layer.grid[1])
        assert tuple(states.shape[:2]) == expected, (layer.name, states.shape, expected)

    def _check_complete(self) -> None:
        wanted = {(x.name, i) for x in self.plan.layers for i in range(len(self.plan.groups))}
        missing = sorted({name for name, _ in wanted - set(self._heads)})
        if missing or self.num_calls < self.plan.num_calls:
            nothing = ", ".join(missing) or "later calls"
            raise RuntimeError(
                f"all selected layers must be reached in {self.plan.num_calls} UNet calls. Got "
                f"{self.num_calls} calls and nothing from {nothing}; check the attention "
                "processors and the number of steps."
            )


@contextmanager
def record(
    unet: Any,
    capture: CaptureConfig,
    *,
    latent_size: tuple[int, int],
    num_calls: int,
    batch_size: int,
    guided: bool,
    attribution: Attribution | None = None,
    self_maps: bool = False,
    maps: CaptureConfig | None = None,
    self_grid: int | None = None,
) -> Iterator[Recording]:
    """Record attention of the UNet calls made inside the ``with`` block; outputs do not change.

    Args:
        unet: A diffusers ``UNet2DConditionModel``, any attention processors, LoRA loaded.
        capture: Layers, grids, calls, rows, dtype, device, memory budget.
        latent_size: (height, width) of the latents.
        num_calls: UNet calls that will be made: the number of the scheduler's timesteps.
        batch_size: Images (half the UNet's rows under guidance).
        guided: Whether the UNet sees [negative, positive] rows.
        attribution: Cross-attention to keep.
        self_maps: Keep self-attention maps; of all captures these are the large ones.
        maps: Layers, grids and calls of the probability maps; None: those of ``capture``.
        self_grid: Also keep one self-attention map, the mean over layers on a grid whose shorter
            side is at most this.

    Raises:
        ValueError: Before anything runs, for settings that cannot be satisfied and for
            captures above the memory budget.
        RuntimeError: At a UNet call beyond ``num_calls``.
    """
    settle = partial(
        plan_capture,
        unet,
        latent_size=latent_size,
        num_calls=num_calls,
        batch_size=batch_size,
        guided=guided,
    )
    plan = settle(capture)
    chosen = plan if maps is None else settle(maps)
    recording = Recording(plan, chosen, pooled_grid=self_map_grid(chosen.layers, self_grid))
    num_groups = attribution.num_groups if attribution else 0
    num_bytes = plan.head_bytes + chosen.map_bytes(num_groups, self_maps, recording.pooled_grid)
    check_budget(num_bytes, capture.memory_budget_mb)
    with ExitStack() as handles:
        _count_calls(recording, unet, handles)
        for layer in plan.layers:
            _hook_heads(recording, layer, unet, handles)
        for layer in chosen.layers:
            if attribution and attribution.num_groups:
                _hook_cross(recording, layer, unet, attribution, handles)
            if self_maps:
                _hook_self(recording, layer, unet, handles)
            if recording.pooled_grid is not None:
                _hook_pooled(recording, layer, unet, handles)
        yield recording


def _count_calls(recording: Recording, unet: Any, handles: ExitStack) -> None:
    def count(*_: Any) -> None:
        announced = recording.plan.num_calls
        if recording.num_calls == announced:
            raise RuntimeError(
                f"num_calls must be the number of UNet calls that are made while recording. Got "
                f"{announced}, and one more call; what was kept is not of the calls asked for."
            )
        recording.num_calls += 1

    handles.callback(unet.register_forward_pre_hook(count).remove)


def _hook_heads(recording: Recording, layer: Layer, unet: Any, handles: ExitStack) -> None:
    def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
        recording.keep_heads(layer, inputs[0])

    attn = unet.get_submodule(layer.name)
    handles.callback(attn.to_out[0].register_forward_pre_hook(keep).remove)


def _hook_cross(
    recording: Recording,
    layer: Layer,
    unet: Any,
    attribution: Attribution,
    handles: ExitStack,
) -> None:
    """Cross-attention to the prompt, or to another text whose keys are computed here."""
    attn = unet.get_submodule(layer.cross_name)
    store = recording._token_maps

    def keep(query: Tensor, key: Tensor) -> None:
        def maps() -> Tensor:
            q, k = recording.cond(query), recording.cond(key)
            means = attribution.group_means(k.shape[1]).to(q.device)
            return attention_probabilities(q, k, attn.heads, attn.scale, means)

        recording.keep_maps(store, layer, maps)

    if attribution.text_states is None:
        _pair_projections(attn, keep, handles, "to_kv")
        return
    with torch.no_grad():
        key = attn.to_k(attribution.text_states)  # under LoRA its own layers are in there
    handles.callback(attn.to_q.register_forward_hook(lambda _, __, query: keep(query, key)).remove)


def _hook_self(recording: Recording, layer: Layer, unet: Any, handles: ExitStack) -> None:
    attn = unet.get_submodule(layer.name)
    store = recording._self_maps

    def keep(query: Tensor, key: Tensor) -> None:
        def maps() -> Tensor:
            q, k = recording.cond(query), recording.cond(key)
            return attention_probabilities(q, k, attn.heads, attn.scale)

        recording.keep_maps(store, layer, maps)

    _pair_projections(attn, keep, handles, "to_qkv")


def _hook_pooled(recording: Recording, layer: Layer, unet: Any, handles: ExitStack) -> None:
    attn = unet.get_submodule(layer.name)
    grid = recording.pooled_grid
    assert grid is not None

    def keep(query: Tensor, key: Tensor) -> None:
        def maps() -> Tensor:
            q, k = recording.cond(query), recording.cond(key)
            return pooled_self_map(q, k, attn.heads, attn.scale, layer.grid, grid)

        recording.keep_pooled(layer, maps)

    _pair_projections(attn, keep, handles, "to_qkv")


def _pair_projections(attn: Any, keep: Keep, handles: ExitStack, fused: str) -> None:
    """Hand each pass's query and key to ``keep``, from separate or from fused projections.

    Hooks stand on all projections the module has; only those that are used fire.
    """
    queries: list[Tensor] = []

    def on_query(_: Any, __: Any, query: Tensor) -> None:
        queries[:] = [query]

    def on_key(_: Any, __: Any, key: Tensor) -> None:
        keep(queries.pop(), key)

    def on_fused(_: Any, __: Any, states: Tensor) -> None:
        *query, key, _value = states.chunk(2 if fused == "to_kv" else 3, dim=-1)
        keep(query[0] if query else queries.pop(), key)

    hooks = {"to_q": on_query, "to_k": on_key, fused: on_fused}
    for name, hook in hooks.items():
        if hasattr(attn, name):
            handles.callback(getattr(attn, name).register_forward_hook(hook).remove)
