"""Recipe of the diffusion model: UNet and text encoder, trained together on formula latents.

Progressive resizing: most steps run on latents pooled to 16x16, which cost a quarter; the last
ones on the full 32x32. Loss is min-SNR weighted epsilon prediction (Hang et al. 2023, gamma 5).
Batches depend only on seed, stage and step, so that a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import CLIPTextModel

from synthgen.embedded.card import read_card
from synthgen.lab.train.latents import encode_blocks, image_to_unit, shrink
from synthgen.lab.train.models import build_scheduler, build_text_encoder, build_unet
from synthgen.lab.train.tokenizer import load_tokenizer
from synthgen.lab.train.trainer import Progress, Settings, Trainer, lineage
from synthgen.lab.world.corpus import Corpus

MIN_SNR = 5.0
LEAST_DENSITY = 0.15
"""Smallest probability of a timestep, relative to the largest."""

CALM = 420
"""Timestep below which an object's outline shows through the noise."""

CAPTION_DROPOUT = 0.1
ENCODED_AT_ONCE = 500  # images


@dataclass(frozen=True, slots=True, kw_only=True)
class LdmSettings(Settings):
    """One stage of training; `steps` are those of the stage.

    Args:
        grid: Side of the latents, 8, 16 or 32.
        single_share: Share of the samples that show one object.
        calm_density: Relative density of the timesteps below `CALM`, where the image is readable
            without the caption; below 1 it favors the steps that decide the shape.
    """

    batch: int = 32
    decay_share: float = 0.3
    grid: int = 16
    single_share: float = 0.72
    calm_density: float = 1.0


@dataclass(slots=True)
class LdmData:
    """What batches are drawn from.

    Args:
        latents: Of all scenes, fp16.
        single: Which scenes show one object.
        tokens: Of the captions, padded.
        null: Of the empty caption.
    """

    latents: Float[Tensor, "scene 4 height width"]
    single: Bool[Tensor, " scene"]
    tokens: Int[Tensor, "scene token"]
    null: Int[Tensor, " token"]


def prepare_data(corpus: Corpus, tokenizer_dir: Path, cache: Path | None = None) -> LdmData:
    """Encode all images by the latents' formula and tokenize all captions.

    Args:
        corpus: Scenes to train on.
        tokenizer_dir: Folder of the tokenizer.
        cache: File that keeps the latents for the next run.
    """
    if cache is not None and cache.exists():
        latents = torch.from_numpy(np.load(cache))
    else:
        starts = range(0, len(corpus.images), ENCODED_AT_ONCE)
        chunks = (corpus.images[start : start + ENCODED_AT_ONCE].copy() for start in starts)
        units = (image_to_unit(torch.from_numpy(chunk)) for chunk in chunks)
        latents = torch.cat([encode_blocks(images).half() for images in units])
        if cache is not None:
            np.save(cache, latents.numpy())
    tokenizer = load_tokenizer(tokenizer_dir)
    texts = ["", *corpus.captions]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    single = torch.tensor([len(names) == 1 for names in corpus.classes])
    return LdmData(latents, single, ids[1:], ids[0])


