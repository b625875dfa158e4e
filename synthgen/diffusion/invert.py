"""Features of given images: image-to-image at low strength, or one UNet call at a timestep.

BL's zero-shot segmentation of real images adds little noise (strength .05) and denoises two
steps, with an empty prompt or a caption. The single call (`timestep`) noises the latent mean to t
and reads the UNet once, as LS and DiffSeg do; it shows quality over timesteps. The sample's
image is the given one: masks describe those pixels, so nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from synthgen.config import CaptureConfig, GenerationConfig, LabelConfig
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.generate import (
    Denoising,
    drawn_text,
    initial_noise,
    is_guided,
    run_recorded,
    samples_or_failures,
    with_scheduler,
)
from synthgen.diffusion.schedulers import (
    ImageToImage,
    make_scheduler,
    sample_generators,
    set_steps,
)
from synthgen.types import Failure, Prompt, Sample


def invert(
    backbone: Backbone,
    images: UInt8[np.ndarray, "batch height width 3"],
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    generation: GenerationConfig,
    capture: CaptureConfig,
    strength: float = 0.05,
    num_inference_steps: int = 40,
    timestep: int | None = None,
    labeling: LabelConfig | None = None,
) -> list[Sample | Failure]:
    """Record attention of given images in one UNet batch.

    Args:
        backbone: Loaded model.
        images: RGB; sides are multiples of ``backbone.size_step``.
        prompts: One per image; an empty text for BL's zero-shot setting.
        seeds: One per image, for its noise.
        generation: Scheduler, guidance (None is none), negative prompt; other settings are
            given by the images and the arguments here.
        capture: What is recorded.
        strength: Share of the schedule that is noised and denoised (BL: .05).
        num_inference_steps: Steps of the full schedule; ``strength`` of them are made (BL: 2).
        timestep: If given, one UNet call without guidance at this timestep (0 to 999) instead.
        labeling: What labels are made from is recorded too.

    Raises:
        ValueError: For counts, sizes or a strength that do not fit.
    """
    if not len(images) == len(prompts) == len(seeds):
        raise ValueError(
            "images, prompts and seeds must be equally many. Got "
            f"{len(images)}, {len(prompts)} and {len(seeds)}."
        )
    if not prompts:
        return []
    backbone.latent_size(*images.shape[1:3])  # refuses what does not go through the model
    image01 = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    texts = [drawn_text(prompt, generation.append_classes) for prompt in prompts]
    if timestep is None:
        denoising = _image_to_image(
            backbone, image01, texts, seeds, generation, strength, num_inference_steps
        )
    else:
        denoising = _single_call(backbone, image01, texts, seeds, timestep)
    with backbone.lock, torch.no_grad():
        recording, latents = run_recorded(backbone, denoising, prompts, texts, capture, labeling)
    finite = torch.isfinite(latents).flatten(1).all(dim=1).tolist()
    given = [image if fine else None for image, fine in zip(images, finite, strict=True)]
    return samples_or_failures(recording, prompts, seeds, given)


def _image_to_image(
    backbone: Backbone,
    image01: Float[Tensor, "batch 3 height width"],
    texts: list[str],
    seeds: Sequence[int],
    generation: GenerationConfig,
    strength: float,
    num_inference_steps: int,
) -> Denoising:
    """diffusers' image-to-image run; the number of its calls is that of its timesteps.

    PNDM makes one call more than steps, Heun and KDPM2 one less than twice as many.
    """
    if not 0 < strength <= 1 or int(num_inference_steps * strength) < 1:
        raise ValueError(
            "strength must be above 0, at most 1 and leave at least one of num_inference_steps. "
            f"Got {strength} of {num_inference_steps}; raise either."
        )
    guidance = 1.0 if generation.guidance_scale is None else generation.guidance_scale
    name = generation.scheduler or backbone.card.scheduler
    scheduler = set_steps(make_scheduler(backbone, name, midway=True), num_inference_steps)
    pipeline = with_scheduler(backbone, ImageToImage, scheduler)
    timesteps, _ = pipeline.get_timesteps(num_inference_steps, strength, backbone.device)

    def run() -> Tensor:
        latents: Tensor = pipeline(
            prompt=texts,
            image=image01,
            strength=strength,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance,
            negative_prompt=[generation.negative_prompt] * len(texts),
            generator=sample_generators(seeds),
            output_type="latent",
        ).images
        return latents

    return Denoising(run, len(timesteps), is_guided(backbone, guidance))


def _single_call(
    backbone: Backbone,
    image01: Float[Tensor, "batch 3 height width"],
    texts: list[str],
    seeds: Sequence[int],
    timestep: int,
) -> Denoising:
    """One prediction at t: latent mean, noised by the schedule of the weights."""
    pipeline = backbone.pipeline
    total = pipeline.scheduler.config.num_train_timesteps
    if not 0 <= timestep < total:
        raise ValueError(f"timestep must be from 0 to {total - 1}. Got {timestep}.")

    def run() -> Tensor:
        pixels = (2 * image01 - 1).to(backbone.device, backbone.dtype)
        means = [pipeline.vae.encode(row).latent_dist.mean for row in pixels.chunk(len(pixels))]
        latents = torch.cat(means) * pipeline.vae.config.scaling_factor
        size = (latents.shape[2], latents.shape[3])
        noise = initial_noise(backbone, sample_generators(seeds), size)
        t = torch.full((len(latents),), timestep, device=backbone.device)
        noisy = make_scheduler(backbone, "ddim").add_noise(latents, noise, t)
        states, _ = pipeline.encode_prompt(
            texts, backbone.device, 1, do_classifier_free_guidance=False
        )
        prediction: Tensor = pipeline.unet(noisy, t, states, return_dict=False)[0]
        return prediction

    return Denoising(run, num_calls=1, guided=False)
