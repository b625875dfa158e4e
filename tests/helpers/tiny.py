"""A random-weight Stable Diffusion of SD 2.1's topology, small enough for tests.

Everything is real (diffusers' and transformers' own classes, a byte-level BPE tokenizer); only
the widths are toy: channels 16/32/32/32, 1/2/2/2 heads of 16, a VAE that reduces by 4. At 64 px
the latents are 16 x 16 and the self-attention grids 16, 8, 4 and 2 (mid), so ``up`` has
3 x (2 + 2 + 1) = 15 heads, ``down`` 2 x (1 + 2 + 2) = 10, ``mid`` 2.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = (
    *("a", "an", "the", "of", "and", "on", "in", "with", "photo", "red", "green", "blue"),
    *("car", "cars", "dog", "cat", "house", "tree", "person", "road", "sky", "two", "under"),
)
"""Words that are one token each; all others fall apart into pieces or letters."""

PIECES = ("aero", "plane", "mon", "itor", "pot", "ted", "plant")
"""Pieces of words: "aeroplane" and "monitor" are two tokens, as in CLIP's vocabulary."""


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of about 600 entries: bytes, ``WORDS`` as wholes, ``PIECES``."""
    alphabet = _byte_alphabet()
    wholes = [[*word[:-1], word[-1] + "</w>"] for word in (*PIECES, *WORDS)]
    merges: dict[tuple[str, str], None] = {}
    for symbols in (*map(list, PIECES), *wholes):
        for i in range(1, len(symbols)):
            merges.setdefault(("".join(symbols[:i]), symbols[i]))
    entries = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(m) for m in merges)]
    entries = [*dict.fromkeys(entries), "<|startoftext|>", "<|endoftext|>"]
    vocab = {entry: index for index, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=77)


def tiny_pipeline_parts(seed: int = 0) -> dict[str, object]:
    """The components of the pipeline, freshly drawn from ``seed``."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    return {
        "vae": _tiny_vae(),
        "text_encoder": _tiny_text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "unet": _tiny_unet(),
        "scheduler": PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
    }


def save_tiny_pipeline(folder: Path, seed: int = 0) -> Path:
    """Write a diffusers folder with safetensors weights; returns ``folder``."""
    state = torch.get_rng_state()
    try:
        pipeline = StableDiffusionPipeline(
            **tiny_pipeline_parts(seed),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    finally:
        torch.set_rng_state(state)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 32, 32),
        attention_head_dim=(1, 2, 2, 2),  # the NUMBER of heads, as in SD 2.1's config
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        layers_per_block=2,
        cross_attention_dim=32,
        norm_num_groups=8,
        use_linear_projection=True,
    )


def _tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def _tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _byte_alphabet() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE, in GPT-2's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
