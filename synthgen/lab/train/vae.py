"""Recipe of the autoencoder: the encoder is a formula, only the decoder is trained.

The decoder learns to undo `latents.encode_blocks` on crops: it draws edges and patterns back from
4x4 means. It can be trained further at any time without touching the diffusion model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import UInt8
from torch import Tensor

from synthgen.lab.train.latents import construct_encoder, encode_blocks, image_to_unit
from synthgen.lab.train.models import REDUCTION, build_vae
from synthgen.lab.train.trainer import Settings, Trainer
from synthgen.lab.world.corpus import Corpus

LATENT_NOISE = 0.03
"""Deviation of noise on the latents, so that the decoder forgives sampled ones."""

CROP = 64
"""Side of a crop, in pixels, a multiple of 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeSettings(Settings):
    """How the decoder is trained."""

    lr: float = 2e-3


class VaeTrainer(Trainer):
    """Decoder, optimizer and average while they are trained.

    Args:
        corpus: What crops are drawn from.
        settings: How.
    """

    def __init__(self, corpus: Corpus, settings: VaeSettings):
        torch.manual_seed(settings.seed)
        self.corpus, self.vae = corpus, fresh_vae().to(settings.device)
        trained = [*self.vae.decoder.parameters(), *self.vae.post_quant_conv.parameters()]
        optimizer = torch.optim.AdamW(trained, settings.lr, betas=(0.9, 0.99), fused=True)
        super().__init__(settings, {"vae": self.vae}, optimizer, {"ema_vae": self.vae})

    def crops(self, step: int) -> UInt8[Tensor, "batch height width 3"]:
        """Crops of a step, a function of seed and step, aligned to latent pixels."""
        rng = np.random.default_rng((self.settings.seed, step))
        side = self.corpus.images.shape[1]
        rows = rng.integers(len(self.corpus.images), size=self.settings.batch)
        corners = REDUCTION * rng.integers((side - CROP) // REDUCTION + 1, size=(len(rows), 2))
        pieces = [
            self.corpus.images[row, y : y + CROP, x : x + CROP]
            for row, (y, x) in zip(rows, corners, strict=True)
        ]
        return torch.from_numpy(np.stack(pieces))

    def loss(self, step: int, rank: int, workers: int) -> Tensor:
        """Mean squared error, and a twentieth of the mean absolute one: it keeps edges sharp."""
        images = image_to_unit(self.crops(step)).to(self.settings.device)
        latents = encode_blocks(images)
        rng = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
        latents = latents + LATENT_NOISE * torch.randn(latents.shape, generator=rng).to(latents)
        part = slice(rank, None, workers)
        difference = self.vae.decode(latents[part]).sample - images[part]
        error: Tensor = difference.square().mean() + 0.05 * difference.abs().mean()
        return error


def fresh_vae() -> AutoencoderKL:
    """Autoencoder whose encoder computes the formula and is frozen, with an untrained decoder."""
    vae = build_vae()
    construct_encoder(vae)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae
