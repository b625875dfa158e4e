"""How many images fit into one UNet call, and what a call costs: 1, 2, 4, … until memory ends.

One denoising step is enough: memory does not depend on the number of steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psutil
import torch
from torch import Tensor

from synthgen.config import Config
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.generate import (
    decode_image,
    drawn_text,
    resolve_settings,
    run_recorded,
    text_to_image,
)
from synthgen.diffusion.recording import Recording
from synthgen.lab.doctor.install import Finding
from synthgen.lab.memory import peak_bytes, reset_peak
from synthgen.types import PlannedSample

MOST_SECONDS = 60.0  # of all calls: then no larger batch is tried


def largest_batch(
    model: Backbone, config: Config, samples: Sequence[PlannedSample], max_batch: int
) -> tuple[int, Finding]:
    """The most images, 1, 2, 4, …, of which one UNet call with capture fits into memory.

    Args:
        model: The model.
        config: Its settings.
        samples: What is drawn, over and over.
        max_batch: Where to end.
    """
    on_gpu = model.device.type == "cuda"
    rows: list[tuple[str, ...]] = [("images", "seconds per UNet call", "per image", "peak memory")]
    largest, size, spent, ended = 0, 1, 0.0, ""
    while not ended:
        resident = reset_peak(on_gpu)
        try:
            seconds = _seconds(model, config, [samples[i % len(samples)] for i in range(size)])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            ended = "out of memory"
            rows.append((str(size), ended, "–", "–"))
            break
        peak, spent = peak_bytes(on_gpu), spent + seconds
        shown = f"{peak / 1e9:.2f} GB" if peak else "–"
        rows.append((str(size), f"{seconds:.2f}", f"{seconds / size:.2f}", shown))
        needed, free = 2 * max(peak - resident, 0), psutil.virtual_memory().available
        if 2 * size > max_batch:
            ended = f"the largest that is tried, {max_batch}"
        elif spent > MOST_SECONDS:
            ended = f"the time, {spent:.0f} s"
        elif not on_gpu and needed > 0.8 * free:  # the system would kill us, not refuse
            ended = f"the next would need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
        largest, size = size, 2 * size
    if on_gpu:
        torch.cuda.empty_cache()
    if not largest:
        return 1, Finding("one image does not fit into memory", "failed", tuple(rows))
    return largest, Finding(f"{largest} images at once fit; ended by: {ended}", table=tuple(rows))


def _seconds(model: Backbone, config: Config, chosen: Sequence[PlannedSample]) -> float:
    """Of one UNet call for these images; one of them is decoded, too."""
    seconds, on_gpu = 0.0, model.device.type == "cuda"
    for _ in range(2 if on_gpu else 1):  # the first call of a size picks kernels
        if on_gpu:
            torch.cuda.empty_cache()
        started = time.perf_counter()
        _, latents = record_one_step(model, config, chosen, config.capture.layers)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    with model.lock, torch.no_grad():
        decode_image(model, latents[:1])
    return seconds


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation was refused: by CUDA, by Python, or by torch on a CPU or on MPS.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    True
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("can't allocate memory", "out of memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def record_one_step(
    model: Backbone, config: Config, chosen: Sequence[PlannedSample], layers: Any
) -> tuple[Recording, Tensor]:
    """Recording and latents of one step of one batch."""
    settings = replace(resolve_settings(model, config.generation), num_inference_steps=1)
    texts, seeds = texts_of(config, chosen), [sample.seed for sample in chosen]
    wanted = {"layers": layers, "calls": "last", "grids": None}
    with model.lock, torch.no_grad():
        return run_recorded(
            model,
            text_to_image(model, texts, seeds, settings, config.generation.negative_prompt),
            [sample.prompt for sample in chosen],
            texts,
            config.capture.model_copy(update=wanted),
        )


def texts_of(config: Config, batch: Sequence[PlannedSample]) -> list[str]:
    """What the images of a batch are drawn from."""
    return [drawn_text(sample.prompt, config.generation.append_classes) for sample in batch]
