"""Recording attention while a UNet runs, by hooks that change nothing.

The datum is the per-head attention output ``softmax(QK^T / sqrt(d)) V`` before the heads are
concatenated and projected (BL section 3). A forward pre-hook on ``attn1.to_out[0]`` is handed
exactly that, under every attention processor of diffusers, so no processor is replaced, nothing
is computed twice and the image is bit-identical with and without.

Probability maps exist nowhere in a fused kernel; they are computed, only where asked for, from
the outputs of ``to_q`` and ``to_k`` (``to_kv``, ``to_qkv`` after ``fuse_qkv_projections``), see
`probabilities`. Cross-attention can be read through a text other than the prompt: keys of that
text, queries of the real pass.

What a run is (latent grid, batch, guidance, number of calls) is inferred at its first UNet call,
before anything is computed; a call that does not fit is an error. Register after LoRA weights are
loaded: loading wraps the modules that are hooked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from synthgen.diffusion.probabilities import Attribution
from synthgen.diffusion.recording import Recording, Run
from synthgen.diffusion.selection import (
    Calls,
    Layer,
    attention_layers,
    call_groups,
    check_budget,
    middle_sides,
    select_layers,
    self_map_grid,
)

Layers = Literal["up", "down", "both", "all", "mid"] | tuple[str, ...]


@contextmanager
def record(
    pipe: Any,
    layers: Layers | None = None,
    calls: Calls = "last",
    *,
    grids: Sequence[int] | None = None,
    dtype: str = "float32",
    device: str = "model",
    memory_budget_mb: float = 2048.0,
    map_layers: Layers | None = "all",
    map_grids: Sequence[int] | None = None,
    map_calls: Calls = "last",
    self_grid: int | None = None,
    self_layers: Layers | None = None,
    num_calls: int | None = None,
    guided: bool | None = None,
    attribution: Attribution | None = None,
) -> Iterator[Recording]:
    """Record the attention of one run of a pipeline; what it draws does not change.

    Args:
        pipe: Any diffusers pipeline with a UNet whose blocks attend to a text (Stable Diffusion 1
            and 2 and their relatives), or such a UNet; LoRA weights loaded.
        layers: up (None), down, both, mid, all, or module names: whose head outputs are kept.
        calls: ``last``, shares of the run (0 the first UNet call, 1 the last), or n: the mean of
            the last n.
        grids: Keep only layers whose grid's shorter side is listed.
        dtype: Of the kept head outputs.
        device: ``model`` or ``cpu``: where captures are kept.
        memory_budget_mb: Most that captures may take.
        map_layers: Layers whose attention to the words is kept, for `label`; None: none.
        map_grids: Their grids; None: those of 12 to 48.
        map_calls: Their UNet calls, averaged.
        self_grid: Also keep one self-attention map, the mean over layers on a grid whose shorter
            side is at most this (32 in Dataset Diffusion, 64 in DiffSeg).
        self_layers: Its layers, of whatever grid (DiffSeg: all); None: the map layers.
        num_calls: UNet calls of the run; None: what the pipeline and its scheduler say.
        guided: Whether the UNet's rows are [negative, positive]; None: what the pipeline says, or
            else the rows themselves.
        attribution: Keep maps of these tokens instead of those of the prompt.

    Raises:
        ValueError: For settings that the model or the run cannot satisfy, at the first UNet call
            at the latest.
        RuntimeError: At a UNet call that is not of the run that was inferred.

    >>> import synthgen
    >>> pipe = synthgen.load_model()
    >>> with synthgen.record(pipe) as recording:
    ...     image = pipe("a red car", num_inference_steps=4).images[0]
    >>> recording
    Recording of 1 image(s): 42 heads in 9 layers on grids 8x8, 16x16, 32x32; call 3 of 4; guided
    """
    unet = getattr(pipe, "unet", pipe)
    if not hasattr(unet, "down_blocks") or not hasattr(unet, "up_blocks"):
        raise ValueError(
            "pipe must be a diffusers pipeline with a UNet whose blocks attend to a text, such as "
            f"Stable Diffusion 1 or 2. Got {type(pipe).__name__}."
        )
    every = attention_layers(unet, (1, 1))  # grids are known once the run is
    kept = select_layers(every, layers)
    mapped = () if map_layers is None else select_layers(every, map_layers)
    looked = mapped if self_layers is None else select_layers(every, self_layers)

    def plan(sample: Tensor, timestep: Any, states: Tensor) -> Run:
        size = (sample.shape[-2], sample.shape[-1])
        total = _num_calls(pipe, timestep) if num_calls is None else num_calls
        own = attention_layers(unet, size)
        heads = select_layers(own, layers, grids)
        found = () if map_layers is None else select_layers(own, map_layers)
        if found:
            sides = map_grids or middle_sides({min(layer.grid) for layer in found})
            found = select_layers(found, tuple(layer.name for layer in found), sides)
        selves = found if self_layers is None else select_layers(own, self_layers)
        selves = () if self_grid is None else selves
        run = Run(
            shape=tuple(sample.shape),
            guided=_is_guided(pipe, sample) if guided is None else guided,
            num_calls=total,
            heads={layer.name: layer for layer in heads},
            maps={layer.name: layer for layer in found},
            selves={layer.name: layer for layer in selves},
            head_calls=call_groups(calls, total),
            map_calls=call_groups(map_calls, total),
            self_grid=self_map_grid(selves, self_grid) if selves else None,
        )
        tokens = states.shape[1]
        if attribution is not None:
            tokens = max(map(len, attribution.token_groups))
        check_budget(run.num_bytes(getattr(torch, dtype), tokens), memory_budget_mb)
        return run

    held = torch.device("cpu") if device == "cpu" else None
    recording = Recording(pipe, getattr(torch, dtype), held, plan, attribution)
    with ExitStack() as handles:
        _hook_model(recording, unet, handles)
        for layer in kept:
            _hook_heads(recording, unet.get_submodule(layer.name), layer.name, handles)
        for layer in mapped:
            _hook_maps(recording, unet, layer, handles)
        for layer in () if self_grid is None else looked:
            _hook_self_maps(recording, unet, layer, handles)
        yield recording
        recording.finish()


def _hook_model(recording: Recording, unet: Any, handles: ExitStack) -> None:
    """See UNet calls, texts that are encoded and images that are decoded."""

    def on_call(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        names = ("sample", "timestep", "encoder_hidden_states")
        given = {**dict(zip(names, args, strict=False)), **named}
        recording.on_call(given["sample"], given["timestep"], given["encoder_hidden_states"])

    def on_text(_: Any, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        ids = args[0] if args else named.get("input_ids")
        if recording.run is None and isinstance(ids, Tensor):
            recording._encoded.append((ids, output[0].detach()))

    def on_image(_: Any, __: Any, output: Tensor) -> None:
        recording._decoded.append(output.detach())

    handles.callback(unet.register_forward_pre_hook(on_call, with_kwargs=True).remove)
    if (encoder := getattr(recording.pipe, "text_encoder", None)) is not None:
        handles.callback(encoder.register_forward_hook(on_text, with_kwargs=True).remove)
    if (decoder := getattr(getattr(recording.pipe, "vae", None), "decoder", None)) is not None:
        handles.callback(decoder.register_forward_hook(on_image).remove)


def _hook_heads(recording: Recording, attn: Any, name: str, handles: ExitStack) -> None:
    def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
        recording.keep_heads(name, inputs[0])

    handles.callback(attn.to_out[0].register_forward_pre_hook(keep).remove)


def _hook_maps(recording: Recording, unet: Any, layer: Layer, handles: ExitStack) -> None:
    """Cross-attention to the prompt, or to another text whose keys are computed here."""
    crossed = unet.get_submodule(layer.cross_name)

    def keep(query: Tensor, key: Tensor) -> None:
        if (own := recording._run.maps.get(layer.name)) is not None:
            recording.keep_token_maps(own, crossed, query, key)

    other = None if recording.attribution is None else recording.attribution.text_states
    if other is None:
        pair_projections(crossed, keep, handles, "to_kv")
        return
    with torch.no_grad():
        key = crossed.to_k(other)  # under LoRA its own layers are in there
    handles.callback(crossed.to_q.register_forward_hook(lambda _, __, q: keep(q, key)).remove)


def _hook_self_maps(recording: Recording, unet: Any, layer: Layer, handles: ExitStack) -> None:
    attn = unet.get_submodule(layer.name)

    def keep(query: Tensor, key: Tensor) -> None:
        if (own := recording._run.selves.get(layer.name)) is not None:
            recording.keep_self_map(own, attn, query, key)

    pair_projections(attn, keep, handles, "to_qkv")


def pair_projections(
    attn: Any, keep: Callable[[Tensor, Tensor], None], handles: ExitStack, fused: str
) -> None:
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


def _num_calls(pipe: Any, timestep: Any) -> int | None:
    """UNet calls of a run by its first timestep; None where no scheduler has such a timestep.

    A pipeline of diffusers says how many of its scheduler's timesteps it takes. That is of an
    earlier run where somebody steps the scheduler in a loop of their own: the timestep tells.
    """
    scheduled = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
    times = [] if scheduled is None else torch.as_tensor(scheduled).tolist()
    first = torch.as_tensor(timestep).flatten()[0].item()
    said = getattr(pipe, "_num_timesteps", None) or 0
    if 0 < said <= len(times) and times[-said] == first:
        return int(said)
    return len(times) - times.index(first) if first in times else None


def _is_guided(pipe: Any, sample: Float[Tensor, "row ..."]) -> bool:
    """Whether rows are [negative, positive]: diffusers denoises each image's latents twice."""
    half = len(sample) // 2
    twice = len(sample) % 2 == 0 and bool(torch.equal(sample[:half], sample[half:]))
    said = getattr(pipe, "do_classifier_free_guidance", None)
    if said and not twice:
        raise ValueError(
            "the UNet must see each image's latents twice under guidance, [negative, positive]. "
            f"Got {len(sample)} rows that differ; give guided=True or guided=False."
        )
    return twice if said is None else bool(said)
