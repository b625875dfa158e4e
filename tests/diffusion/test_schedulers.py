"""Every scheduler of diffusers: the same bytes twice, or refused by name; how many calls."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from drawn_samples import CAR, FAST, fast, images, samples
from tiny_run import tiny_config, write_prompts

from synthgen import jobs
from synthgen.config import CaptureConfig, GenerationConfig
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.generate import generate, initial_noise, resolve_settings
from synthgen.diffusion.invert import invert
from synthgen.diffusion.schedulers import FAMILY, sample_generators

CAPTURE = CaptureConfig(layers=("mid_block",))

CLASSES = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
DRAWING = {
    f"{name}Scheduler"
    for name in (
        *("DDPM", "DDPMParallel", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete"),
        *("LCM", "SASolver"),
    )
}
"""Draw noise at every step."""


def stored(backbone: Backbone, name: str, **settings: Any) -> Backbone:
    """The backbone with another scheduler stored with its weights."""
    kind = getattr(diffusers, name)
    try:
        scheduler = kind.from_config(backbone.pipeline.scheduler.config, **settings)
    except (ImportError, TypeError, ValueError):  # refused for its class, whatever it holds
        assert name not in FAMILY
        scheduler = type(name, (), {"config": {}})()
    pipeline = backbone.pipeline
    components = {**pipeline.components, "scheduler": scheduler}
    return replace(
        backbone,
        pipeline=SimpleNamespace(
            **components,
            components=components,
            vae_scale_factor=pipeline.vae_scale_factor,
            _execution_device=pipeline._execution_device,
            encode_prompt=pipeline.encode_prompt,
        ),
    )


@pytest.mark.parametrize("name", CLASSES)
def test_a_scheduler_gives_the_same_bytes_twice_or_is_refused(
    backbone: Backbone, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stored(backbone, name)
    if name not in FAMILY:
        with pytest.raises(ValueError, match=rf"Got {name}; set generation\.scheduler") as caught:
            generate(model, [CAR], [1], FAST, CAPTURE)
        assert "\n" not in str(caught.value)
        assert resolve_settings(model, fast(scheduler="euler")).scheduler == "euler"
        return
    used: list[torch.Generator] = []
    monkeypatch.setattr(
        import_module("synthgen.diffusion.generate"),
        "sample_generators",
        lambda seeds: used.extend(sample_generators(seeds)) or used[-2:],
    )
    drawn = []
    for state in (1, 2):
        torch.manual_seed(state)  # what the process drew before
        drawn.append(images(generate(model, [CAR, CAR], [5, 5], FAST, CAPTURE)))
    assert np.array_equal(*drawn)
    assert np.abs(drawn[0][0].astype(int) - drawn[0][1]).max() <= 1  # noise by seed, not by place
    (after_latents,) = sample_generators([5])
    initial_noise(model, [after_latents], (16, 16))
    went_on = not torch.equal(used[0].get_state(), after_latents.get_state())
    assert went_on == (name in DRAWING)  # behind the initial noise, never the same noise again


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_pndm_makes_few_steps_whatever_is_stored(backbone: Backbone, steps: int) -> None:
    """Made from another scheduler's settings it would begin with Runge-Kutta: four at least."""
    asked = fast(scheduler="pndm", num_inference_steps=steps)
    samples(generate(stored(backbone, "DDIMScheduler"), [CAR], [1], asked, CAPTURE))


def test_a_number_of_steps_that_cannot_be_made_is_named_before_anything_runs(
    backbone: Backbone,
) -> None:
    model = stored(backbone, "PNDMScheduler", skip_prk_steps=False)
    for name, steps in (("PNDMScheduler", 3), ("LCMScheduler", 60)):
        model = stored(backbone, name, skip_prk_steps=False)
        with pytest.raises(ValueError, match=rf"{name} can make\. Got {steps} \(") as caught:
            generate(model, [CAR], [1], fast(num_inference_steps=steps), CAPTURE)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prk", [False, True])
@pytest.mark.parametrize(("steps", "calls"), [(1, [1]), (2, [26, 1, 1]), (3, [51, 26, 26, 1])])
def test_pndm_inverts_from_the_noise_that_strength_says(
    backbone: Backbone, steps: int, calls: list[int], prk: bool
) -> None:
    """Cut by position its list begins one step early, with Runge-Kutta steps nine calls."""
    model = stored(backbone, "PNDMScheduler", skip_prk_steps=not prk)
    assert timesteps_of(model, None, strength=steps / 40 + 1e-6) == calls


@pytest.mark.parametrize(
    ("scheduler", "calls"), [("ddim", 2), ("euler", 2), ("dpm++", 2), ("pndm", 3)]
)
def test_inversion_captures_the_last_call_that_a_scheduler_makes(
    backbone: Backbone, scheduler: str, calls: int
) -> None:
    assert len(timesteps_of(backbone, scheduler)) == calls
    assert len(timesteps_of(stored(backbone, "HeunDiscreteScheduler"), None)) == 3


def timesteps_of(model: Backbone, scheduler: str | None, strength: float = 0.05) -> list[float]:
    """Timesteps of the UNet calls of an inversion; its features are those of the last one."""
    seen: list[float] = []
    last: list[torch.Tensor] = []
    unet = model.pipeline.unet
    layer = unet.up_blocks[1].attentions[0].transformer_blocks[0].attn1
    handles = [
        unet.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[1]))),
        layer.to_out[0].register_forward_pre_hook(lambda _, inputs: last.append(inputs[0])),
    ]
    photo = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 1, 64, 3))
    try:
        (sample,) = samples(
            invert(
                model,
                photo,
                [CAR],
                [1],
                GenerationConfig(scheduler=scheduler),
                CaptureConfig(layers=("up_blocks.1.attentions.0",)),
                strength=strength,
            )
        )
    finally:
        for handle in handles:
            handle.remove()
    (value,) = sample.features.values.values()
    assert torch.equal(value.transpose(0, 1).flatten(1), last[-1][0])
    return seen


def test_a_dataset_of_a_drawing_scheduler_is_made_again_byte_by_byte(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    """Also samples of a batch of their own, and after the process drew something else."""
    model = shutil.copytree(tiny_pipeline, tmp_path / "model")
    path = model / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text()) | {"_class_name": "EulerAncestralDiscreteScheduler"}
    path.write_text(json.dumps(settings))
    index = json.loads((model / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EulerAncestralDiscreteScheduler"]
    (model / "model_index.json").write_text(json.dumps(index))
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    sizes = ("num=3", "generation.scheduler=null", "generation.num_inference_steps=2")
    config = tiny_config(model, prompts, *sizes)
    torch.manual_seed(1)
    jobs.generate(config, tmp_path / "out")
    torch.manual_seed(2)
    assert all(jobs.replay(tmp_path / "out", "0000000001").values())
