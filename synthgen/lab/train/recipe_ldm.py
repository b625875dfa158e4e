"""Recipe of the diffusion model: UNet and text encoder, trained together on formula latents.

Progressive resizing: most steps run on latents pooled to 16x16, which cost a quarter; the last
ones on the full 32x32. Loss is min-SNR weighted epsilon prediction (Hang et al. 2023, gamma 5).
Batches depend only on seed, stage and step, so that a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModel

from synthgen.lab.train import checkpoint
from synthgen.lab.train.latents import encode_blocks, image_to_unit, shrink
from synthgen.lab.train.loop import WARM_UP, Progress, run_steps, set_learning_rate
from synthgen.lab.train.models import build_scheduler, build_text_encoder, build_unet
from synthgen.lab.train.tokenizer import load_tokenizer
from synthgen.lab.world.corpus import Corpus
from synthgen.lab.world.parallel import GradientWorkers

MIN_SNR = 5.0
LEAST_DENSITY = 0.15
"""Smallest probability of a timestep, relative to the largest."""

CALM = 420
"""Timestep below which an object's outline shows through the noise."""

CAPTION_DROPOUT = 0.1
ENCODED_AT_ONCE = 500  # images


@dataclass(frozen=True, slots=True)
class LdmSettings:
    """One stage of training.

    Args:
        steps: Steps of this stage; the learning rate falls over the last `decay_share` of them.
        grid: Side of the latents, 16 or 32.
        batch: Samples per step.
        lr: Learning rate after warming up.
        decay_share: Share of the steps over which the rate falls linearly to 2 %.
        seed: Seed of initialization, batches and noise.
        device: `cpu` or `cuda`.
        bf16: Autocast to bfloat16; worth it only where the machine multiplies it in hardware.
        single_share: Share of the samples that show one object.
        calm_density: Relative density of the timesteps below `CALM`, where the image is readable
            without the caption; below 1 it favors the steps that decide the shape.
        warm_up: Steps over which the rate rises; few are enough where the moments are kept.
        ema_decay: Decay of the averages; 1 / (1 - decay) must be small against the stage's steps,
            or the averages keep weights of the stage before.
        workers: Processes that share each batch, see `parallel`; 1 on a GPU.
        save_every_s: Seconds between checkpoints.
    """

    steps: int
    grid: int = 16
    batch: int = 32
    lr: float = 1e-3
    decay_share: float = 0.3
    seed: int = 0
    device: str = "cpu"
    bf16: bool = False
    single_share: float = 0.72
    calm_density: float = 1.0
    warm_up: int = WARM_UP
    ema_decay: float = 0.998
    workers: int = 1
    save_every_s: float = 180.0


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


@dataclass(slots=True)
class LdmState:
    """Everything that a checkpoint holds."""

    unet: UNet2DConditionModel
    text: CLIPTextModel
    optimizer: torch.optim.Optimizer
    averages: dict[str, checkpoint.Average]
    step: int = 0
    grid: int = 16
    samples: int = 0
    curve: list[tuple[int, int, float]] = field(default_factory=list)


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
        latents = _encode_corpus(corpus)
        if cache is not None:
            np.save(cache, latents.numpy())
    tokenizer = load_tokenizer(tokenizer_dir)
    texts = ["", *corpus.captions]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    single = torch.tensor([len(names) == 1 for names in corpus.classes])
    return LdmData(latents, single, ids[1:], ids[0])


def _encode_corpus(corpus: Corpus) -> Float[Tensor, "scene 4 height width"]:
    """Latents of all images, fp16."""
    starts = range(0, len(corpus.images), ENCODED_AT_ONCE)
    chunks = (corpus.images[start : start + ENCODED_AT_ONCE].copy() for start in starts)
    return torch.cat([encode_blocks(image_to_unit(torch.from_numpy(c))).half() for c in chunks])


