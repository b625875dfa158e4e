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

from synthgen.diffusion.generate import (
    decode_image,
    drawn_text,
    resolve_settings,
    run_recorded,
    text_to_image,
)
from synthgen.diffusion.recording import Recording
from synthgen.lab.doctor.install import Finding
from synthgen.lab.doctor.machine import Examination
from synthgen.lab.doctor.page import gigabytes
from synthgen.lab.memory import peak_bytes, reset_peak
from synthgen.progress import report
from synthgen.types import PlannedSample

LONG_PROBE = 60.0  # seconds: after a call this long no larger batch is tried


def probe_batches(examination: Examination) -> Finding:
    """1, 2, 4, … images in one UNet call with capture, until memory ends."""
    rows: list[tuple[str, ...]] = [("images", "seconds per UNet call", "per image", "peak memory")]
    largest, size, why = 0, 1, ""
    while size <= examination.max_batch and not why:
        resident = reset_peak(examination.on_gpu)
        try:
            seconds = _probe(examination, size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            why = "out of memory"
            rows.append((str(size), why, "–", "–"))
            break
        peak = peak_bytes(examination.on_gpu)
        rows.append((str(size), f"{seconds:.2f}", f"{seconds / size:.2f}", gigabytes(peak)))
        report("samples", count=size)
        largest, size = size, 2 * size
        why = _no_larger(examination, seconds, size * max(peak - resident, 0) / largest)
    _free(examination)
    if not largest:
        return Finding("one image does not fit into memory", "failed", tuple(rows))
    asked = min(examination.config.generation.batch_size, len(examination.samples))
    examination.batch = min(largest, asked)
    ended = why or f"--max-batch {examination.max_batch}"
    return Finding(f"{largest} images at once fit; ended by: {ended}", table=tuple(rows))


def _probe(examination: Examination, size: int) -> float:
    """Seconds of one UNet call for that many images; one of them is decoded too."""
    backbone, every = examination.model, examination.samples
    chosen = [every[index % len(every)] for index in range(size)]
    seconds = 0.0
    for _ in range(2 if examination.on_gpu else 1):  # the first call of a size picks kernels
        _free(examination)
        started = time.perf_counter()
        _, latents = record_one_step(examination, chosen, examination.config.capture.layers)
        if examination.on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    with backbone.lock, torch.no_grad():
        decode_image(backbone, latents[:1])
    return seconds


def _no_larger(examination: Examination, seconds: float, needed: float) -> str:
    """Why no larger batch is tried; on a CPU the system would kill the process, not refuse."""
    if seconds > LONG_PROBE:
        return f"a call took {seconds:.0f} s"
    free = psutil.virtual_memory().available
    if not examination.on_gpu and needed > 0.8 * free:
        return f"the next would need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
    return ""


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
    examination: Examination, chosen: Sequence[PlannedSample], layers: Any
) -> tuple[Recording, Tensor]:
    """Recording and latents of one step of one batch."""
    backbone, config = examination.model, examination.config
    settings = replace(resolve_settings(backbone, config.generation), num_inference_steps=1)
    texts = texts_of(examination, chosen)
    seeds, negative = [sample.seed for sample in chosen], config.generation.negative_prompt
    wanted = {"layers": layers, "calls": "last", "grids": None}
    with backbone.lock, torch.no_grad():
        return run_recorded(
            backbone,
            text_to_image(backbone, texts, seeds, settings, negative),
            [sample.prompt for sample in chosen],
            texts,
            config.capture.model_copy(update=wanted),
        )


def texts_of(examination: Examination, batch: Sequence[PlannedSample]) -> list[str]:
    """What the images of a batch are drawn from."""
    append = examination.config.generation.append_classes
    return [drawn_text(sample.prompt, append) for sample in batch]


def _free(examination: Examination) -> None:
    if examination.on_gpu:
        torch.cuda.empty_cache()
