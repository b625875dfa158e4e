"""Drawing images from prompts, with their attention recorded on the way.

One call is one UNet batch: which samples share a batch is the caller's plan, never decided here.
The denoising loop is diffusers' own. Every sample has its own CPU generator, so its initial
latents and its scheduler's noise depend on its seed alone; its image depends on its batch only
through the rounding of batched kernels (bytes are equal for equal batches). What went wrong with
one sample is a `Failure` in its place: NaN latents and one-colored images are never segmented.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from synthgen.config import CaptureConfig, GenerationConfig, LabelConfig, ModelConfig
from synthgen.diffusion.attention import record
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.diffusion.heatmaps import class_attribution, class_heatmaps
from synthgen.diffusion.recording import Recording, pixels8
from synthgen.diffusion.schedulers import make_scheduler, sample_generators, set_steps
from synthgen.prompts import attribution_text, truncated_words
from synthgen.types import Failure, Prompt, Sample

SELF_GRID = 64
"""Longest shorter side of the self-attention map that masks are made of (DiffSeg)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A run's settings with the card's defaults filled in; sizes in pixels."""

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str | None


def resolve_settings(backbone: Backbone, generation: GenerationConfig) -> Settings:
    """The settings of a run: what is asked for, or else what the card says.

    Raises:
        ValueError: If the size does not go through the model without remainder, or the scheduler
            cannot make such a run.
    """
    card, asked = backbone.card, generation
    height, width = backbone.native_size
    settings = Settings(
        height=asked.height or height,
        width=asked.width or width,
        num_inference_steps=asked.num_inference_steps or card.num_inference_steps,
        guidance_scale=(
            card.guidance_scale if asked.guidance_scale is None else asked.guidance_scale
        ),
        scheduler=asked.scheduler or card.scheduler,
    )
    backbone.latent_size(settings.height, settings.width)
    set_steps(make_scheduler(backbone, settings.scheduler), settings.num_inference_steps)
    return settings


def load_model(card: str = "scenes", **settings: Any) -> Any:
    """A diffusers pipeline ready to draw and to be recorded; loaded once per process.

    Args:
        card: scenes (embedded, needs no network), sd15, sd21-base, sd21, a folder in diffusers'
            layout, or a hub id.
        settings: Of `ModelConfig`: device, dtype, revision, lora, attention, vae_tiling, compile.

    Raises:
        ValueError: In one line, for an unknown card or weights that are not there.

    >>> import synthgen
    >>> pipe = synthgen.load_model()
    >>> pipe("a red car", num_inference_steps=2).images[0].size
    (128, 128)
    """
    backbone = load_backbone(ModelConfig(card=card, **settings))
    if backbone.draw is not None:
        raise ValueError(
            f"card must be of a diffusers model. Got {card!r}, which draws by itself."
        )
    scheduler = make_scheduler(backbone, backbone.card.scheduler)
    return with_scheduler(backbone, diffusers.StableDiffusionPipeline, scheduler)


def drawn_text(prompt: Prompt, append_classes: bool) -> str:
    """The text an image is drawn from; with its classes as "caption; class, class" (DD, BL).

    >>> drawn_text(Prompt("0", "a busy street", ("car", "person")), append_classes=True)
    'a busy street; car, person'
    """
    if not append_classes or not prompt.class_names:
        return prompt.text
    return f"{prompt.text}; {attribution_text(prompt.class_names)}"


def generate(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    generation: GenerationConfig,
    capture: CaptureConfig,
    labeling: LabelConfig | None = None,
    self_map: bool = False,
) -> list[Sample | Failure]:
    """Draw one image per prompt and seed in one UNet batch; several per prompt by repetition.

    Args:
        backbone: Loaded model.
        prompts: One per image.
        seeds: One per image; fixes its initial latents.
        generation: Size, steps, guidance, scheduler; ``batch_size`` is the caller's affair.
        capture: What is recorded.
        labeling: What labels are made from is recorded too.
        self_map: So is the self-attention of all layers.

    Raises:
        ValueError: Before anything runs, for settings that the model cannot satisfy.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"seeds must be one per prompt. Got {len(seeds)} for {len(prompts)}.")
    if not prompts:
        return []
    if backbone.draw is not None:
        with backbone.lock:
            drawn: list[Sample | Failure] = backbone.draw(prompts, seeds, generation)
            return drawn
    settings = resolve_settings(backbone, generation)
    texts = [drawn_text(prompt, generation.append_classes) for prompt in prompts]
    denoising = text_to_image(backbone, texts, seeds, settings, generation.negative_prompt)
    with backbone.lock, torch.no_grad():
        _warn_of_truncation(backbone, prompts, texts)
        recording, latents = run_recorded(
            backbone, denoising, prompts, texts, capture, labeling, self_map
        )
        images = [decode_image(backbone, row) for row in latents.chunk(len(latents))]
    return samples_or_failures(recording, prompts, seeds, images)


@dataclass(frozen=True, slots=True)
class Denoising:
    """A run that is ready to go.

    Args:
        run: Makes the UNet calls; returns final latents.
        num_calls: How many calls that will be.
        guided: Whether they see [negative, positive] rows.
    """

    run: Callable[[], Tensor]
    num_calls: int
    guided: bool


