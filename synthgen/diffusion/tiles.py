"""Images of any size: the size they are seen at, and features of overlapping tiles of larger ones.

The model sees an image at its own area, in which what is small has few places. Here the image is
also seen a tile at a time, each at the model's size, and what heads wrote is laid side by side on
larger grids. Where tiles overlap it is averaged; a tile says less the nearer its border is, where
it does not know what follows:

    f(p) = sum_t w_t(p) f_t(p) / sum_t w_t(p),   w_t(p) = least distance to a side of t, by axis

A tile knows nothing of the whole, so the whole is seen too, and its heads stand beside the tiles'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from synthgen.diffusion.backbones import Backbone
from synthgen.types import HeadFeatures

OVERLAP = 1 / 4
"""Share of a tile's side that the next one sees again."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where tiles lie, in pixels of the image as it is seen.

    Args:
        size: Height and width of the image.
        tile: Of each tile.
        corners: Upper left corners.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    corners: tuple[tuple[int, int], ...]


def fitted_size(
    size: tuple[int, ...], backbone: Backbone, area_of: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Height and width at which the model sees an image: its shape, the model's area.

    Sides are rounded to what goes through the model. Shapes beyond what that area holds are
    widened to one step.

    Args:
        size: (height, width) of the image.
        backbone: The model.
        area_of: (height, width) of another area; None: the model's own.
    """
    (height, width), step = area_of or backbone.native_size, backbone.size_step
    scale = math.sqrt(height * width / (size[0] * size[1]))
    most = max(1, height * width // step**2)  # steps of the longer side when the other has one
    rows, columns = (min(most, max(1, round(side * scale / step))) * step for side in size)
    return rows, columns


def fit_image(
    image: UInt8[np.ndarray, "_height _width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """The image at another size."""
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def plan_tiles(
    size: tuple[int, ...], native: tuple[int, int], step: int, most: int
) -> Tiling | None:
    """Tiles of an image; None where the model's size holds all of it.

    The image is never enlarged, and reduced to what ``most`` tiles along a side hold.

    Args:
        size: (height, width) of the image.
        native: Of the model.
        step: Multiple that sides and corners are of, so that grids lie on each other.
        most: Tiles along each side.

    >>> plan_tiles((900, 900), (512, 512), 64, 2).corners
    ((0, 0), (0, 384), (384, 0), (384, 384))
    >>> plan_tiles((300, 3000), (512, 512), 64, 3).size, plan_tiles((512, 400), (512, 512), 64, 4)
    ((128, 1280), None)
    """
    if most < 2 or all(side <= own for side, own in zip(size[:2], native, strict=True)):
        return None
    strides = [max(step, int(own * (1 - OVERLAP)) // step * step) for own in native]
    room = [own + stride * (most - 1) for own, stride in zip(native, strides, strict=True)]
    scale = min(1.0, *(held / side for held, side in zip(room, size[:2], strict=True)))
    seen = [max(1, round(side * scale / step)) * step for side in size[:2]]
    tile = [min(side, own) for side, own in zip(seen, native, strict=True)]
    starts = []
    for side, own, stride in zip(seen, tile, strides, strict=True):
        num = 1 + math.ceil((side - own) / stride)
        spread = [round(i * (side - own) / max(1, num - 1) / step) * step for i in range(num)]
        starts.append(spread)
    corners = tuple((top, left) for top in starts[0] for left in starts[1])
    return Tiling((seen[0], seen[1]), (tile[0], tile[1]), corners)


def cut(
    image: UInt8[np.ndarray, "_height _width 3"], tiling: Tiling
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """The image's tiles."""
    whole, (height, width) = fit_image(image, tiling.size), tiling.tile
    return [whole[top : top + height, left : left + width] for top, left in tiling.corners]


def join_tiles(tiling: Tiling, tiles: Sequence[HeadFeatures], whole: HeadFeatures) -> HeadFeatures:
    """Head outputs of all tiles on one grid per layer, beside those of the whole image.

    Args:
        tiling: Where they lie.
        tiles: One per corner, in their order.
        whole: Of the whole image; its layers keep their names, the tiles' get ``tiles:``.
    """
    values, grids = dict(whole.values), dict(whole.grids)
    for layer, grid in tiles[0].grids.items():
        cell = tiling.tile[0] // grid[0], tiling.tile[1] // grid[1]
        wide = tiling.size[0] // cell[0], tiling.size[1] // cell[1]
        places = [(top // cell[0], left // cell[1]) for top, left in tiling.corners]
        own = [tile.values[layer] for tile in tiles]
        values[f"tiles:{layer}"], grids[f"tiles:{layer}"] = _blend(own, grid, wide, places), wide
    return HeadFeatures(values, grids)


def _blend(
    values: Sequence[Float[Tensor, "head _pos dim"]],
    grid: tuple[int, int],
    wide: tuple[int, int],
    places: Sequence[tuple[int, int]],
) -> Float[Tensor, "head _wide dim"]:
    weights = (torch.minimum(a + 1, n - a) for n in grid for a in (torch.arange(n),))
    down, across = (w.to(values[0].device, torch.float32) for w in weights)
    weight = (down[:, None] * across)[None, :, :, None]
    heads, _, dim = values[0].shape
    total = torch.zeros((heads, *wide, dim), device=values[0].device)
    shares = torch.zeros((1, *wide, 1), device=values[0].device)
    for value, (top, left) in zip(values, places, strict=True):
        part = slice(None), slice(top, top + grid[0]), slice(left, left + grid[1])
        total[part] += weight * value.float().reshape(heads, *grid, dim)
        shares[part] += weight
    return (total / shares).flatten(1, 2).to(values[0].dtype)
