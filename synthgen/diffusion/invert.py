"""Features of given images: image-to-image at low strength, or UNet calls at one timestep.

BL's zero-shot segmentation of real images adds little noise (strength .05) and denoises two
steps, with an empty prompt or a caption. The single call (`timestep`) noises the latent mean to t
and reads the UNet once, as LS and DiffSeg do; several noises, a call each, are averaged. The
sample's image is the given one: masks describe those pixels, so nothing is decoded. An image of
any size is seen by the model at about the model's own (`fitted_size`), and where that is asked
for in overlapping tiles, too (`tiles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from synthgen.config import ANNOTATION_STEPS, CaptureConfig, GenerationConfig, LabelConfig
from synthgen.diffusion.attention import record
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.cards import Card
from synthgen.diffusion.generate import (
    Denoising,
    drawn_text,
    initial_noise,
    is_guided,
    run_recorded,
    samples_or_failures,
    with_scheduler,
)
from synthgen.diffusion.recording import Recording
from synthgen.diffusion.schedulers import (
    ImageToImage,
    make_scheduler,
    sample_generators,
    set_steps,
)
from synthgen.diffusion.selection import check_budget
from synthgen.diffusion.tiles import Tiling, cut, fit_image, fitted_size, join_tiles, plan_tiles
from synthgen.storage.images import read_photo
from synthgen.types import Failure, HeadFeatures, Prompt, Sample


def record_image(
    pipe: Any,
    image: Any,
    prompt: str = "",
    *,
    strength: float = 0.05,
    num_inference_steps: int = ANNOTATION_STEPS,
    timestep: int | None = None,
    noises: int = 1,
    size: tuple[int, int] | None = None,
    tiles: int = 1,
    seed: int = 0,
    **settings: Any,
) -> Recording:
    """Record the attention of an image that you have, for `segment` and `label`.

    Args:
        pipe: A Stable Diffusion 1 or 2 pipeline of diffusers.
        image: A file's path, an image of PIL, or an RGB array; of any size. Masks have its size.
        prompt: What it shows; `label` finds the classes that it names.
        strength: Share of the schedule that is noised and denoised (BL: .05).
        num_inference_steps: Steps of the full schedule; ``strength`` of them are made (BL: 2).
        timestep: If given, the image is noised to this timestep (0 to 999; LS and SLiMe: 100) and
            the UNet called once instead.
        noises: At a timestep: calls with so much different noise are averaged.
        size: Height and width whose area the model sees it at; None: the model's own.
        tiles: An image that is larger is also seen in overlapping tiles of that size, so many
            along a side at most; 1: as a whole alone.
        seed: Of the noise.
        settings: Of `record`: layers, grids, self_grid, …

    Raises:
        ValueError: In one line, for an image that cannot be read, or another kind of pipeline.

    >>> import numpy as np, synthgen
    >>> pipe, photo = synthgen.load_model(), np.zeros((90, 160, 3), dtype=np.uint8)
    >>> photo[30:60, 40:90] = 255, 0, 0
    >>> recording = synthgen.record_image(pipe, photo, "a red car")
    >>> synthgen.segment(recording)  # doctest: +ELLIPSIS
    Segmentation of ... masks of 90 x 160 pixels
    """
    parts = [getattr(pipe, name, None) for name in ("unet", "vae", "text_encoder", "tokenizer")]
    if None in parts or hasattr(pipe, "text_encoder_2"):
        raise ValueError(
            "pipe must be a Stable Diffusion 1 or 2 pipeline of diffusers. Got "
            f"{type(pipe).__name__}."
        )
    backbone = Backbone(pipe, Card(name="given"), {}, pipe.device, pipe.dtype)
    pixels = _pixels(image)
    how: dict[str, Any] = {"strength": strength, "timestep": timestep, "noises": noises}
    if timestep is not None:
        settings = {**settings, "calls": noises, "map_calls": noises}

    def see(seen: UInt8[np.ndarray, "height width 3"], **more: Any) -> Recording:
        denoising = _denoising(
            backbone, seen[None], [prompt], [seed], GenerationConfig(), num_inference_steps, **how
        )
        known: dict[str, Any] = {"num_calls": denoising.num_calls, "guided": denoising.guided}
        with torch.no_grad(), record(pipe, **{**settings, **more}, **known) as recording:
            denoising.run()
        return recording

    recording = see(fit_image(pixels, fitted_size(pixels.shape[:2], backbone, size)))
    recording.images, recording.size = (pixels,), (pixels.shape[0], pixels.shape[1])
    native = size or backbone.native_size
    tiling = plan_tiles(pixels.shape[:2], native, backbone.size_step, tiles)
    if tiling is not None:
        alone = {"map_layers": None, "self_grid": None}
        seen = [see(part, **alone).features()[0] for part in cut(pixels, tiling)]
        recording.tiled = join_tiles(tiling, seen, recording.features()[0])
    return recording


def _pixels(image: Any) -> UInt8[np.ndarray, "height width 3"]:
    """A notebook user's image as an RGB array."""
    if isinstance(image, str | Path):
        return read_photo(Path(image))
    if isinstance(image, Image.Image):
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    found = np.asarray(image)
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or not found.size:
        raise ValueError(
            "image must be a path, an image of PIL, or an array of uint8 of shape (height, width, "
            f"3). Got {type(image).__name__}, {found.dtype} of shape {found.shape}."
        )
    return np.array(found)  # writable, as torch wants it


