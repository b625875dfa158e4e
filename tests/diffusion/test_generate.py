"""Generating on the tiny pipeline: settings, seeds, failures, one UNet batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn_samples import CAPTURE, CAR, DOG, FAST, HOUSE, fast, images, samples, spoiled

from synthgen.config import CaptureConfig, GenerationConfig, LabelConfig
from synthgen.diffusion.attention import Attribution, record
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.generate import generate, initial_noise, resolve_settings
from synthgen.diffusion.schedulers import make_scheduler, sample_generators
from synthgen.types import Failure, Prompt, Sample


def plain_images(backbone: Backbone, prompts: list[Prompt], seeds: list[int]) -> np.ndarray:
    """What diffusers alone draws, without any of our code in its way."""
    scheduler = diffusers.PNDMScheduler.from_config(backbone.pipeline.scheduler.config)
    components = backbone.pipeline.components | {"scheduler": scheduler}
    pipeline = diffusers.StableDiffusionPipeline(**components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    latents = [torch.randn(1, 4, 16, 16, generator=torch.manual_seed(s)) for s in seeds]
    images01 = pipeline(
        [prompt.text for prompt in prompts],
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=4.0,
        latents=torch.cat(latents),
        output_type="np",
    ).images
    return (images01 * 255).round().astype(np.uint8)


def test_images_are_those_of_diffusers_with_and_without_capture(backbone: Backbone) -> None:
    """Batch of 3, everything recorded, against the bare pipeline: decoding may differ by one."""
    prompts, seeds = [CAR, DOG, HOUSE], [1, 2, 3]
    expected = plain_images(backbone, prompts, seeds)
    outputs = []
    for capture in (
        CaptureConfig(layers=("mid_block",)),
        CaptureConfig(layers="all", calls=2),
        CaptureConfig(layers="all"),
    ):
        text = ("caption", "classes", "prompt")[len(outputs)]
        labeling = LabelConfig(method="propagate", text=text)
        outputs.append(images(generate(backbone, prompts, seeds, FAST, capture, labeling)))
        assert np.array_equal(outputs[0], outputs[-1])
    difference = np.abs(outputs[0].astype(int) - expected)
    assert difference.max() <= 1
    assert backbone.pipeline.scheduler.num_inference_steps is None  # runs step one of their own
    assert len({image.tobytes() for image in outputs[0]}) == 3


@pytest.mark.parametrize("layers", ["up", "down", "both", "all", "mid", ("mid_block",)])
def test_labels_read_grids_of_the_layers_that_they_name(
    backbone: Backbone, layers: str | tuple[str, ...]
) -> None:
    """Grids are 16, 8, 4 and, in the middle block alone, 2: nearest to 12..48 of those named."""
    labeling = LabelConfig(method="propagate", layers=layers)
    (sample,) = samples(generate(backbone, [CAR], [1], FAST, CAPTURE, labeling))
    side = 2 if layers in ("mid", ("mid_block",)) else 16
    assert sample.heatmaps is not None
    assert sample.heatmaps.values.shape[1:] == (side, side)
    assert sample.self_map is not None
    assert sample.self_map.grid == (side, side)


def test_ddim_does_not_clip_latents(backbone: Backbone) -> None:
    """A DDIM made from PNDM's settings clips at 1 by default, which latents exceed."""
    scheduler = make_scheduler(backbone, "ddim")
    assert scheduler.config.clip_sample is False
    assert scheduler.config.beta_start == backbone.pipeline.scheduler.config.beta_start


def test_features_are_those_of_the_last_call_at_the_image_grid(backbone: Backbone) -> None:
    sizes = fast(height=96, width=64)
    (sample,) = samples(generate(backbone, [CAR], [1], sizes, CaptureConfig(layers="all")))
    assert sample.image.shape == (96, 64, 3)
    assert set(sample.features.grids.values()) == {(24, 16), (12, 8), (6, 4), (3, 2)}
    assert sample.features.num_heads == 27


