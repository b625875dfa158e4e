"""One UNet call that is asked about classes: noised latents in, class maps out, with gradients.

Hooks keep references to what the projections of a few layers give and compute nothing, so that
blocks may be checkpointed; maps are made after the call (`slime`). There is no row for guidance.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from synthgen.diffusion.attention import pair_projections
from synthgen.diffusion.selection import Layer, attention_layers, select_layers
from synthgen.oneshot.settings import PartSettings
from synthgen.oneshot.slime import Projected, cross_maps, was_maps


@dataclass(frozen=True, slots=True)
class Attended:
    """What one UNet call says of the classes.

    Args:
        cross: A_ca of each class (eq. 3).
        was: S_WAS of each class (eq. 6).
        output: What the UNet predicts.
        target: What it should have predicted.
    """

    cross: Float[Tensor, "batch cls height width"]
    was: Float[Tensor, "batch cls grid_height grid_width"]
    output: Float[Tensor, "batch channel latent_height latent_width"]
    target: Float[Tensor, "batch channel latent_height latent_width"]


class ClassReader:
    """Reads class maps from a pipeline's UNet.

    Args:
        pipe: A Stable Diffusion pipeline of diffusers.
        settings: Name the layers.

    Raises:
        ValueError: In one line, for a pipeline without such layers.
    """

    def __init__(self, pipe: Any, settings: PartSettings) -> None:
        self.pipe, self.settings = pipe, settings
        unet = getattr(pipe, "unet", None)
        if not hasattr(unet, "up_blocks") or not hasattr(pipe, "text_encoder"):
            raise ValueError(
                "pipe must be a diffusers pipeline like Stable Diffusion 1 or 2. Got "
                f"{type(pipe).__name__}."
            )
        self.cross_names, self.self_names = slime_layers(
            attention_layers(unet, (64, 64)), settings.cross_layers, settings.self_layers
        )
        config = pipe.scheduler.config
        self.noising = diffusers.DDIMScheduler.from_config(config, clip_sample=False)

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        device: torch.device = next(self.pipe.unet.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's precision."""
        dtype: torch.dtype = next(self.pipe.unet.parameters()).dtype
        return dtype

    @property
    def num_tokens(self) -> int:
        """Tokens of a text, and so the most classes, background included."""
        return int(self.pipe.tokenizer.model_max_length)

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size in pixels that an image is shown to the model at: its shape, the model's area."""
        side = self.pipe.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        factor = self.pipe.vae_scale_factor
        blocks = self.pipe.unet.down_blocks
        step = factor * 2 ** sum(len(getattr(b, "downsamplers", None) or ()) for b in blocks)
        scale = (height * width / (size[0] * size[1])) ** 0.5 * factor
        rows, columns = (max(1, round(side * scale / step)) * step for side in size)
        return rows, columns

    def text_states(self, text: str) -> Float[Tensor, "1 token feature"]:
        """The text encoder's states of a text, in float32."""
        states, _ = self.pipe.encode_prompt(
            [text], self.device, 1, do_classifier_free_guidance=False
        )
        found: Tensor = states.float()
        return found

    def encode(self, image01: Float[Tensor, "3 height width"]) -> Float[Tensor, "1 channel h w"]:
        """The mean of an image's latents."""
        vae = self.pipe.vae
        pixels = (2 * image01[None] - 1).to(self.device, next(vae.parameters()).dtype)
        with torch.no_grad():
            mean: Tensor = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        return mean.to(self.dtype)

    def __call__(
        self,
        latents: Float[Tensor, "batch channel latent_height latent_width"],
        timestep: int,
        seeds: list[int],
        states: Float[Tensor, "1 token feature"],
        num_classes: int,
    ) -> Attended:
        """Noise the latents, call the UNet, make class maps of what its layers projected.

        Args:
            latents: Of images, clean.
            timestep: How much noise, 0 to 999.
            seeds: Of the noise, one per image.
            states: Text embeddings; class k is token k.
            num_classes: K, background included.
        """
        unet, size = self.pipe.unet, (latents.shape[2], latents.shape[3])
        rows = [
            torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        noise = torch.stack(rows).to(latents)
        times = torch.full((len(latents),), timestep, device=latents.device)
        noisy = self.noising.add_noise(latents, noise, times)
        target = noise
        if self.noising.config.prediction_type == "v_prediction":
            target = self.noising.get_velocity(latents, noise, times)
        layers = {layer.name: layer for layer in attention_layers(unet, size)}
        cross: dict[str, Projected] = {}
        own: dict[str, Projected] = {}
        with ExitStack() as handles:
            for name in self.cross_names:
                _keep_projections(unet, layers[name], "attn2", cross, handles)
            for name in self.self_names:
                _keep_projections(unet, layers[name], "attn1", own, handles)
            text = states.expand(len(latents), -1, -1).to(self.dtype)
            output = unet(noisy, times, text, return_dict=False)[0]
        maps = cross_maps([cross[name] for name in self.cross_names], num_classes, size)
        if self.settings.background == "rest":
            maps = torch.cat([1 - maps[:, 1:].sum(1, keepdim=True), maps[:, 1:]], 1)
        was = was_maps(maps, [own[name] for name in self.self_names])
        return Attended(maps, was, output, target)


def _keep_projections(
    unet: Any, layer: Layer, kind: str, store: dict[str, Projected], handles: ExitStack
) -> None:
    """Keep a layer's query and key, of its self- (``attn1``) or cross-attention (``attn2``)."""
    attn = unet.get_submodule(layer.name if kind == "attn1" else layer.cross_name)

    def keep(query: Tensor, key: Tensor) -> None:
        store[layer.name] = Projected(query, key, attn.heads, attn.scale, layer.grid)

    pair_projections(attn, keep, handles, "to_qkv" if kind == "attn1" else "to_kv")


def slime_layers(
    layers: tuple[Layer, ...],
    cross: tuple[str, ...] | None = None,
    own: tuple[str, ...] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the cross- and of the self-attention layers that class maps are made of.

    Of Stable Diffusion's 16 layers the cross-attention of the 8th to 12th (table 10) and the
    self-attention of the last three (appendix B): of any such UNet the first five ninths of the
    up layers, and those of the last up block.

    Raises:
        ValueError: If a name is of no layer, or nothing is left.
    """
    ups = [layer.name for layer in layers if layer.name.startswith("up_blocks")]
    if not ups:
        raise ValueError("pipe must attend to the text in its up blocks. Got no such layer.")
    last = ups[-1].split(".attentions")[0]
    chosen_cross = tuple(ups[: max(1, round(len(ups) * 5 / 9))])
    chosen_own = tuple(name for name in ups if name.startswith(f"{last}."))
    if cross is not None:
        chosen_cross = tuple(layer.name for layer in select_layers(layers, cross))
    if own is not None:
        chosen_own = tuple(layer.name for layer in select_layers(layers, own))
    return chosen_cross, chosen_own


def resized(image: np.ndarray, size: tuple[int, int]) -> Float[Tensor, "3 out_height out_width"]:
    """An image of 8 bits as values in 0 to 1 at another size."""
    image01 = torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, 0).float() / 255
    if tuple(image01.shape[1:]) == size:
        return image01
    grown = F.interpolate(
        image01[None], size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return grown[0].clamp(0, 1)
