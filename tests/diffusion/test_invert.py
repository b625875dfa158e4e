"""Real images through the image-to-image path of the tiny pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from drawn_samples import CAPTURE, CAR, DOG, FAST, samples, spoiled

from synthgen.config import CaptureConfig, GenerationConfig, LabelConfig
from synthgen.diffusion.attention import record
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.invert import invert
from synthgen.types import Failure, Prompt, Sample


@pytest.fixture
def photos() -> np.ndarray:
    rows = np.linspace(0, 255, 64)[:, None, None]
    ramps = np.stack([rows + 0 * rows.transpose(1, 0, 2), 255 - rows * np.ones((1, 64, 1))])
    return np.repeat(ramps, 3, axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("scheduler", "calls"), [("ddim", 2), ("pndm", 3), ("euler", 2)])
def test_inversion_takes_two_effective_steps(
    backbone: Backbone, photos: np.ndarray, scheduler: str, calls: int
) -> None:
    """BL: strength .05 of 40 steps; PNDM's duplicate timestep is a third call."""
    seen = []
    handle = backbone.pipeline.unet.register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0]))
    )
    try:
        results = invert(
            backbone,
            photos,
            [CAR, Prompt("1", "")],
            [1, 2],
            GenerationConfig(scheduler=scheduler),
            CaptureConfig(calls=calls),
            labeling=LabelConfig(method="argmax", text="classes", calls=calls),
        )
    finally:
        handle.remove()
    assert seen == [2] * calls  # no guidance unless asked for
    first, second = samples(results)
    assert np.array_equal(first.image, photos[0])
    assert first.features.num_heads == 15
    assert first.heatmaps.values.shape == (2, 16, 16)
    assert second.heatmaps is None


def test_inversion_at_a_timestep_equals_one_call_by_hand(
    backbone: Backbone, photos: np.ndarray
) -> None:
    found = samples(invert(backbone, photos[:1], [CAR], [9], FAST, CAPTURE, timestep=300))[0]
    pipeline = backbone.pipeline
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = (1 - betas).cumprod(0)[300]
    pixels = torch.from_numpy(photos[:1]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        mean = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        noise = torch.randn(1, 4, 16, 16, generator=torch.manual_seed(9))
        noisy = alpha_bar.sqrt() * mean + (1 - alpha_bar).sqrt() * noise
        states, _ = pipeline.encode_prompt([CAR.text], "cpu", 1, False)
        with record(pipeline.unet, num_calls=1) as kept:
            pipeline.unet(noisy, torch.tensor(300), states)
    for layer, value in kept.features()[0].values.items():
        torch.testing.assert_close(found.features.values[layer], value, atol=1e-4, rtol=1e-4)


def test_inversion_refuses_what_cannot_run(backbone: Backbone, photos: np.ndarray) -> None:
    def run(size: int = 64, **settings: Any) -> None:
        invert(backbone, photos[:1, :size], [CAR], [1], FAST, CAPTURE, **settings)

    with pytest.raises(ValueError, match="leave at least one of num_inference_steps"):
        run(num_inference_steps=10)
    with pytest.raises(ValueError, match=r"generation\.height must be a multiple of 32"):
        run(size=60)
    with pytest.raises(ValueError, match="timestep must be from 0 to 999"):
        run(timestep=1000)
    with pytest.raises(ValueError, match="equally many"):
        invert(backbone, photos, [CAR], [1], FAST, CAPTURE)


def test_inversion_reports_nan(backbone: Backbone, photos: np.ndarray) -> None:
    with spoiled(backbone, 0, float("nan")):
        failed, fine = invert(backbone, photos, [CAR, DOG], [1, 2], GenerationConfig(), CAPTURE)
    assert isinstance(failed, Failure)
    assert failed.reason == "nan_latents"
    assert isinstance(fine, Sample)
