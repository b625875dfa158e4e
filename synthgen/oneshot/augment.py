"""Changed views of an example (appendix B): flipped, blurred, turned, cropped, with its mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.transforms.functional import adjust_brightness, adjust_hue, gaussian_blur

from synthgen.types import IGNORE


class Ranges(NamedTuple):
    """How far views are changed."""

    crop: float  # least share of the sides that is kept
    degrees: float  # most that they are turned by, either way


PRESETS: Mapping[str, Ranges] = {
    "car": Ranges(0.5, 30.0),
    "horse": Ranges(0.8, 30.0),
    "face": Ranges(0.6, 10.0),
}
"""The paper's ranges; flips of every second view, and a blur of up to 2 pixels in 512."""


def augment(
    image01: Float[Tensor, "3 height width"],
    mask: Int[Tensor, "height width"],
    preset: str,
    rng: np.random.Generator,
) -> tuple[Float[Tensor, "3 height width"], Int[Tensor, "height width"]]:
    """A view of an example at its own size; what lies outside of the image is undecided, 255.

    Args:
        image01: Values in 0 to 1.
        mask: Class of each pixel.
        preset: none, or a row of `PRESETS`.
        rng: Decides.
    """
    if preset == "none":
        return image01, mask
    ranges = PRESETS[preset]
    height, width = mask.shape
    flip, share, blur = rng.random() < 0.5, rng.uniform(ranges.crop, 1), rng.uniform(0, 2 / 512)
    angle = math.radians(rng.uniform(-ranges.degrees, ranges.degrees))
    dx, dy = rng.uniform(-1, 1, 2) * (1 - share)  # the crop stays inside before it is turned
    cos, sin, mirror = math.cos(angle) * share, math.sin(angle) * share, -1 if flip else 1
    shape = height / width
    theta = torch.tensor(  # from places of the view to places of the example, both in -1 to 1
        [[mirror * cos, -sin * shape, dx], [mirror * sin / shape, cos, dy]], dtype=torch.float32
    )
    grid = F.affine_grid(theta[None], [1, 1, height, width], align_corners=False)
    view = F.grid_sample(image01[None], grid, padding_mode="reflection", align_corners=False)[0]
    sigma = blur * max(height, width)
    if sigma > 0.1:
        view = gaussian_blur(view, kernel_size=2 * math.ceil(2 * sigma) + 1, sigma=sigma)
    shifted = (mask != IGNORE) * (mask + 1)  # 0 is undecided, as what lies outside
    nearest = F.grid_sample(
        shifted[None, None].float(), grid, mode="nearest", align_corners=False
    )[0, 0].long()
    return view.clamp(0, 1), torch.where(nearest == 0, IGNORE, nearest - 1)


def recolor(
    image01: Float[Tensor, "3 height width"], rng: np.random.Generator
) -> Float[Tensor, "3 height width"]:
    """The image with its hues turned by any angle, and up to two fifths lighter or darker."""
    turned: Tensor = adjust_hue(image01, float(rng.uniform(-0.5, 0.5)))
    found: Tensor = adjust_brightness(turned, float(rng.uniform(0.6, 1.4)))
    return found


def change_background(
    image01: Float[Tensor, "3 height width"],
    mask: Int[Tensor, "height width"],
    rng: np.random.Generator,
) -> Float[Tensor, "3 height width"]:
    """The image before a background of other colors: its own, turned, or one that is made up.

    Every second one has the example's hues turned by any angle, a third to three times as bright;
    the others are of random colors at 1 x 1 to 4 x 4 places, bilinear between them.

    Args:
        image01: Values in 0 to 1.
        mask: Class of each pixel; those of class 0 are replaced.
        rng: Decides.
    """
    if rng.random() < 0.5:
        turned = adjust_hue(image01, float(rng.uniform(-0.5, 0.5)))
        other = adjust_brightness(turned, float(rng.uniform(0.3, 3.0)))
    else:
        num = int(rng.integers(1, 5))
        colors = torch.from_numpy(rng.random((1, 3, num, num), dtype=np.float32))
        other = F.interpolate(colors, size=mask.shape, mode="bilinear", align_corners=False)[0]
    return torch.where(mask[None] == 0, other, image01)
