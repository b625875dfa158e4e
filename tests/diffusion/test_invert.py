"""Real images through the image-to-image path of the tiny pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image as PIL
import pytest
import torch
from drawn_samples import CAPTURE, CAR, DOG, FAST, samples, spoiled

import synthgen
from synthgen.config import CaptureConfig, GenerationConfig, LabelConfig
from synthgen.diffusion.attention import record
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.invert import fitted_size, invert, invert_any
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


def test_several_noises_are_averaged(backbone: Backbone, photos: np.ndarray) -> None:
    """The head outputs are the mean over calls, each with the next noise of its sample."""
    labeling = LabelConfig(method="argmax")
    both = samples(
        invert(backbone, photos, [CAR, DOG], [9, 8], FAST, CAPTURE, timestep=100, noises=2)
    )
    first = samples(invert(backbone, photos, [CAR, DOG], [9, 8], FAST, CAPTURE, timestep=100))
    generators = [torch.manual_seed(9), torch.Generator().manual_seed(8)]
    seen: list[torch.Tensor] = []
    handle = backbone.pipeline.unet.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    try:
        given = ([CAR, DOG], [9, 8], FAST, CAPTURE)
        labeled = invert(backbone, photos, *given, timestep=100, noises=2, labeling=labeling)
    finally:
        handle.remove()
    noises = [
        torch.cat([torch.randn(1, 4, 16, 16, generator=own) for own in generators])
        for _ in range(2)
    ]
    alpha_bar = backbone.pipeline.scheduler.alphas_cumprod[100]
    difference = (1 - alpha_bar).sqrt() * (noises[0] - noises[1])
    torch.testing.assert_close(seen[0] - seen[1], difference, atol=1e-5, rtol=1e-4)
    for sample, alone, other in zip(both, first, samples(labeled), strict=True):
        for layer, value in sample.features.values.items():
            assert not torch.equal(value, alone.features.values[layer])
            assert torch.equal(value, other.features.values[layer])
        assert other.heatmaps is not None


def test_an_image_is_recorded_as_diffusers_image_to_image_sees_it(
    tiny_pipeline: Path, photos: np.ndarray
) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    kept = synthgen.record_image(pipe, photos[0], "a red car", seed=3)
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components)
    with synthgen.record(other) as by_hand:
        other(
            "a red car",
            image=PIL.fromarray(photos[0]),
            strength=0.05,
            num_inference_steps=40,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(3),
        )
    values = by_hand.features()[0].values
    for layer, value in kept.features()[0].values.items():
        torch.testing.assert_close(value, values[layer], atol=1e-5, rtol=1e-5)
    masks = synthgen.segment(kept, ks=(2, 3))
    labels = synthgen.label(kept, masks, classes=["car"])
    assert masks.masks.shape[1:] == labels.semantic.shape == (64, 64)
    assert kept.texts == ("a red car",)


@pytest.mark.parametrize("size", [(50, 90), (7, 300), (1, 2), (130, 64)])
def test_masks_have_the_size_of_the_image_whatever_it_is(
    tiny_pipeline: Path, size: tuple[int, int], tmp_path: Path
) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    PIL.fromarray(image).save(tmp_path / "photo.png")
    for given in (
        image,
        PIL.fromarray(image),
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
    ):
        kept = synthgen.record_image(pipe, given, timestep=100, noises=2)
        assert np.array_equal(kept.images[0], image)
    assert synthgen.segment(kept, ks=(2, 3)).masks.shape[1:] == size


def test_images_of_any_size_are_seen_at_the_area_of_the_model(backbone: Backbone) -> None:
    assert backbone.native_size == (64, 64)
    assert backbone.size_step == 32
    for size, seen in (
        ((64, 64), (64, 64)),
        ((4000, 3000), (64, 64)),
        ((1, 1), (64, 64)),
        ((20, 90), (32, 128)),
        ((5000, 2), (128, 32)),
    ):
        assert fitted_size(size, backbone) == seen
    assert fitted_size((480, 640), backbone, (128, 128)) == (96, 160)
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 64), (9, 99), (64, 64))
    ]
    prompts, seeds = [CAR, DOG, CAR], [1, 2, 3]
    found = samples(invert_any(backbone, images, prompts, seeds, GenerationConfig(), CAPTURE))
    for sample, image, seed in zip(found, images, seeds, strict=True):
        assert sample.image is image
        assert sample.seed == seed
    both = samples(
        invert(backbone, np.stack(images[::2]), [CAR] * 2, [1, 3], GenerationConfig(), CAPTURE)
    )
    for layer, value in found[2].features.values.items():
        assert torch.equal(value, both[1].features.values[layer])


def test_what_is_no_image_or_no_pipeline_is_refused(backbone: Backbone) -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    for pipe, given, message in (
        (backbone.pipeline.unet, image, "Stable Diffusion 1 or 2 pipeline"),
        (backbone.pipeline, image[..., 0], r"uint8 of shape \(height, width, 3\)"),
        (backbone.pipeline, image / 255, "Got ndarray, float64 of shape"),
        (backbone.pipeline, "none.png", "must be a readable file"),
    ):
        with pytest.raises(ValueError, match=message):
            synthgen.record_image(pipe, given)
    with pytest.raises(ValueError, match="leave at least one of num_inference_steps"):
        synthgen.record_image(backbone.pipeline, image, num_inference_steps=19)
    with pytest.raises(ValueError, match="noises must be 1 without a timestep"):
        synthgen.record_image(backbone.pipeline, image, noises=2)


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
