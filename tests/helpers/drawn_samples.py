"""Prompts, fast settings and results for the tests that draw with the tiny pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from synthgen.config import CaptureConfig, GenerationConfig
from synthgen.diffusion.backbones import Backbone
from synthgen.types import Failure, Prompt, Sample

CAR = Prompt("0", "a photo of a red car", ("car", "aeroplane"))
DOG = Prompt("1", "a dog on the road", ("dog",))
HOUSE = Prompt("2", "a house under the blue sky")
FAST = GenerationConfig(height=64, width=64, num_inference_steps=2, guidance_scale=4.0)
CAPTURE = CaptureConfig()


def fast(**settings: Any) -> GenerationConfig:
    return FAST.model_copy(update=settings)


def samples(results: list[Sample | Failure]) -> list[Sample]:
    assert all(isinstance(result, Sample) for result in results), results
    return results


def images(results: list[Sample | Failure]) -> np.ndarray:
    return np.stack([sample.image for sample in samples(results)])


@contextmanager
def spoiled(backbone: Backbone, row: int, value: float) -> Iterator[None]:
    """The UNet's prediction for one row replaced by a constant."""

    def spoil(_: Any, __: Any, output: Any) -> Any:
        output[0][row] = value
        return output

    handle = backbone.pipeline.unet.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()
