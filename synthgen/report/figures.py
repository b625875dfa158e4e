"""The paper's figures for one sample: pure functions from what was recorded to matplotlib figures.

BL figure 3 (each head's principal components as colors), 5 (clusters over k), 6 and 7 (a
reference's largest masks above those of ours that match them best), 10 (upsampling error, eq. 6),
and the hierarchy where there is no reference. Figures need no display.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from synthgen.drawing import magnify, overlay
from synthgen.segmentation.features import pca_heads, upsampling_error
from synthgen.segmentation.packed import iou_matrix
from synthgen.types import HeadFeatures, MaskSet, Segmentation

BLUE = (0, 114, 178)  # Okabe-Ito; BL figures 6 and 7 show masks in blue
Picture = UInt8[np.ndarray, "_height _width 3"]
_Image = UInt8[np.ndarray, "height width 3"]


def head_pictures(
    values: Float[Tensor, "head pos dim"], grid: tuple[int, int]
) -> UInt8[np.ndarray, "head height width 3"]:
    """The first three principal components of each head as red, green and blue (BL fig. 3).

    Each component is stretched to 0..255 on its own; heads of fewer than three dimensions leave
    colors dark.
    """
    components = pca_heads(values.float().cpu(), min(3, values.shape[-1]))
    low, high = components.amin(1, keepdim=True), components.amax(1, keepdim=True)
    scaled = (components - low) / torch.where(high > low, high - low, 1.0)
    rgb = torch.zeros(*scaled.shape[:2], 3)
    rgb[..., : scaled.shape[-1]] = scaled
    pixels = (rgb * 255).round().to(torch.uint8)
    return np.asarray(pixels.reshape(len(values), *grid, 3).numpy())


def head_gallery(features: HeadFeatures) -> Figure:
    """One row per layer in the order of the UNet, one picture per head (BL fig. 3)."""
    columns = max(value.shape[0] for value in features.values.values())
    figure, grid = _grid(len(features.values), columns, 0.85)
    for row, (name, value) in enumerate(features.values.items()):
        height, width = features.grids[name]
        for column, picture in enumerate(head_pictures(value, (height, width))):
            _show(grid[row, column], picture, f"head {column}" if row == 0 else "")
        for empty in grid[row, value.shape[0] :]:
            empty.remove()
        grid[row, 0].set_ylabel(f"{_short(name)}\n{height} x {width}", fontsize=6)
    return figure


def cluster_strip(image: _Image, segmentation: Segmentation) -> Figure:
    """The image and its clusters at each k (BL fig. 5)."""
    tiles = [magnify(image), *(overlay(image, labels) for labels in segmentation.labels)]
    return _panel(tiles, ["image", *(f"k = {k}" for k in segmentation.ks)], len(tiles))


def match_masks(
    references: Bool[np.ndarray, "reference height width"],
    masks: Bool[np.ndarray, "mask height width"],
    num: int = 5,
) -> list[tuple[int, int, float]]:
    """The largest references, each with the index of our best mask and their IoU (eq. 3, eq. 4).

    >>> a = np.array([[[True, True, False]], [[False, False, True]]])
    >>> match_masks(a, a[::-1])
    [(0, 1, 1.0), (1, 0, 1.0)]
    """
    if not len(references) or not len(masks):
        return []
    largest = np.argsort(-references.sum((1, 2)), kind="stable")[:num]
    iou = iou_matrix(references[largest], masks)
    pairs = zip(largest.tolist(), iou.argmax(1).tolist(), iou.max(1).tolist(), strict=True)
    return list(pairs)


def matched_masks(
    image: _Image,
    references: Bool[np.ndarray, "reference height width"],
    masks: Bool[np.ndarray, "mask height width"],
) -> Figure:
    """Top: the largest masks of a reference. Bottom: our masks that match them (BL fig. 6, 7)."""
    matches = match_masks(references, masks)
    if not matches:
        return _panel([magnify(image)], ["no masks to match"], 1)
    tiles = [highlight(image, references[index]) for index, _, _ in matches]
    tiles += [highlight(image, masks[index]) for _, index, _ in matches]
    titles = [f"reference {position + 1}" for position in range(len(matches))]
    titles += [f"mask {index + 1}, IoU {iou:.2f}" for _, index, iou in matches]
    return _panel(tiles, titles, len(matches))


def hierarchy(image: _Image, mask_set: MaskSet) -> Figure:
    """Every mask, largest first, with its ks and its parent."""
    if not len(mask_set):
        return _panel([magnify(image)], ["no masks"], 1)
    titles = []
    for index, (members, parent) in enumerate(zip(mask_set.members, mask_set.parent, strict=True)):
        ks = ", ".join(str(k) for k in sorted({k for k, _ in members}))
        inside = f" in mask {parent + 1}" if parent >= 0 else ""
        titles.append(f"mask {index + 1}{inside}\nk = {ks}")
    return _panel([highlight(image, mask) for mask in mask_set.masks], titles, columns=8)


def error_maps(
    blocks: Sequence[Float[Tensor, "_grid_height _grid_width _feature"]], size: tuple[int, int]
) -> Figure:
    """Upsampling error (eq. 6) of each grid and of all together (BL fig. 10)."""
    parts = {f"{block.shape[0]} x {block.shape[1]}": [block] for block in blocks}
    figure, grid = _grid(1, len(parts) + 1, 2.4)
    for axes, (title, part) in zip(grid[0], [*parts.items(), ("all", blocks)], strict=True):
        error = upsampling_error(part, size).cpu().numpy()
        drawn = axes.imshow(error, cmap="viridis", interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
        figure.colorbar(drawn, ax=axes, shrink=0.75).ax.tick_params(labelsize=6)
    return figure


def highlight(
    image: _Image, mask: Bool[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "bigger_height bigger_width 3"]:
    """The image in gray with a mask in blue.

    >>> picture = highlight(np.zeros((256, 256, 3), np.uint8), np.ones((256, 256), bool))
    >>> picture[0, 0].tolist()
    [0, 68, 107]
    """
    gray = image.mean(-1, keepdims=True).repeat(3, -1)
    tinted = np.where(mask[..., None], 0.4 * gray + 0.6 * np.array(BLUE), 0.75 * gray + 60)
    return magnify(np.asarray(tinted.round(), dtype=np.uint8))


def _panel(tiles: Sequence[Picture], titles: Sequence[str], columns: int) -> Figure:
    """Pictures in rows, each under its title."""
    columns = min(columns, len(tiles))
    figure, grid = _grid(-(-len(tiles) // columns), columns, 1.6)
    for axes, tile, title in zip(grid.flat, tiles, titles, strict=False):
        _show(axes, tile, title)
    for empty in grid.flat[len(tiles) :]:
        empty.remove()
    return figure


def _grid(rows: int, columns: int, side: float) -> tuple[Figure, Any]:
    """A figure and its axes by row and column; sides in inches per picture."""
    figure = Figure(figsize=(max(columns * side, 2.0), rows * side + 0.3), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axes: Any, picture: Picture, title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=7)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(name: str) -> str:
    """A layer's name as people say it.

    >>> _short("up_blocks.1.attentions.0.transformer_blocks.0.attn1")
    'up 1.0'
    """
    parts = name.split(".")
    numbers = [part for part in parts[1:4] if part.isdigit()]
    return f"{parts[0].split('_')[0]} {'.'.join(numbers)}"
