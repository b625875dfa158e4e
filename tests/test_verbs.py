"""record, segment, label: on a pipeline that somebody has, with what nobody announced."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from drawn_samples import CAPTURE, fast, samples

import synthgen
from synthgen.config import FeatureConfig, LabelConfig, SegmentationConfig
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.generate import generate
from synthgen.labeling.label import label_image, label_sample
from synthgen.segmentation.segment import segment_sample
from synthgen.types import Prompt

CAR = "a photo of a red car"


@pytest.fixture
def pipe(tiny_pipeline: Path) -> Any:
    """As its owner loads it; the tokenizer knows the words of `tiny.WORDS`."""
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipe: Any, prompt: Any = CAR, **settings: Any) -> Any:
    own = {"num_inference_steps": 2, "height": 64, "width": 64, **settings}
    return pipe(prompt, generator=torch.manual_seed(1), **own).images


@pytest.mark.parametrize(
    ("settings", "images", "guided"),
    [
        ({}, 1, True),
        ({"guidance_scale": 1.0}, 1, False),
        ({"num_images_per_prompt": 2, "height": 96}, 2, True),
        ({"prompt": [CAR, "a dog"], "guidance_scale": 0.0}, 2, False),
    ],
)
@pytest.mark.parametrize("scheduler", ["PNDM", "Heun", "Euler"])
def test_a_run_is_inferred_from_what_is_seen(
    pipe: Any, settings: dict[str, Any], images: int, guided: bool, scheduler: str
) -> None:
    kind = {"PNDM": "PNDM", "Heun": "HeunDiscrete", "Euler": "EulerDiscrete"}[scheduler]
    pipe.scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(pipe.scheduler.config)
    plain = draw(pipe, **settings)
    with synthgen.record(pipe) as kept:
        drawn = draw(pipe, **settings)
    assert all(np.array_equal(a, b) for a, b in zip(plain, drawn, strict=True))
    assert (len(kept), kept.run.guided, kept.size) == (images, guided, drawn[0].size[::-1])
    assert kept.num_calls == kept.run.num_calls == {"PNDM": 3, "Heun": 3, "Euler": 2}[scheduler]
    assert all(np.array_equal(a, b) for a, b in zip(kept.images, drawn, strict=True))
    masks = synthgen.segment(kept, ks=(2, 4))
    labels = synthgen.label(kept, masks, classes=["photo"] if images < 2 else ["a"])
    assert (len(masks) if images > 1 else 1) == images
    for found, image in zip(
        *((masks, labels) if images > 1 else ([masks], [labels])), strict=True
    ):
        assert found.masks.shape[1:] == image.semantic.shape == kept.size


def test_a_loop_of_ones_own_and_image_to_image(pipe: Any) -> None:
    """The scheduler's timesteps say how many calls are left, whatever an earlier run said."""
    draw(pipe, num_inference_steps=5)
    states, empty = pipe.encode_prompt(CAR, "cpu", 1, True)
    pipe.scheduler.set_timesteps(3)
    latents = torch.randn(1, 4, 16, 16, generator=torch.manual_seed(1))
    with torch.no_grad(), synthgen.record(pipe, calls=(0.0, 1.0), map_layers=None) as kept:
        for t in pipe.scheduler.timesteps:
            noise = pipe.unet(torch.cat([latents] * 2), t, torch.cat([empty, states])).sample
            latents = pipe.scheduler.step(noise[1:], t, latents).prev_sample
    assert kept.run.guided
    assert {name.partition("@")[2] for name in kept.features()[0].values} == {"0", "3"}
    other = diffusers.StableDiffusionImg2ImgPipeline(
        **pipe.components, requires_safety_checker=False
    )
    (image,) = draw(pipe)
    with synthgen.record(other) as kept:
        other(CAR, image=image, strength=0.5, num_inference_steps=6)
    assert kept.num_calls == kept.run.num_calls
    assert synthgen.segment(kept).masks.shape[1:] == (64, 64)


def test_another_run_is_an_error_and_no_other_recording(pipe: Any) -> None:
    with synthgen.record(pipe) as kept:
        draw(pipe)
        with pytest.raises(RuntimeError, match="one run of the pipeline must be made while"):
            draw(pipe)
    assert synthgen.segment(kept).masks.any()
    with pytest.raises(ValueError, match=r"must have the image\. Got none; give image="):
        synthgen.segment(kept.features()[0], kept.size)
    with synthgen.record(pipe) as kept:
        pass
    with pytest.raises(RuntimeError, match="call the pipeline inside the with block"):
        synthgen.segment(kept)
    wrong = synthgen.record(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="a UNet whose blocks attend to a text"), wrong:
        pass