class LdmTrainer(Trainer):
    """UNet, text encoder, optimizer and averages while they are trained.

    Args:
        data: What batches are drawn from.
        tokenizer_dir: Folder of the tokenizer.
        settings: The stage. A checkpoint of another grid is gone on with from step 0.
    """

    def __init__(self, data: LdmData, tokenizer_dir: Path, settings: LdmSettings):
        torch.manual_seed(settings.seed)
        self.data = data
        tokenizer = load_tokenizer(tokenizer_dir)
        # Channels last: 50 instead of 41 samples a second on one AVX-512 thread.
        self.unet = build_unet().to(settings.device, memory_format=torch.channels_last)
        if settings.bf16 and settings.device == "cpu":
            # torch's fused attention takes half of a bf16 step there; plain products use AMX.
            # On one core: 1.41 s a step of 48 instead of 2.40, and of 1.70 in float32.
            self.unet.set_attn_processor(AttnProcessor())
        text = build_text_encoder(len(tokenizer), tokenizer.eos_token_id)
        self.text = text.to(settings.device)
        parameters = [*self.unet.parameters(), *self.text.parameters()]
        optimizer = torch.optim.AdamW(parameters, settings.lr, betas=(0.9, 0.99), fused=True)
        averaged = {"ema_unet": self.unet, "ema_text": self.text}
        super().__init__(settings, {"unet": self.unet, "text": self.text}, optimizer, averaged)

    def meta(self) -> dict[str, Any]:
        """The grid is known, too."""
        return {**super().meta(), "grid": self.settings.grid}

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Steps are counted anew where the grid changes; weights and moments go on."""
        super().restore(meta)
        if meta["grid"] != self.settings.grid:
            self.step = 0

    def point(self, progress: Progress) -> tuple[Any, ...]:
        """The curve runs over all grids."""
        return (self.settings.grid, *super().point(progress))

    def start(self, weights: Path) -> None:
        """Start from an exported pipeline: its averaged fp16 weights, no optimizer moments."""
        options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
        unet = UNet2DConditionModel.from_pretrained(weights / "unet", **options)
        text = CLIPTextModel.from_pretrained(weights / "text_encoder", **options)
        for name, source in (("unet", unet), ("text", text)):
            self.modules[name].load_state_dict(source.state_dict())
            self.averages[f"ema_{name}"].load(dict(self.modules[name].named_parameters()))
        card = read_card(weights)
        self.start_from = lineage(card["name"], card["recipe"]["ldm"])

    def loss(self, step: int, rank: int, workers: int) -> Tensor:
        """Min-SNR weighted squared error of the predicted noise."""
        s, part = self.settings, slice(rank, None, workers)
        drawn = draw_batch(self.data, step, s)
        latents, tokens, timesteps, noise = (t[part].to(s.device) for t in drawn)
        noisy = build_scheduler().add_noise(latents, noise, timesteps)
        with torch.autocast(s.device, torch.bfloat16, enabled=s.bf16):
            hidden = self.text(tokens).last_hidden_state
            predicted = self.unet(noisy, timesteps, hidden).sample
        _, weights = timestep_density()
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        loss: Tensor = (error * weights.to(timesteps.device)[timesteps]).mean()
        return loss


@cache
def timestep_density() -> tuple[Float[Tensor, " timestep"], Float[Tensor, " timestep"]]:
    """Probability of each timestep, and the weight that its loss then gets.

    Timesteps are drawn in proportion to their min-SNR weight instead of evenly, so that no step
    is spent on samples that hardly count; the expected loss is the same.
    """
    alpha = build_scheduler().alphas_cumprod
    snr = alpha / (1 - alpha)
    weight = snr.clamp(max=MIN_SNR) / snr
    density = weight.clamp(min=LEAST_DENSITY)
    density = density / density.sum()
    return density, weight / (density * len(density))


def draw_batch(
    data: LdmData, step: int, settings: LdmSettings
) -> tuple[Float[Tensor, "batch 4 height width"], Int[Tensor, " batch token"], Tensor, Tensor]:
    """Latents, caption tokens, timesteps and noise of a step, a function of seed and step.

    Scenes with one object make up `single_share` of a batch on average.
    """
    rng = torch.Generator().manual_seed(settings.seed * 1_000_003 + settings.grid * 7_919 + step)
    share = data.single.float().mean()
    odds = torch.where(data.single, settings.single_share / share, 1 - settings.single_share)
    odds = torch.where(data.single, odds, odds / (1 - share).clamp(min=1e-6))
    rows = torch.multinomial(odds, settings.batch, replacement=True, generator=rng)
    latents = shrink(data.latents[rows].float(), settings.grid)
    mirrored = torch.rand(settings.batch, generator=rng) < 0.5
    latents = torch.where(mirrored[:, None, None, None], latents.flip(3), latents)
    tokens = data.tokens[rows].clone()
    tokens[torch.rand(settings.batch, generator=rng) < CAPTION_DROPOUT] = data.null
    density = timestep_density()[0].clone()
    density[:CALM] *= settings.calm_density
    timesteps = torch.multinomial(density, settings.batch, replacement=True, generator=rng)
    noise = torch.randn(latents.shape, generator=rng)
    return latents, tokens, timesteps, noise