def test_an_image_depends_on_its_seed_and_hardly_on_its_batch(backbone: Backbone) -> None:
    """Equal batches give equal bytes; another batch changes rounding only."""
    together = samples(generate(backbone, [CAR, DOG, HOUSE], [5, 6, 7], FAST, CAPTURE))
    again = generate(backbone, [CAR, DOG, HOUSE], [5, 6, 7], FAST, CAPTURE)
    assert np.array_equal(images(together), images(again))
    alone = samples(generate(backbone, [DOG], [6], FAST, CAPTURE))[0]
    difference = np.abs(alone.image.astype(int) - together[1].image)
    assert difference.max() <= 1
    for layer, value in alone.features.values.items():
        expected = together[1].features.values[layer]
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)
    other = samples(generate(backbone, [DOG], [7], FAST, CAPTURE))[0]
    assert not np.array_equal(other.image, alone.image)


def test_noise_is_one_generator_per_sample(backbone: Backbone) -> None:
    state = torch.get_rng_state()
    noise = initial_noise(backbone, sample_generators([3, 2**63 + 1, 3]), (16, 24))
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(state, torch.get_rng_state())


def test_several_images_per_prompt_and_no_guidance(backbone: Backbone) -> None:
    first, second = samples(
        generate(backbone, [CAR, CAR], [1, 2], fast(guidance_scale=1.0), CAPTURE)
    )
    assert not np.array_equal(first.image, second.image)
    assert first.features.num_heads == second.features.num_heads == 15


def test_negative_prompt_works_under_guidance_and_warns_without(backbone: Backbone) -> None:
    plain = images(generate(backbone, [CAR], [1], FAST, CAPTURE))
    negative = images(generate(backbone, [CAR], [1], fast(negative_prompt="dog"), CAPTURE))
    assert not np.array_equal(plain, negative)
    with pytest.warns(UserWarning, match=r"negative_prompt has no effect"):
        generate(backbone, [CAR], [1], fast(negative_prompt="dog", guidance_scale=1.0), CAPTURE)


def test_appended_classes_are_drawn(backbone: Backbone) -> None:
    spelled = Prompt("0", "a photo of a red car; car, aeroplane")
    appended = images(generate(backbone, [CAR], [1], fast(append_classes=True), CAPTURE))
    assert np.array_equal(appended, images(generate(backbone, [spelled], [1], FAST, CAPTURE)))


def test_what_a_card_or_unet_says_fills_what_is_not_asked_for(backbone: Backbone) -> None:
    settings = resolve_settings(backbone, GenerationConfig())
    assert (settings.height, settings.width) == (64, 64)  # sample_size 16 times 4
    assert (settings.num_inference_steps, settings.guidance_scale) == (50, 7.5)
    assert resolve_settings(backbone, GenerationConfig(guidance_scale=0.0)).guidance_scale == 0.0


def test_the_card_names_the_layers_that_the_configuration_does_not(backbone: Backbone) -> None:
    assert backbone.card.capture_layers == "up"
    card = backbone.card.model_copy(update={"capture_layers": "both"})

    def blocks(**settings: Any) -> set[str]:
        capture = CaptureConfig(**settings)
        (sample,) = generate(replace(backbone, card=card), [CAR], [1], FAST, capture)
        assert isinstance(sample, Sample)
        return {name.split(".")[0] for name in sample.features.values}

    assert blocks() == {"down_blocks", "up_blocks"}
    assert blocks(layers="down") == {"down_blocks"}


def test_words_beyond_the_token_limit_are_named(backbone: Backbone) -> None:
    long = Prompt("p7", "a red car on the road and " * 30 + "zebra", ())
    with pytest.warns(UserWarning, match=r"Prompt p7 must have at most 77 tokens.*road and a red"):
        generate(backbone, [long], [1], FAST, CAPTURE)


@pytest.mark.parametrize("name", ["height", "width"])
def test_sizes_must_go_through_vae_and_unet(backbone: Backbone, name: str) -> None:
    assert backbone.size_step == 32
    with pytest.raises(ValueError, match=rf"generation\.{name} must be a multiple of 32.*try 96"):
        generate(backbone, [CAR], [1], fast(**{name: 100}), CAPTURE)