def create_state(tokenizer_dir: Path, settings: LdmSettings) -> LdmState:
    """Fresh models and optimizer."""
    torch.manual_seed(settings.seed)
    tokenizer = load_tokenizer(tokenizer_dir)
    # Channels last: 50 instead of 41 samples a second on one AVX-512 thread.
    unet = build_unet().to(settings.device, memory_format=torch.channels_last)
    text = build_text_encoder(len(tokenizer), tokenizer.eos_token_id).to(settings.device)
    parameters = [*unet.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(parameters, settings.lr, betas=(0.9, 0.99), fused=True)
    averages = {
        "unet": checkpoint.Average(unet, settings.ema_decay),
        "text": checkpoint.Average(text, settings.ema_decay),
    }
    return LdmState(unet, text, optimizer, averages, grid=settings.grid)


def save_ldm(state: LdmState, folder: Path, settings: LdmSettings) -> None:
    """Write models, averages and optimizer."""
    tensors = {
        **checkpoint.prefixed("unet.", state.unet.state_dict()),
        **checkpoint.prefixed("text.", _parameters(state.text)),
        **checkpoint.prefixed("optimizer.", checkpoint.optimizer_state(state.optimizer)),
    }
    for name, average in state.averages.items():
        tensors |= checkpoint.prefixed(f"ema_{name}.", average.state())
    meta: dict[str, Any] = {"step": state.step, "grid": state.grid, "samples": state.samples}
    meta |= {"curve": state.curve, "settings": asdict(settings)}
    checkpoint.save_state(folder, tensors, meta)


def load_ldm(state: LdmState, folder: Path) -> bool:
    """Continue from the checkpoint in `folder`; False where there is none."""
    found = checkpoint.load_state(folder)
    if found is None:
        return False
    tensors, meta = found
    state.unet.load_state_dict(checkpoint.subset(tensors, "unet."))
    state.text.load_state_dict(checkpoint.subset(tensors, "text."), strict=False)
    checkpoint.load_optimizer(state.optimizer, checkpoint.subset(tensors, "optimizer."))
    for name, average in state.averages.items():
        average.load(checkpoint.subset(tensors, f"ema_{name}."))
    state.step, state.grid, state.samples = meta["step"], meta["grid"], meta["samples"]
    state.curve = [tuple(row) for row in meta["curve"]]
    return True


def start_from_weights(state: LdmState, weights: Path) -> None:
    """Start from an exported pipeline: its averaged fp16 weights, no optimizer moments."""
    options = {"dtype": torch.float32, "local_files_only": True}
    unet = UNet2DConditionModel.from_pretrained(weights / "unet", use_safetensors=True, **options)
    text = CLIPTextModel.from_pretrained(weights / "text_encoder", **options)
    for name, module, source in (("unet", state.unet, unet), ("text", state.text, text)):
        module.load_state_dict(source.state_dict())
        state.averages[name].load(_parameters(module))


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters()}


def _draw_rows(data: LdmData, settings: LdmSettings, rng: torch.Generator) -> Tensor:
    """Scenes of a batch; those with one object make up `single_share` of it on average."""
    share = data.single.float().mean()
    odds = torch.where(data.single, settings.single_share / share, 1 - settings.single_share)
    odds = torch.where(data.single, odds, odds / (1 - share).clamp(min=1e-6))
    return torch.multinomial(odds, settings.batch, replacement=True, generator=rng)


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
    """Latents, caption tokens, timesteps and noise of a step, a function of seed and step."""
    rng = torch.Generator().manual_seed(settings.seed * 1_000_003 + settings.grid * 7_919 + step)
    rows = _draw_rows(data, settings, rng)
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


def ldm_loss(
    state: LdmState, batch: tuple[Tensor, Tensor, Tensor, Tensor], settings: LdmSettings
) -> Float[Tensor, ""]:
    """Min-SNR weighted squared error of the predicted noise."""
    latents, tokens, timesteps, noise = (t.to(settings.device) for t in batch)
    noisy = build_scheduler().add_noise(latents, noise, timesteps)
    with torch.autocast(settings.device, torch.bfloat16, enabled=settings.bf16):
        hidden = state.text(tokens).last_hidden_state
        predicted = state.unet(noisy, timesteps, hidden).sample
    _, weights = timestep_density()
    error = (predicted.float() - noise).square().mean((1, 2, 3))
    loss: Tensor = (error * weights.to(timesteps.device)[timesteps]).mean()
    return loss


def train_step(state: LdmState, workers: GradientWorkers, settings: LdmSettings) -> float:
    """One update of models and averages; returns the loss."""
    s = settings
    set_learning_rate(state.optimizer, state.step, s.steps, s.lr, s.decay_share, s.warm_up)
    loss = workers.backward(state.step)
    nn.utils.clip_grad_norm_(workers.parameters, 1.0)
    state.optimizer.step()
    state.step += 1
    state.samples += settings.batch
    for average in state.averages.values():
        average.update(state.samples // settings.batch)
    return loss


def enter_stage(state: LdmState, settings: LdmSettings) -> None:
    """Start counting steps anew where the grid changes; weights and moments go on."""
    if state.grid != settings.grid:
        state.grid, state.step = settings.grid, 0


def train_ldm(
    data: LdmData,
    tokenizer_dir: Path,
    folder: Path,
    settings: LdmSettings,
    weights: Path | None = None,
) -> Iterator[Progress]:
    """Train up to `settings.steps` of the stage, resuming from `folder`.

    Args:
        data: What batches are drawn from.
        tokenizer_dir: Folder of the tokenizer.
        folder: Checkpoint folder.
        settings: The stage.
        weights: Exported pipeline to start from where `folder` holds no checkpoint.
    """
    state = create_state(tokenizer_dir, settings)
    if not load_ldm(state, folder) and weights is not None:
        start_from_weights(state, weights)
    enter_stage(state, settings)

    def partial_loss(step: int, rank: int, workers: int) -> Tensor:
        latents, tokens, timesteps, noise = draw_batch(data, step, settings)
        part = slice(rank, None, workers)
        return ldm_loss(
            state, (latents[part], tokens[part], timesteps[part], noise[part]), settings
        )

    def save(_step: int) -> None:
        save_ldm(state, folder, settings)

    parameters = [*state.unet.parameters(), *state.text.parameters()]
    with GradientWorkers(parameters, partial_loss, settings.workers) as workers:

        def update(_step: int) -> float:
            return train_step(state, workers, settings)

        steps, save_every = settings.steps, settings.save_every_s
        for progress in run_steps(update, save, state.step, steps, save_every):
            state.curve.append((state.grid, progress.step, round(progress.loss, 5)))
            yield progress