def test_results_equal_those_of_the_way_of_datasets_bit_for_bit(backbone: Backbone) -> None:
    labeling = LabelConfig(method="clusters", text="prompt", presence=0.0, presence_area=0.0)
    prompt = Prompt("0", CAR, ("car", "photo"))
    (sample,) = samples(generate(backbone, [prompt], [7], fast(), CAPTURE, labeling))
    config = SegmentationConfig()
    expected = segment_sample(sample, config)
    named = label_sample(expected, sample.heatmaps, None, labeling, sample.image)

    scheduler = diffusers.PNDMScheduler.from_config(backbone.pipeline.scheduler.config)
    parts = {**backbone.pipeline.components, "scheduler": scheduler}
    pipe = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    with synthgen.record(pipe) as kept:
        seeded = torch.Generator().manual_seed(7)
        latents = torch.randn(1, 4, 16, 16, generator=seeded)
        draw(pipe, latents=latents, guidance_scale=4.0)
    (features,) = kept.features()
    for layer, value in sample.features.values.items():
        assert torch.equal(features.values[layer], value)
    assert np.array_equal(kept.images[0], sample.image)
    for masks in (synthgen.segment(kept), synthgen.segment(features, image=sample.image)):
        assert masks.masks.tobytes() == expected.masks.tobytes()
        assert masks.members == expected.members
        assert np.array_equal(masks.parent, expected.parent)
    own = {"presence": 0.0, "presence_area": 0.0}
    found = synthgen.label(kept, masks, ["car", "photo"], **own)
    assert torch.equal(kept.heatmaps(["car", "photo"])[0].values, sample.heatmaps.values)
    assert found.semantic.tobytes() == named.semantic.tobytes()
    assert found.scores.tobytes() == named.scores.tobytes()
    assert np.array_equal(found.mask_labels, named.mask_labels)


def test_classes_are_found_in_the_prompt(pipe: Any) -> None:
    with synthgen.record(pipe, self_grid=8) as kept:
        draw(pipe)
    masks = synthgen.segment(kept)
    with pytest.raises(ValueError, match=r"Got 'dog', which 'a photo of a red car' does not name"):
        synthgen.label(kept, masks, ["car", "dog"])
    for method in ("clusters", "propagate", "dataset-diffusion", "vote", "argmax"):
        found = synthgen.label(kept, masks, ["car"], method=method, refiner="upsampling-color")
        assert found.class_names == ("car",)
    states, empty = pipe.encode_prompt(CAR, "cpu", 1, True)
    with synthgen.record(pipe) as unseen:
        draw(pipe, None, prompt_embeds=states, negative_prompt_embeds=empty)
    with pytest.raises(ValueError, match=r"Got 0 prompts for 1 images.*give prompts="):
        synthgen.label(unseen, masks, ["car"])
    told = synthgen.label(unseen, masks, ["car"], prompts=[CAR])
    assert np.array_equal(told.semantic, synthgen.label(kept, masks, ["car"]).semantic)


def test_defaults_of_functions_are_those_of_the_settings() -> None:
    def defaults(function: Any) -> dict[str, Any]:
        return {name: p.default for name, p in inspect.signature(function).parameters.items()}

    segmentation, features = SegmentationConfig(), FeatureConfig()
    for section in (features, segmentation.clusters, segmentation.masks):
        for name, value in dict(section).items():
            assert defaults(synthgen.segment)[name] == value, name
    assert defaults(synthgen.segment)["refiner"] == segmentation.refiner
    for name in ("refiner", "margin", "background", "presence", "presence_area", "power"):
        for function in (synthgen.label, label_image):
            assert defaults(function)[name] == getattr(LabelConfig(), name), name
    own = defaults(synthgen.record)
    assert {name: own[name] for name in dict(CAPTURE)} == dict(CAPTURE)


def test_the_face_shows_what_there_is() -> None:
    assert set(synthgen.__all__) <= set(dir(synthgen))
    assert all(getattr(synthgen, name) for name in synthgen.__all__)
    with pytest.raises(AttributeError, match="no attribute 'segmentt'"):
        synthgen.segmentt  # noqa: B018


def test_a_dataset_from_a_list_of_texts(tiny_pipeline: Path, tmp_path: Path) -> None:
    settings = {
        "model": {"card": str(tiny_pipeline)},
        "generation": {"num_inference_steps": 2},
        "labeling": {"method": "clusters"},
    }
    prompts = ["a red car", Prompt("mine", "a dog on the road", ("dog",))]
    synthgen.generate(prompts, tmp_path / "set", classes=["car", "dog"], **settings)
    rows = [sample["json"] for sample in synthgen.open_dataset(str(tmp_path / "set"))]
    assert [row["prompt_id"] for row in rows][1] == "mine"
    assert json.loads((tmp_path / "set/classes.json").read_text())["2"] == "dog"
    with pytest.raises(ValueError, match=r"labeling\.method is not valid"):
        synthgen.generate(prompts, tmp_path / "other", labeling={"method": "cluster"})
