"""The contact sheet: one row per sample, image | clusters at each k | merged hierarchy | classes.

Reads what is in the dataset: images and masks from the shards, clusters from the previews.
A sample without a preview shows its image and hierarchy alone; classes stand there, with their
names, where samples are labeled.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from synthgen.dataset.labels import class_names
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.previews import read_previews
from synthgen.dataset.records import BACKGROUND, IGNORE

ALPHA = 0.65  # share of the color in an overlay; the image stays visible underneath
MIN_SIDE = 256  # smaller images are magnified, so that one-pixel borders stay thin
TEXT_HEIGHT = 14
MARGIN = 2


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


def overlay_classes(
    image: UInt8[np.ndarray, "height width 3"],
    semantic: UInt8[np.ndarray, "height width"],
    names: Mapping[int, str],
) -> UInt8[np.ndarray, "bigger_height bigger_width 3"]:
    """The image tinted with one color per class, each named at its largest component.

    Background is left as it is; undecided pixels are gray.
    """
    pixels, ids = magnify(image).astype(np.float64), magnify(semantic)
    colors = palette(256) * 255.0
    colors[IGNORE] = 128.0
    shown = ids != BACKGROUND
    pixels[shown] = ALPHA * colors[ids[shown]] + (1.0 - ALPHA) * pixels[shown]
    pixels[boundaries(ids)] = 255.0
    canvas = Image.fromarray(np.asarray(pixels.round(), dtype=np.uint8))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for number in sorted(set(np.unique(ids).tolist()) - {BACKGROUND, IGNORE}):
        x, y = inner_point(ids == number)
        text = names.get(number, str(number))
        draw.text((x, y), text, "white", font, anchor="mm", stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def inner_point(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int]:
    """x and y of the pixel deepest inside the largest component of a mask that is not empty.

    >>> inner_point(np.array([[1, 0, 1, 1, 1]], dtype=bool))
    (3, 0)
    """
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    inside = np.pad(components == sizes.argmax(), 1)
    depth = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
    rows, columns = np.nonzero(depth == depth.max())
    middle = len(rows) // 2
    return int(columns[middle]), int(rows[middle])


def sheet(
    rows: Sequence[tuple[str, Sequence[UInt8[np.ndarray, "height width 3"]]]],
    header: Sequence[str],
) -> Image.Image:
    """Rows of equally sized pictures under a header, each row above its caption."""
    height = max(tile.shape[0] for _, tiles in rows for tile in tiles)
    width = max(tile.shape[1] for _, tiles in rows for tile in tiles)
    step_x, step_y = width + MARGIN, height + TEXT_HEIGHT + MARGIN
    canvas = Image.new("RGB", (len(header) * step_x, TEXT_HEIGHT + len(rows) * step_y), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(10)
    for column, title in enumerate(header):
        draw.text((column * step_x + 2, 0), title, fill="black", font=font)
    for index, (caption, tiles) in enumerate(rows):
        top = TEXT_HEIGHT + index * step_y
        for column, tile in enumerate(tiles):
            canvas.paste(Image.fromarray(tile), (column * step_x, top))
        draw.text((2, top + height), caption, fill="black", font=font)
    return canvas


def write_contact_sheet(root: Path, path: Path, num: int = 16, labels: str | None = None) -> Path:
    """Draw the first ``num`` samples of the dataset at ``root`` into a PNG at ``path``.

    Args:
        root: A finished dataset.
        path: The picture.
        num: Samples shown.
        labels: Id of side labels to show; None: those of the tars, if there are any.
    """
    previews, names = read_previews(root), class_names(root)
    ks = sorted({k for maps in previews.values() for k in maps})
    rows, labeled = [], False
    for sample in open_dataset(str(root), labels=labels):
        maps = previews.get(sample["key"], {})
        tiles = [overlay(sample["image"], maps[k]) for k in ks if k in maps]
        tiles = [magnify(sample["image"]), *tiles, overlay(sample["image"], sample["mask"])]
        if "semantic" in sample:
            labeled = True
            tiles.append(overlay_classes(sample["image"], sample["semantic"], names))
        rows.append((_caption(sample["prompt"]), tiles))
        if len(rows) == num:
            break
    if not rows:
        raise ValueError(f"{root} must hold at least one sample to draw. Got none.")
    path.parent.mkdir(parents=True, exist_ok=True)
    header = ["image", *(f"k = {k}" for k in ks), "merged hierarchy", *(["classes"] * labeled)]
    sheet(rows, header).save(path)
    return path


def _caption(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."
