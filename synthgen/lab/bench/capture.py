"""What capturing costs: a full-size SD 2.1 UNet with and without, against two rivals.

Weights are random: cost does not depend on them. One UNet call at 512 x 512 px (64 x 64 latents)
is timed in interleaved rounds, all methods in each, in rotating order; a ratio is the median over
rounds of (with capture / without). On the CPU the clock is the CPU time of this process, which
other processes disturb less than wall time; wall ratios are printed beside it.

All methods are asked for the self-attention of the up layers, in a form that keeps the heads
apart. The package of `PACKAGE` stores queries and keys during the call and computes
probability maps after it, which is part of its time. `RECOMPUTED` is the way of published code:
a hook that projects again, forms the softmax and multiplies, in every layer.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from synthgen.diffusion.attention import record
from synthgen.lab.memory import peak_bytes, reset_peak

PACKAGE = "attention-map-diffusers"
RECOMPUTED = "recomputed in a hook"

SD21_UNET: Mapping[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),  # the numbers of heads; 64 features each
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
"""Architecture of SD 2.1-base (865.9 M parameters); what is not named is diffusers' default."""

_QUICK_UNET: Mapping[str, Any] = {
    **SD21_UNET,
    "sample_size": 16,
    "block_out_channels": (32, 64, 64, 64),
    "attention_head_dim": (2, 4, 4, 4),
    "cross_attention_dim": 32,
}

_log = logging.getLogger(__name__)

Method = Callable[[Any, Mapping[str, Tensor]], tuple[Tensor, int]]
"""One UNet call; returns its output and the bytes that the captures hold."""


@dataclass(frozen=True, slots=True)
class _Run:
    clock_s: float
    wall_s: float
    peak_bytes: int
    held_bytes: int
    output: Tensor


def bench_capture(
    num_pairs: int = 9, quick: bool = False, num_rival_pairs: int = 3
) -> dict[str, Any]:
    """Time, memory and exactness of capture on one UNet call.

    Args:
        num_pairs: Interleaved pairs with and without.
        quick: A small UNet: shows that it runs, not how fast.
        num_rival_pairs: Of these rounds, how many the rivals take part in.

    Returns:
        ``time_ratio`` (median; 95 % interval in ``time_ratio_interval``), ``wall_ratio``,
        ``added_mb`` (held per image), ``peak_added_mb`` (working memory included, where the
        system tells), ``bit_identical``, and the same per rival in ``rivals``;
        ``control_ratio``: without against without, the noise of this machine.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    unet, inputs = _random_unet(_QUICK_UNET if quick else SD21_UNET, device, dtype)
    rivals = _rivals()
    rounds: list[dict[str, _Run]] = []
    with torch.no_grad():
        _plain(unet, inputs)  # the first call allocates
        for index in range(num_pairs):
            methods = {"plain": _plain, "ours": _captured, "control": _plain}
            methods |= rivals if index < num_rival_pairs else {}
            names = list(methods)
            first = index % len(names)  # the one to go first changes from round to round
            order = names[first:] + names[:first]
            rounds.append({name: _measure(methods[name], unet, inputs) for name in order})
            _log.info("round %d of %d", index + 1, num_pairs)
    control = _compare("control", rounds)
    return {
        **_compare("ours", rounds),
        "control_ratio": control["time_ratio"],
        "control_ratio_interval": control["time_ratio_interval"],
        "seconds_without": statistics.median(runs["plain"].clock_s for runs in rounds),
        "num_pairs": num_pairs,
        "clock": "wall time" if device.type == "cuda" else "CPU time of the process",
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "rivals": {name: _compare(name, rounds) for name in rivals},
    }


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median from order statistics; the extremes of fewer than six.

    >>> median_interval([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0])
    (2.0, 8.0)
    """
    ordered = sorted(values)
    n, tail, rank = len(ordered), 0.0, 0
    while rank < n // 2:
        tail += 2 * math.comb(n, rank) / 2**n
        if tail > 0.05:
            break
        rank += 1
    rank = max(0, rank - 1)
    return ordered[rank], ordered[n - 1 - rank]


def _random_unet(
    config: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> tuple[Any, dict[str, Tensor]]:
    """A UNet with random weights and inputs for one image."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**config).eval().requires_grad_(False).to(device)
    if dtype is not torch.float32:
        unet.to(dtype)
    side, text = config["sample_size"], config["cross_attention_dim"]
    inputs = {
        "sample": torch.randn(1, 4, side, side).to(device, dtype),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.randn(1, 77, text).to(device, dtype),
    }
    torch.set_rng_state(state)
    return unet, inputs


def _measure(method: Method, unet: Any, inputs: Mapping[str, Tensor]) -> _Run:
    on_gpu = inputs["sample"].is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    before = reset_peak(on_gpu)
    wall, start = time.perf_counter(), clock()
    output, held = method(unet, inputs)
    if on_gpu:
        torch.cuda.synchronize()
    clock_s, wall_s = clock() - start, time.perf_counter() - wall
    return _Run(clock_s, wall_s, peak_bytes(on_gpu) - before, held, output)


def _compare(name: str, rounds: Sequence[Mapping[str, _Run]]) -> dict[str, Any]:
    """A method against the plain call of the same round."""
    pairs = [(runs[name], runs["plain"]) for runs in rounds if name in runs]
    ratios = [with_.clock_s / without.clock_s for with_, without in pairs]
    added = [with_.peak_bytes - without.peak_bytes for with_, without in pairs]
    return {
        "time_ratio": round(statistics.median(ratios), 4),
        "time_ratio_interval": [round(value, 4) for value in median_interval(ratios)],
        "wall_ratio": round(statistics.median(a.wall_s / b.wall_s for a, b in pairs), 4),
        "added_mb": round(max(run.held_bytes for run, _ in pairs) / 1e6, 2),
        "peak_added_mb": round(statistics.median(added) / 1e6, 2),
        "bit_identical": all(torch.equal(a.output, b.output) for a, b in pairs),
    }


def _plain(unet: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    return unet(**inputs).sample, 0


def _captured(unet: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Our defaults: up layers, last call, conditional rows."""
    with record(unet, map_layers=None, num_calls=1, guided=False) as recording:
        output = unet(**inputs).sample
    return output, sum(features.num_bytes for features in recording.features())


def _rivals() -> dict[str, Method]:
    """Rivals by name; the package takes part where it is installed."""
    rivals: dict[str, Method] = {RECOMPUTED: _recomputed}
    try:
        rivals[f"{PACKAGE}=={metadata.version(PACKAGE)}"] = _packaged
    except metadata.PackageNotFoundError:
        _log.warning("%s is not installed: not measured (pip install synthgen[dev]).", PACKAGE)
    return rivals


def _packaged(unet: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """The package's context manager around the call, and its maps."""
    from attention_map_diffusers import AttentionCapture

    with AttentionCapture(
        SimpleNamespace(unet=unet),
        relations="image->image",
        layers=("up_blocks",),
        heads="all",
        allow_large_maps=True,
    ) as capture:
        output = unet(**inputs).sample
    held = sum(kept.data.nbytes for kept in capture.compute())
    return output, held


def _recomputed(unet: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Head outputs by a second, unfused attention in a hook on every up layer."""
    outputs: list[Tensor] = []

    def attend_again(attn: Any, args: tuple[Tensor, ...], _: Tensor) -> None:
        query, key, value = (
            attn.head_to_batch_dim(project(args[0]))
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        outputs.append(torch.bmm(attn.get_attention_scores(query, key), value))

    with ExitStack() as handles:
        for name, module in unet.named_modules():
            if name.startswith("up_blocks") and name.endswith("attn1"):
                handles.callback(module.register_forward_hook(attend_again).remove)
        output = unet(**inputs).sample
    return output, sum(kept.nbytes for kept in outputs)
