"""The latent space, defined by a formula instead of trained.

For an image x in [-1, 1] the latents are linear in 4x4 blocks:

    z[0:3] = 2 (mean of the block's RGB - OFFSET)          smooth color, about unit deviation
    z[3]   = 8 (vertical slope of the block's luma)        where inside the block an edge lies

A diffusion model learns such latents fast because they are a small picture, and it can start
before any decoder exists. Mirroring an image mirrors its latents. `construct_encoder` writes
weights into a diffusers encoder that compute exactly this, so a pipeline needs no special case.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from torch import Tensor, nn

OFFSET = (0.0, 0.0, 0.05)
COLOR_GAIN, SLOPE_GAIN = 2.0, 8.0
LUMA = (0.299, 0.587, 0.114)
ANCHOR = 16.0
"""Constant that dominates the encoder's last group norm, which makes it nearly linear."""

LOG_VARIANCE = -14.0


def image_to_unit(
    images: UInt8[Tensor, "batch height width 3"],
) -> Float[Tensor, "batch 3 height width"]:
    """Images in [-1, 1], channels first."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def soften(
    images: Float[Tensor, "batch 3 height width"], amount: Float[Tensor, "batch 1 1 1"]
) -> Float[Tensor, "batch 3 height width"]:
    """Images mixed with themselves at a quarter of the resolution: generated ones are softer."""
    coarse = F.interpolate(F.avg_pool2d(images, 4), size=images.shape[-2:], mode="bilinear")
    return torch.lerp(images, coarse, amount.to(images.dtype))


def encode_blocks(
    images: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, "batch 4 height/4 width/4"]:
    """Latents of images in [-1, 1], by the formula.

    >>> encode_blocks(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 4, 2, 2])
    """
    color = F.avg_pool2d(images, 4) - images.new_tensor(OFFSET)[:, None, None]
    luma = (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    slope = images.new_tensor([-1.5, -0.5, 0.5, 1.5]).view(1, 1, 4, 1).expand(1, 1, 4, 4) / 16
    return torch.cat([COLOR_GAIN * color, SLOPE_GAIN * F.conv2d(luma, slope, stride=4)], 1)


def shrink(latents: Float[Tensor, "batch 4 height width"], grid: int) -> Tensor:
    """Latents pooled to a coarser grid, back at about unit deviation.

    Args:
        latents: On a square grid.
        grid: Side to pool to, a divisor of the latents' side.
    """
    factor = latents.shape[-1] // grid
    return latents if factor == 1 else F.avg_pool2d(latents, factor) * 1.03


@torch.no_grad()
def construct_encoder(vae: AutoencoderKL) -> None:
    """Overwrite the encoder with weights that compute `encode_blocks`.

    Residual branches and attention are silenced; colors travel in channels 0-2, luma slope in 3.
    The last group norm sees signals next to the constants ±ANCHOR, so that its deviation is
    nearly constant, and silu(a) - silu(-a) = a undoes the activation.
    """
    encoder = vae.encoder
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.zero_()
            if module.bias is not None:
                module.bias.zero_()
    for i in range(3):
        encoder.conv_in.weight[i, i, 1, 1] = 1.0
    first, second, third = encoder.down_blocks
    # Slope of four rows = (M1 - M0) / 2 + (D0 + D1) / 8 with the pairs' means M, differences D.
    _halve(first.downsamplers[0].conv.weight, between_pairs=0.5, within_pairs=0.0)
    for i in range(4):
        second.resnets[0].conv_shortcut.weight[i, i] = 1.0
    _halve(second.downsamplers[0].conv.weight, between_pairs=0.25, within_pairs=1 / 16)
    _read_out(third.resnets[0].conv_shortcut, encoder.conv_norm_out, encoder.conv_out)
    vae.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
    vae.quant_conv.bias.zero_()


def _halve(weight: Tensor, between_pairs: float, within_pairs: float) -> None:
    """2x2 mean of the colors; the slope from rows of luma and from the finer slope."""
    rows = torch.tensor([-1.0, 1.0])[:, None].expand(2, 2)
    for i, share in enumerate(LUMA):
        weight[i, i, :2, :2] = 0.25
        weight[3, i, :2, :2] = between_pairs * share * rows
    weight[3, 3, :2, :2] = within_pairs


def _read_out(shortcut: nn.Conv2d, norm: nn.GroupNorm, out: nn.Conv2d) -> None:
    """Signals and anchors in two groups of eight channels, the second negated after the norm."""
    width = norm.num_channels // norm.num_groups
    assert width == 8
    assert shortcut.bias is not None
    assert out.bias is not None
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    norm.weight.fill_(1.0)
    norm.bias.zero_()
    norm.weight[width : 2 * width] = -1.0
    deviation = ANCHOR / 2**0.5
    gains = (COLOR_GAIN, COLOR_GAIN, COLOR_GAIN, SLOPE_GAIN)
    for group, sign in ((0, 1.0), (width, -1.0)):
        shortcut.bias[group + 4 : group + 8] = ANCHOR * signs
        for i, gain in enumerate(gains):
            shortcut.weight[group + i, i] = 1.0
            out.weight[i, group + i, 1, 1] = sign * gain * deviation
            out.weight[i, group + 4 : group + 6, 1, 1] = -sign * gain * deviation / 2
    out.bias[:3] = -COLOR_GAIN * torch.tensor(OFFSET)
    out.bias[4:] = LOG_VARIANCE