def invert(
    backbone: Backbone,
    images: UInt8[np.ndarray, "batch height width 3"],
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    generation: GenerationConfig,
    capture: CaptureConfig,
    strength: float = 0.05,
    num_inference_steps: int = ANNOTATION_STEPS,
    timestep: int | None = None,
    labeling: LabelConfig | None = None,
    noises: int = 1,
    self_map: bool = False,
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
        noises: At a timestep: so many calls, each with noise of its own, are averaged.
        self_map: The self-attention of all layers is recorded too.

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
    texts = [drawn_text(prompt, generation.append_classes) for prompt in prompts]
    how: dict[str, Any] = {"strength": strength, "timestep": timestep, "noises": noises}
    denoising = _denoising(backbone, images, texts, seeds, generation, num_inference_steps, **how)
    if timestep is not None:
        capture = capture.model_copy(update={"calls": noises})
        labeling = labeling and labeling.model_copy(update={"calls": noises})
    with backbone.lock, torch.no_grad():
        recording, latents = run_recorded(
            backbone, denoising, prompts, texts, capture, labeling, self_map
        )
    finite = torch.isfinite(latents).flatten(1).all(dim=1).tolist()
    given = [image if fine else None for image, fine in zip(images, finite, strict=True)]
    return samples_or_failures(recording, prompts, seeds, given)


def invert_any(
    backbone: Backbone,
    images: Sequence[UInt8[np.ndarray, "_height _width 3"]],
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    generation: GenerationConfig,
    capture: CaptureConfig,
    *,
    tiles: int = 1,
    **more: Any,
) -> list[Sample | Failure]:
    """`invert` of images of any size, those that the model sees at one size in one batch.

    With ``tiles`` an image that is larger than the model's is also seen in tiles, see `tiles`.
    """
    area_of = backbone.native_size
    area_of = generation.height or area_of[0], generation.width or area_of[1]
    sizes = [fitted_size(image.shape[:2], backbone, area_of) for image in images]
    found: dict[int, Sample | Failure] = {}
    for size in dict.fromkeys(sizes):
        own = [index for index, other in enumerate(sizes) if other == size]
        batch = np.stack([fit_image(images[index], size) for index in own])
        given = ([prompts[index] for index in own], [seeds[index] for index in own])
        made = invert(backbone, batch, *given, generation, capture, **more)
        for index, one in zip(own, made, strict=True):
            found[index] = one
            if isinstance(one, Sample):
                tiling = plan_tiles(images[index].shape, area_of, backbone.size_step, tiles)
                whole = replace(one, image=images[index])
                if tiling is not None:
                    seen = _look_at_tiles(backbone, whole, tiling, generation, capture, **more)
                    whole = replace(whole, features=join_tiles(tiling, seen, one.features))
                found[index] = whole
    return [found[index] for index in range(len(images))]


def _look_at_tiles(
    backbone: Backbone,
    sample: Sample,
    tiling: Tiling,
    generation: GenerationConfig,
    capture: CaptureConfig,
    *,
    strength: float = 0.05,
    num_inference_steps: int = ANNOTATION_STEPS,
    timestep: int | None = None,
    noises: int = 1,
    **_: Any,
) -> list[HeadFeatures]:
    """Features of each tile; of one color or not. Labels are made from the whole image's maps."""
    area = tiling.size[0] * tiling.size[1] / (tiling.tile[0] * tiling.tile[1])
    check_budget(round(2 * area * sample.features.num_bytes), capture.memory_budget_mb)
    how: dict[str, Any] = {"strength": strength, "timestep": timestep, "noises": noises}
    if timestep is not None:
        capture = capture.model_copy(update={"calls": noises})
    text, found = drawn_text(sample.prompt, generation.append_classes), list[HeadFeatures]()
    parts, at_once = cut(sample.image, tiling), generation.batch_size
    for start in range(0, len(parts), at_once):
        batch = np.stack(parts[start : start + at_once])
        texts, seeds = [text] * len(batch), [sample.seed] * len(batch)
        denoising = _denoising(
            backbone, batch, texts, seeds, generation, num_inference_steps, **how
        )
        with backbone.lock, torch.no_grad():
            recording, _latents = run_recorded(
                backbone, denoising, [sample.prompt] * len(batch), texts, capture
            )
        found += recording.features()
    return found


def _denoising(
    backbone: Backbone,
    images: UInt8[np.ndarray, "batch height width 3"],
    texts: list[str],
    seeds: Sequence[int],
    generation: GenerationConfig,
    num_inference_steps: int,
    *,
    strength: float,
    timestep: int | None,
    noises: int,
) -> Denoising:
    """The run on given images; see `invert`."""
    image01 = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    if timestep is not None:
        return _single_call(backbone, image01, texts, seeds, timestep, noises)
    if noises != 1:
        raise ValueError(f"noises must be 1 without a timestep. Got {noises}.")
    return _image_to_image(
        backbone, image01, texts, seeds, generation, strength, num_inference_steps
    )


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
    noises: int,
) -> Denoising:
    """Predictions at t: the latent mean, noised by the schedule of the weights, anew for each."""
    pipeline = backbone.pipeline
    total = pipeline.scheduler.config.num_train_timesteps
    if not 0 <= timestep < total:
        raise ValueError(f"timestep must be from 0 to {total - 1}. Got {timestep}.")
    if noises < 1:
        raise ValueError(f"noises must be at least 1. Got {noises}.")

    def run() -> Tensor:
        pixels = (2 * image01 - 1).to(backbone.device, backbone.dtype)
        means = [pipeline.vae.encode(row).latent_dist.mean for row in pixels.chunk(len(pixels))]
        latents = torch.cat(means) * pipeline.vae.config.scaling_factor
        size = (latents.shape[2], latents.shape[3])
        t = torch.full((len(latents),), timestep, device=backbone.device)
        scheduler, generators = make_scheduler(backbone, "ddim"), sample_generators(seeds)
        states, _ = pipeline.encode_prompt(
            texts, backbone.device, 1, do_classifier_free_guidance=False
        )
        prediction: Tensor = latents
        for _ in range(noises):
            noise = initial_noise(backbone, generators, size)
            noisy = scheduler.add_noise(latents, noise, t)
            prediction = pipeline.unet(noisy, t, states, return_dict=False)[0]
        return prediction

    return Denoising(run, num_calls=noises, guided=False)
