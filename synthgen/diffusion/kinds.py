"""Which diffusers folders are models of our kind; said before a weight is read.

Masks come from the attention of a UNet that denoises latents and is told the timestep and a text:
Stable Diffusion 1 and 2, and models trained from them. Folders of other pipelines load in part or
crash at the first call; their configurations say what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthgen.storage.untrusted import parse_json, quote

PIPELINES = frozenset(
    {
        *("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
        *("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
    }
)
"""Pipelines of diffusers that are made of the same parts as Stable Diffusion's."""

_MORE_INPUTS = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim_type",
)


def check_kind(folder: Path) -> None:
    """Refuse a folder of another kind of model, by its configurations.

    Raises:
        ValueError: In one line, with what it is.
    """
    index = read_json(folder / "model_index.json")
    check_pipeline(index, folder)
    unet = read_json(folder / "unet" / "config.json")
    vae = read_json(folder / "vae" / "config.json")
    text = read_json(folder / "text_encoder" / "config.json")
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latents:  # inpainting 9, instructions (pix2pix) 8, upscaling 7, depth 5
        raise _other(f"a UNet of {quote(channels)} input channels for {quote(latents)}", folder)
    for name in _MORE_INPUTS:
        if unet.get(name) is not None:
            raise _other(f"a UNet with {name}={quote(unet[name])}", folder)
    reads, written = unet.get("cross_attention_dim", 1280), text.get("hidden_size", 512)
    if isinstance(reads, int) and reads != written:
        raise _other(f"a UNet that reads {reads} features from a text of {quote(written)}", folder)


def check_pipeline(index: Mapping[str, Any], where: Path | str) -> None:
    """Refuse another kind of pipeline.

    Raises:
        ValueError: In one line, with its class.
    """
    if index.get("_class_name") not in PIPELINES:
        raise _other(quote(index.get("_class_name")).strip("'"), where)
    denoiser = index.get("unet")
    if not isinstance(denoiser, list) or denoiser[-1:] != ["UNet2DConditionModel"]:
        raise _other(f"the denoiser {quote(denoiser)}", where)


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file of a model folder.

    Raises:
        ValueError: In one line, if there is none.
    """
    try:
        stored = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be readable JSON. Got {error}.") from None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} must hold a JSON object. Got {type(stored).__name__}.")
    return stored


def _other(what: str, where: Path | str) -> ValueError:
    return ValueError(
        f"model.card must be a text-to-image model like Stable Diffusion 1 or 2. Got {what} in "
        f"{where}; supported are scenes, sd15, sd21-base, sd21 and models trained from them."
    )
