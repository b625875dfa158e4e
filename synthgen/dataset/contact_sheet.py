"""The contact sheet: one row per sample, image | clusters at each k | merged hierarchy | classes.

Reads what is in the dataset: images and masks from the shards, clusters from the previews.
A sample without a preview shows its image and hierarchy alone. Where samples are labeled, classes
stand there with their names on them, and below them those that were asked for and not found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from synthgen.dataset.labels import class_names
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.previews import read_previews
from synthgen.drawing import magnify, overlay, tint_classes
from synthgen.types import BACKGROUND, IGNORE

TEXT_HEIGHT = 14
NAME_HEIGHT = 14
NAMED_AREA = 0.01  # share of the image from which on every component bears its name
MARGIN = 2

Box = tuple[int, int, int, int]  # left, top, right, bottom


def overlay_classes(
    image: UInt8[np.ndarray, "height width 3"],
    semantic: UInt8[np.ndarray, "height width"],
    names: Mapping[int, str],
) -> UInt8[np.ndarray, "bigger_height bigger_width 3"]:
    """The image tinted with one color per class, each named on its components.

    Background is left as it is; undecided pixels are gray. No name stands over another: the
    largest component of a class has it always, others only where there is room.
    """
    canvas, ids = Image.fromarray(tint_classes(image, semantic)), magnify(semantic)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(NAME_HEIGHT)
    style: Any = {"font": font, "anchor": "mm", "stroke_width": 2}
    texts, boxes = [], []
    for number, again, x, y in places(ids):
        texts.append(names.get(number, str(number)))
        left, top, right, bottom = draw.textbbox((x, y), texts[-1], **style)
        boxes.append(((floor(left), floor(top), ceil(right), ceil(bottom)), again))
    for text, box in zip(texts, lay_out(boxes, canvas.size), strict=True):
        if box is not None:
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            draw.text(middle, text, fill="white", stroke_fill="black", **style)
    return np.asarray(canvas)


def places(ids: UInt8[np.ndarray, "height width"]) -> list[tuple[int, bool, int, int]]:
    """Where the names of classes go: id, whether it is named already, x and y.

    The largest component of every class comes first, then all others of at least ``NAMED_AREA``.

    >>> places(np.array([[7, 7, 7, 0, 7, 0, 255]], dtype=np.uint8))
    [(7, False, 1, 0), (7, True, 4, 0)]
    """
    found = []
    for number in sorted(set(np.unique(ids).tolist()) - {BACKGROUND, IGNORE}):
        components, _ = ndimage.label(ids == number)
        sizes = np.bincount(components.ravel())[1:]
        for rank, index in enumerate(np.argsort(-sizes, kind="stable").tolist()):
            if rank == 0 or sizes[index] >= NAMED_AREA * ids.size:
                x, y = inner_point(components == index + 1)
                found.append((rank > 0, -int(sizes[index]), number, x, y))
    return [(number, again, x, y) for again, _, number, x, y in sorted(found)]


def lay_out(boxes: Sequence[tuple[Box, bool]], size: tuple[int, int]) -> list[Box | None]:
    """Boxes moved into a picture and up or down until none meets one before it.

    Args:
        boxes: Each with whether it may be left out.
        size: Width and height of the picture.

    Returns:
        The moved boxes, None for those left out; one that must stand and finds no room stays.

    >>> lay_out([((-5, 0, 4, 9), False), ((0, 1, 9, 9), False), ((0, 1, 9, 9), True)], (20, 40))
    [(0, 0, 9, 9), (0, 10, 9, 18), None]
    """
    taken: list[Box | None] = []
    for (left, top, right, bottom), optional in boxes:
        x = max(0, -left) - max(0, right - size[0])
        y = max(0, -top) - max(0, bottom - size[1])
        steps = [0] if optional else [0, *(s * k for k in range(1, 30) for s in (3, -3))]
        tries = [(left + x, top + y + step, right + x, bottom + y + step) for step in steps]
        free = (
            new
            for new in tries
            if 0 <= new[1] <= new[3] <= size[1]
            and not any(
                old and new[0] < old[2] and old[0] < new[2] and new[1] < old[3] and old[1] < new[3]
                for old in taken
            )
        )
        taken.append(next(free, None if optional else tries[0]))
    return taken


def inner_point(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int]:
    """x and y of the pixel deepest inside a mask that is not empty.

    >>> inner_point(np.array([[1, 0, 1, 1, 1]], dtype=bool))
    (3, 0)
    """
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    rows, columns = np.nonzero(depth == depth.max())
    middle = len(rows) // 2
    return int(columns[middle]), int(rows[middle])


def sheet(
    rows: Sequence[tuple[str, str, Sequence[UInt8[np.ndarray, "height width 3"]]]],
    header: Sequence[str],
) -> Image.Image:
    """Rows of equally sized pictures under a header.

    Args:
        rows: Caption, note below the last picture, pictures.
        header: Title of every column.
    """
    height = max(tile.shape[0] for _, _, tiles in rows for tile in tiles)
    width = max(tile.shape[1] for _, _, tiles in rows for tile in tiles)
    step_x, step_y = width + MARGIN, height + TEXT_HEIGHT + MARGIN
    canvas = Image.new("RGB", (len(header) * step_x, TEXT_HEIGHT + len(rows) * step_y), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(10)
    for column, title in enumerate(header):
        draw.text((column * step_x + 2, 0), title, fill="black", font=font)
    for index, (caption, note, tiles) in enumerate(rows):
        top = TEXT_HEIGHT + index * step_y
        for column, tile in enumerate(tiles):
            canvas.paste(Image.fromarray(tile), (column * step_x, top))
        draw.text((2, top + height), caption, fill="black", font=font)
        if note:
            last, below = (len(tiles) - 1) * step_x, top + height
            draw.rectangle((last - 4, below, last + width, below + TEXT_HEIGHT), fill="white")
            draw.text((last + 2, below), note, fill="black", font=font)
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
    for sample in islice(open_dataset(str(root), labels=labels), num):
        maps = previews.get(sample["key"], {})
        tiles = [overlay(sample["image"], maps[k]) for k in ks if k in maps]
        tiles = [magnify(sample["image"]), *tiles, overlay(sample["image"], sample["mask"])]
        if "semantic" in sample:
            labeled = True
            tiles.append(overlay_classes(sample["image"], sample["semantic"], names))
        missed = ", ".join(sample["json"].get("not_found", ()))
        note = _shortened(f"not found: {missed}", 46) if missed else ""
        rows.append((_shortened(sample["prompt"], 120), note, tiles))
    if not rows:
        raise ValueError(f"{root} must hold at least one sample to draw. Got none.")
    path.parent.mkdir(parents=True, exist_ok=True)
    classes = ["classes (gray: undecided)"] * labeled
    header = ["image", *(f"k = {k}" for k in ks), "merged hierarchy", *classes]
    sheet(rows, header).save(path)
    return path


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
