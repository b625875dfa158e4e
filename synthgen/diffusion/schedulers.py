"""Schedulers: which may step a run, in how many UNet calls, and where their noise comes from.

A scheduler that draws noise takes it from the samples' own CPU generators, so that an image
depends on its seed whatever else the process draws. Which do is a table, not a guess: `FAMILY`
holds the schedulers of diffusers that are made for such a UNet and give the same bytes twice; all
others are refused by name. A run makes as many UNet calls as its list of timesteps is long: PNDM
one more than steps, Heun and KDPM2 nearly twice as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor

from synthgen.diffusion.backbones import Backbone
from synthgen.storage.untrusted import one_line

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
"""Scheduler name to diffusers class; configured like the one stored with the weights."""

FAMILY = frozenset(
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "PNDM", "LMSDiscrete"),
        *("EulerDiscrete", "EulerAncestralDiscrete", "EDMEuler", "HeunDiscrete"),
        *("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep"),
        *("KDPM2Discrete", "KDPM2AncestralDiscrete", "SASolver", "LCM", "TCD"),
    )
)
"""Classes that may be stored with weights. DPMSolverSDE is not: it draws from a global state."""


def make_scheduler(backbone: Backbone, name: str | None, midway: bool = False) -> Any:
    """A fresh scheduler with the noise schedule and prediction type stored with the weights.

    Args:
        backbone: Holds the stored one.
        name: Key of `SCHEDULERS`; None is the stored one.
        midway: The run begins in the middle, where PNDM can make no Runge-Kutta steps.

    Raises:
        ValueError: For a class that is not of the `FAMILY`.
    """
    stored = backbone.pipeline.scheduler
    kind = type(stored) if name is None else getattr(diffusers, SCHEDULERS[name])
    if kind.__name__ not in FAMILY:
        raise ValueError(
            f"The scheduler stored with {backbone.card.name} must be one that steps a Stable "
            f"Diffusion UNet and draws its noise from the samples' seeds. Got {kind.__name__}; "
            f"set generation.scheduler to {', '.join(SCHEDULERS)}."
        )
    changes = {}
    if kind is diffusers.DDIMScheduler:
        # Latents are not bounded by 1; a DDIM made from another scheduler's settings would clip.
        changes["clip_sample"] = False
    if kind is diffusers.PNDMScheduler and (midway or name is not None):
        # As Stable Diffusion stores it; a PNDM made from another's settings would need 4 steps.
        changes["skip_prk_steps"] = True
    return kind.from_config(stored.config, **changes)


def set_steps(scheduler: Any, num_inference_steps: int) -> Any:
    """The scheduler, with the timesteps of a run of so many steps.

    Raises:
        ValueError: In one line, for a number that it cannot make.
    """
    try:
        scheduler.set_timesteps(num_inference_steps)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"generation.num_inference_steps must be a number of steps that "
            f"{type(scheduler).__name__} can make. Got {num_inference_steps} ({one_line(error)}); "
            "choose another number or generation.scheduler."
        ) from None
    return scheduler


class ImageToImage(diffusers.StableDiffusionImg2ImgPipeline):  # type: ignore[misc]
    """diffusers' image-to-image, beginning where ``strength`` says under every scheduler.

    PNDM's list repeats its second step, for a correction that the scheduler makes at its second
    call wherever it begins. Cut by position, it begins one step too early and corrects a step
    that was not made.
    """

    def get_timesteps(
        self, num_inference_steps: int, strength: float, device: Any
    ) -> tuple[Tensor, int]:
        """The timesteps of the UNet calls of a run that begins midway, and its steps."""
        timesteps, steps = super().get_timesteps(num_inference_steps, strength, device)
        if isinstance(self.scheduler, diffusers.PNDMScheduler) and steps < num_inference_steps:
            left = self.scheduler.timesteps[-steps:]
            timesteps = torch.cat([left[:2], left[1:]])
        return timesteps, steps


def sample_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per sample, for its initial noise and then for its scheduler's."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