def run_recorded(
    backbone: Backbone,
    denoising: Denoising,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    capture: CaptureConfig,
    labeling: LabelConfig | None = None,
    self_map: bool = False,
) -> tuple[Recording, Float[Tensor, "batch channel latent_height latent_width"]]:
    """Run it and record; the caller holds the backbone's lock.

    With ``self_map`` labels are made from the same map as masks, whatever they would record.
    """
    maps: dict[str, Any] = {"map_layers": None}
    if labeling is not None and labeling.method not in ("none", "parts"):
        maps = {
            "map_layers": labeling.layers,
            "map_grids": labeling.grids,
            "map_calls": labeling.calls,
            "self_grid": labeling.self_grid if labeling.needs_self_map else None,
            "attribution": class_attribution(backbone.pipeline, prompts, texts, labeling.text),
        }
    if self_map:
        maps |= {"self_layers": "all", "self_grid": SELF_GRID}
    settings: dict[str, Any] = dict(backbone.resolve_capture(capture))
    known: dict[str, Any] = {"num_calls": denoising.num_calls, "guided": denoising.guided}
    with record(backbone.pipeline, **settings, **maps, **known) as recording:
        latents = denoising.run()
    return recording, latents


def samples_or_failures(
    recording: Recording,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    images: Sequence[UInt8[np.ndarray, "height width 3"] | None],
) -> list[Sample | Failure]:
    """A sample of each image, or why there is none; None: latents or pixels are not finite."""
    results: list[Sample | Failure] = []
    maps, names = recording.token_maps(), [prompt.class_names for prompt in prompts]
    heatmaps = class_heatmaps(maps, recording.map_grids, names)
    selves = recording.self_maps() or [None] * len(prompts)
    rows = zip(recording.features(), heatmaps, selves, strict=True)
    for prompt, seed, image, kept in zip(prompts, seeds, images, rows, strict=True):
        if image is None:
            message = "latents or pixels are not finite; try model.dtype bfloat16 or float32"
            results.append(Failure(prompt, seed, "nan_latents", message))
        elif is_one_color(image):
            message = f"all pixels are {image[0, 0].tolist()}"
            results.append(Failure(prompt, seed, "black_image", message))
        else:
            results.append(Sample(prompt, seed, image, *kept))
    return results


def is_one_color(image: UInt8[np.ndarray, "height width 3"]) -> bool:
    """Whether all pixels are equal: nothing that could be segmented.

    >>> is_one_color(np.full((2, 2, 3), [0, 128, 255], dtype=np.uint8))
    True
    """
    return bool((image == image[:1, :1]).all())


def initial_noise(
    backbone: Backbone, generators: Sequence[torch.Generator], latent_size: tuple[int, int]
) -> Float[Tensor, "batch channel latent_height latent_width"]:
    """Standard normal latents, from a CPU generator per sample: equal on every device."""
    shape = (1, backbone.pipeline.unet.config.in_channels, *latent_size)
    rows = [torch.randn(shape, generator=generator) for generator in generators]
    return torch.cat(rows).to(backbone.device, backbone.dtype)


def decode_image(
    backbone: Backbone, latents: Float[Tensor, "1 channel latent_height latent_width"]
) -> UInt8[np.ndarray, "height width 3"] | None:
    """The image of one sample's latents, None if latents or pixels are not finite.

    One at a time: memory does not grow with the batch, and bytes do not depend on it.
    """
    if not torch.isfinite(latents).all():
        return None
    vae = backbone.pipeline.vae
    pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0][0]
    return pixels8(pixels) if torch.isfinite(pixels).all() else None


def with_scheduler(backbone: Backbone, kind: Any, scheduler: Any) -> Any:
    """A pipeline of diffusers over the backbone's own modules; nothing is copied."""
    components = {**backbone.pipeline.components, "scheduler": scheduler}
    pipeline = kind(**components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def is_guided(backbone: Backbone, guidance_scale: float) -> bool:
    """Whether diffusers stacks [negative, positive] rows, by its own rule."""
    embeds_guidance = backbone.pipeline.unet.config.time_cond_proj_dim is not None
    return guidance_scale > 1 and not embeds_guidance


def _warn_of_truncation(
    backbone: Backbone, prompts: Sequence[Prompt], texts: Sequence[str]
) -> None:
    tokenizer = backbone.pipeline.tokenizer
    for prompt, text in zip(prompts, texts, strict=True):
        if cut := truncated_words(tokenizer, text):
            warnings.warn(
                f"Prompt {prompt.id} must have at most {tokenizer.model_max_length} tokens. "
                f"Not seen by the model: {' '.join(cut)!r:.200}. Shorten it.",
                stacklevel=3,
            )


def text_to_image(
    backbone: Backbone,
    texts: list[str],
    seeds: Sequence[int],
    settings: Settings,
    negative_prompt: str,
) -> Denoising:
    """The run that draws one image per text and seed; nothing has run when it returns."""
    guided = is_guided(backbone, settings.guidance_scale)
    if negative_prompt and not guided:
        warnings.warn("generation.negative_prompt has no effect without guidance.", stacklevel=3)
    latent_size = backbone.latent_size(settings.height, settings.width)
    scheduler = make_scheduler(backbone, settings.scheduler)
    set_steps(scheduler, settings.num_inference_steps)

    def run() -> Tensor:
        generators = sample_generators(seeds)
        pipeline = with_scheduler(backbone, diffusers.StableDiffusionPipeline, scheduler)
        latents: Tensor = pipeline(
            prompt=texts,
            negative_prompt=[negative_prompt] * len(texts),
            height=settings.height,
            width=settings.width,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            latents=initial_noise(backbone, generators, latent_size),
            generator=generators,  # of schedulers that draw noise at every step
            output_type="latent",
        ).images
        return latents

    return Denoising(run, len(scheduler.timesteps), guided)