def test_the_budget_is_checked_before_anything_runs(backbone: Backbone) -> None:
    capture = CaptureConfig(layers="all", memory_budget_mb=0.01)
    with spoiled(backbone, 0, float("nan")), pytest.raises(ValueError, match="memory_budget_mb"):
        generate(backbone, [CAR], [1], FAST, capture)
    with pytest.raises(ValueError, match="seeds must be one per prompt"):
        generate(backbone, [CAR], [1, 2], FAST, CAPTURE)
    assert generate(backbone, [], [], FAST, CAPTURE) == []


def test_nan_latents_fail_alone(backbone: Backbone) -> None:
    expected = images(generate(backbone, [CAR, DOG], [1, 2], FAST, CAPTURE))
    with spoiled(backbone, 2, float("nan")):  # rows: 2 negative, then 2 positive
        failed, fine = generate(backbone, [CAR, DOG], [1, 2], FAST, CAPTURE)
    assert isinstance(failed, Failure)
    assert (failed.reason, failed.prompt, failed.seed) == ("nan_latents", CAR, 1)
    assert np.array_equal(fine.image, expected[1])


@pytest.mark.parametrize(
    ("bias", "reason", "message"),
    [(-9.0, "black_image", "all pixels are [0, 0, 0]"), (torch.inf, "nan_latents", "not finite")],
)
def test_images_without_content_fail(
    backbone: Backbone, bias: float, reason: str, message: str
) -> None:
    """A decoder whose last layer answers the same everywhere: black after clamping."""
    parameter = backbone.pipeline.vae.decoder.conv_out.bias
    saved = parameter.clone()
    parameter.fill_(bias)
    try:
        (failed,) = generate(backbone, [CAR], [1], FAST, CAPTURE)
    finally:
        parameter.copy_(saved)
    assert isinstance(failed, Failure)
    assert failed.reason == reason
    assert message in failed.message


def test_heatmaps_through_class_names_equal_a_slow_reference(backbone: Backbone) -> None:
    """Per class: mean over its tokens, layers resized and weighted by 1 / grid."""
    prompts = [CAR, HOUSE]
    labeling = LabelConfig(method="argmax", text="classes", layers="up", grids=(16, 8, 4))
    results = samples(generate(backbone, prompts, [1, 2], FAST, CAPTURE, labeling))
    assert results[1].heatmaps is None
    heatmaps = results[0].heatmaps
    assert heatmaps.class_names == ("car", "aeroplane")
    assert heatmaps.values.shape == (2, 16, 16)

    pipeline = backbone.pipeline
    texts = ["car, aeroplane", ""]  # tokens: start, car, comma, aero, plane
    states, _ = pipeline.encode_prompt(texts, "cpu", 1, False)
    every = Attribution([[(t,) for t in range(77)]] * 2, states)
    with record(
        pipeline, map_layers="up", map_grids=(16, 8, 4), num_calls=3, attribution=every
    ) as kept:
        plain_images(backbone, prompts, [1, 2])
    total, weights = torch.zeros(2, 16, 16), 0.0
    for name, maps in kept.token_maps().items():
        side = kept.map_grids[name][0]
        tokens = torch.stack([maps[0, :, 1], maps[0, :, [3, 4]].mean(dim=1)])
        total += (
            F.interpolate(tokens.view(1, 2, side, side), size=(16, 16), mode="bilinear")[0] / side
        )
        weights += 1 / side
    torch.testing.assert_close(heatmaps.values, total / weights, atol=1e-6, rtol=1e-4)


def test_heatmaps_through_the_prompt_are_zero_for_unnamed_classes(backbone: Backbone) -> None:
    labeling = LabelConfig(method="argmax", text="prompt")
    heatmaps = samples(generate(backbone, [CAR], [1], FAST, CAPTURE, labeling))[0].heatmaps
    assert heatmaps.values[0].min() > 0
    assert heatmaps.values[1].abs().max() == 0  # the caption names no aeroplane
    appended = fast(append_classes=True)
    both = samples(generate(backbone, [CAR], [1], appended, CAPTURE, labeling))[0]
    assert both.heatmaps.values[1].min() > 0
