"""Recipe of the autoencoder: the encoder is a formula, only the decoder is trained.

The decoder learns to undo `latents.encode_blocks` on crops: it draws edges and patterns back from
4x4 means. It can be trained further at any time without touching the diffusion model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from synthgen.lab.train import checkpoint
from synthgen.lab.train.latents import construct_encoder, encode_blocks, image_to_unit
from synthgen.lab.train.loop import Progress, run_steps, set_learning_rate
from synthgen.lab.train.models import REDUCTION, build_vae
from synthgen.lab.world.corpus import Corpus

LATENT_NOISE = 0.03
"""Deviation of noise on the latents, so that the decoder forgives sampled ones."""


@dataclass(frozen=True, slots=True)
class VaeSettings:
    """How the decoder is trained.

    Args:
        steps: Steps in total.
        batch: Crops per step.
        crop: Side of a crop, in pixels, a multiple of 4.
        lr: Learning rate after warming up.
        decay_share: Share of the steps over which the rate falls.
        seed: Seed of initialization and batches.
        device: `cpu` or `cuda`.
        save_every_s: Seconds between checkpoints.
    """

    steps: int
    batch: int = 16
    crop: int = 64
    lr: float = 2e-3
    decay_share: float = 0.4
    seed: int = 0
    device: str = "cpu"
    save_every_s: float = 120.0


class VaeTrainer:
    """Decoder, optimizer and average while they are trained."""

    def __init__(self, corpus: Corpus, settings: VaeSettings):
        torch.manual_seed(settings.seed)
        self.settings, self.corpus = settings, corpus
        self.vae = fresh_vae().to(settings.device)
        trained = [*self.vae.decoder.parameters(), *self.vae.post_quant_conv.parameters()]
        self.optimizer = torch.optim.AdamW(trained, settings.lr, betas=(0.9, 0.99), fused=True)
        self.average = checkpoint.Average(self.vae)
        self.step = 0
        self.curve: list[tuple[int, float]] = []

    def crops(self, step: int) -> UInt8[Tensor, "batch height width 3"]:
        """Crops of a step, a function of seed and step, aligned to latent pixels."""
        rng = np.random.default_rng((self.settings.seed, step))
        side, crop = self.corpus.images.shape[1], self.settings.crop
        rows = rng.integers(len(self.corpus.images), size=self.settings.batch)
        corners = REDUCTION * rng.integers((side - crop) // REDUCTION + 1, size=(len(rows), 2))
        pieces = [
            self.corpus.images[row, y : y + crop, x : x + crop]
            for row, (y, x) in zip(rows, corners, strict=True)
        ]
        return torch.from_numpy(np.stack(pieces))

    def update(self, step: int) -> float:
        """One step; returns the mean squared error, images in [-1, 1]."""
        s = self.settings
        set_learning_rate(self.optimizer, step, s.steps, s.lr, s.decay_share)
        images = image_to_unit(self.crops(step)).to(self.settings.device)
        latents = encode_blocks(images)
        rng = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
        latents = latents + LATENT_NOISE * torch.randn(latents.shape, generator=rng).to(latents)
        loss = decoder_loss(self.vae.decode(latents).sample, images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        self.step = step + 1
        self.average.update(step)
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """Write decoder, average and optimizer."""
        tensors = {
            **checkpoint.prefixed("vae.", self.vae.state_dict()),
            **checkpoint.prefixed("ema_vae.", self.average.state()),
            **checkpoint.prefixed("optimizer.", checkpoint.optimizer_state(self.optimizer)),
        }
        meta = {"step": self.step, "curve": self.curve, "settings": asdict(self.settings)}
        checkpoint.save_state(folder, tensors, meta)

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint in `folder`, if there is one."""
        found = checkpoint.load_state(folder)
        if found is None:
            return
        tensors, meta = found
        self.vae.load_state_dict(checkpoint.subset(tensors, "vae."))
        self.average.load(checkpoint.subset(tensors, "ema_vae."))
        checkpoint.load_optimizer(self.optimizer, checkpoint.subset(tensors, "optimizer."))
        self.step, self.curve = meta["step"], [tuple(row) for row in meta["curve"]]


def fresh_vae() -> AutoencoderKL:
    """Autoencoder whose encoder computes the formula and is frozen, with an untrained decoder."""
    vae = build_vae()
    construct_encoder(vae)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae


def decoder_loss(
    decoded: Float[Tensor, "batch 3 height width"], images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Mean squared error plus a twentieth of the mean absolute one, which keeps edges sharp."""
    difference = decoded - images
    return difference.square().mean() + 0.05 * difference.abs().mean()


def train_vae(corpus: Corpus, folder: Path, settings: VaeSettings) -> Iterator[Progress]:
    """Train the decoder up to `settings.steps`, resuming from `folder`."""
    trainer = VaeTrainer(corpus, settings)
    trainer.load(folder)
    save_every = settings.save_every_s
    save = lambda _step: trainer.save(folder)  # noqa: E731
    for progress in run_steps(trainer.update, save, trainer.step, settings.steps, save_every):
        trainer.curve.append((progress.step, round(progress.loss, 5)))
        yield progress
