"""Pictures of masks and labels: colors over the image, white borders, one figure for notebooks."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHA = 0.65  # share of the color in an overlay; the image stays visible underneath
MIN_SIDE = 256  # smaller images are magnified, so that one-pixel borders stay thin
BACKGROUND, IGNORE = 0, 255


def palette(num: int) -> Float[np.ndarray, "color 3"]:
    """Distinct colors in [0, 1]; hues step by the golden ratio, lightness alternates.

    >>> palette(3).shape
    (3, 3)
    """
    hues = (0.58 + 0.618033988749895 * np.arange(num)) % 1.0
    lights = np.tile([0.50, 0.68, 0.36], num // 3 + 1)[:num]
    rows = [colorsys.hls_to_rgb(h, li, 0.85) for h, li in zip(hues, lights, strict=True)]
    return np.asarray(rows, dtype=np.float64).reshape(num, 3)


def boundaries(ids: Integer[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Pixels whose right or lower neighbor has another id.

    >>> boundaries(np.array([[0, 1], [0, 1]])).tolist()
    [[True, False], [True, False]]
    """
    edge = np.zeros(ids.shape, dtype=bool)
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    edge[:-1, :] |= ids[:-1, :] != ids[1:, :]
    return edge


def magnify(
    pixels: Shaped[np.ndarray, "height width *channel"],
) -> Shaped[np.ndarray, "bigger_height bigger_width *channel"]:
    """Whole-number magnification until the shorter side is at least ``MIN_SIDE``.

    >>> magnify(np.zeros((128, 100))).shape
    (384, 300)
    """
    factor = -(-MIN_SIDE // min(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def overlay(
    image: UInt8[np.ndarray, "height width 3"], ids: Integer[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "bigger_height bigger_width 3"]:
    """The image tinted with one color per id, borders drawn in white."""
    image, ids = magnify(image), magnify(ids)
    colors = palette(int(ids.max()) + 1) * 255.0
    tinted = ALPHA * colors[ids] + (1.0 - ALPHA) * image
    tinted[boundaries(ids)] = 255.0
    return np.asarray(tinted.round(), dtype=np.uint8)


def class_colors() -> Float[np.ndarray, "256 3"]:
    """The colors in [0, 1] of class ids; undecided pixels are gray."""
    colors = palette(256)
    colors[IGNORE] = 0.5
    return colors


def tint_classes(
    image: UInt8[np.ndarray, "height width 3"], semantic: UInt8[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "bigger_height bigger_width 3"]:
    """The image tinted with one color per class; background keeps its pixels."""
    pixels, ids = magnify(image).astype(np.float64), magnify(semantic)
    seen = ids != BACKGROUND
    pixels[seen] = ALPHA * 255 * class_colors()[ids[seen]] + (1.0 - ALPHA) * pixels[seen]
    pixels[boundaries(ids)] = 255.0
    return np.asarray(pixels.round(), dtype=np.uint8)


def smallest_masks(
    masks: Bool[np.ndarray, "mask height width"],
) -> Int[np.ndarray, "height width"]:
    """At each pixel the number (from 1) of the smallest mask that holds it, 0 where none does.

    >>> smallest_masks(np.array([[[True, True, False]], [[False, True, False]]])).tolist()
    [[1, 2, 0]]
    """
    ids = np.zeros(masks.shape[1:], dtype=np.int64)
    for position in np.argsort(-masks.sum((1, 2)), kind="stable"):
        ids[masks[position]] = position + 1
    return ids


def show_masks(
    masks: Bool[np.ndarray, "mask height width"],
    parent: Int[np.ndarray, " mask"],
    image: Any | None = None,
) -> Figure:
    """The image, the outermost masks over it, and at each pixel the smallest mask."""
    pixels = _pixels(image, masks.shape[1:])
    outer = np.where(parent == -1, np.arange(len(masks)) + 1, 0)
    levels = np.concatenate([[0], outer])[smallest_masks(masks * (parent == -1)[:, None, None])]
    pictures = {
        f"{int((parent == -1).sum())} outermost masks": overlay(pixels, levels),
        f"smallest of {len(masks)} masks": overlay(pixels, smallest_masks(masks)),
    }
    return _figure(pictures if image is None else {"image": magnify(pixels), **pictures})


def show_labels(
    semantic: UInt8[np.ndarray, "height width"], names: Sequence[str], image: Any | None = None
) -> Figure:
    """The image and its classes in colors that the legend names; undecided pixels are gray."""
    from matplotlib.patches import Patch

    pixels, colors = _pixels(image, semantic.shape), class_colors()
    picture = tint_classes(pixels, semantic)
    figure = _figure({} if image is None else {"image": magnify(pixels)}, {"classes": picture})
    entries = [(number, name) for number, name in enumerate(names, start=1)]
    handles = [
        Patch(color=tuple(colors[number]), label=name)
        for number, name in [*entries, (IGNORE, "undecided")]
        if (semantic == number).any()
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=72)
    return stream.getvalue()


def _pixels(image: Any | None, size: Sequence[int]) -> UInt8[np.ndarray, "height width 3"]:
    """An array or a PIL image as an array of the masks' size; light gray where there is none."""
    if image is None:
        return np.full((*size, 3), 235, dtype=np.uint8)
    found = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if found.dtype != np.uint8 or found.shape != (*size, 3):
        raise ValueError(
            f"image must be RGB of {size[0]} x {size[1]} pixels, 8 bits each. Got "
            f"{found.dtype} of shape {found.shape}."
        )
    return found


def _figure(*groups: Mapping[str, UInt8[np.ndarray, "_height _width 3"]]) -> Figure:
    """Pictures side by side, each under its title; drawn without a display."""
    from matplotlib.figure import Figure

    pictures = [item for group in groups for item in group.items()]
    figure = Figure(figsize=(3.2 * len(pictures), 3.5), layout="constrained")
    for position, (title, picture) in enumerate(pictures, start=1):
        axes = figure.add_subplot(1, len(pictures), position)
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure
