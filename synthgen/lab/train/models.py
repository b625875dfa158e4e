"""The embedded model's networks: Stable Diffusion 2.1's topology, narrower.

What is kept of SD 2.1: 2+2+2 self-attention layers on the way down, 1 in the middle, 3+3+3 on the
way up, linear projections, epsilon prediction, scaled-linear betas. What is smaller: widths, text
encoder, and the VAE, which reduces by 4, so that 128 px give attention grids 32/16/8 and mid 4.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from synthgen.embedded.vocabulary import IMAGE_SIZE
from synthgen.lab.train.tokenizer import MAX_TOKENS

TEXT_DIM = 128
REDUCTION = 4
"""Image pixels per latent pixel, along each side."""

LATENT_SIZE = IMAGE_SIZE // REDUCTION


def build_vae() -> AutoencoderKL:
    """Autoencoder with 4 latent channels; latents have about unit deviation without scaling."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.0,
    )


def build_text_encoder(vocabulary: int, end_token: int) -> CLIPTextModel:
    """CLIP text encoder of two layers.

    Args:
        vocabulary: Number of tokens.
        end_token: Token that ends and pads captions.
    """
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_DIM,
            intermediate_size=2 * TEXT_DIM,
            projection_dim=TEXT_DIM,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="gelu",
            bos_token_id=end_token - 1,
            eos_token_id=end_token,
            pad_token_id=end_token,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """UNet of 8.8 M parameters, head dimension 16 at every level."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(32, 64, 128, 128),
        attention_head_dim=(2, 4, 8, 8),
        cross_attention_dim=TEXT_DIM,
        use_linear_projection=True,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )


def build_scheduler() -> DDIMScheduler:
    """SD 2.1's noise schedule, sampled by DDIM."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The embedded pipeline in fp32 on the CPU, without progress bars."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
