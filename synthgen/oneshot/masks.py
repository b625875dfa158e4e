"""Annotations that users bring: classes by number or color, in a PNG, an array, or COCO's json.

A PNG of palette or gray values holds class numbers; one of colors needs the color of every class.
0 and black are background, 255 is not annotated, unless the classes say otherwise. A COCO file may
be of many images: its annotations of one that is called like the image are painted, large ones
first. Files are untrusted: nothing is unpickled, and sizes are measured before pixels are decoded.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco

from synthgen.prompts.class_list import read_classes
from synthgen.prompts.reading import is_file, read_bytes
from synthgen.storage.images import open_image, readable_image
from synthgen.storage.untrusted import one_line, parse_json, quote
from synthgen.types import BACKGROUND, IGNORE

MAX_BYTES = 256 * 1024 * 1024
FORMATS = ("PNG", "TIFF", "BMP", "GIF", "WEBP")
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_RESERVED = {"background": BACKGROUND, "ignore": IGNORE}

Color = tuple[int, int, int]


class Legend(NamedTuple):
    """Classes of annotations and what stands for them.

    Args:
        names: Of the parts.
        numbers: Value in a mask to our class.
        colors: Color in a mask to our class; empty where no class has one.
    """

    names: tuple[str, ...]
    numbers: Mapping[int, int]
    colors: Mapping[Color, int]


def read_legend(text: str) -> Legend:
    """The classes that the command line names.

    Args:
        text: Names with commas between, in the order of their numbers; ``name=7`` gives another
            number, ``name=#c80000`` a color; background and ignore may have some, too. Or a file:
            one of these a line, or JSON with numbers or colors by name.

    Raises:
        ValueError: In one line.

    >>> legend = read_legend("body,window=#ff0000")
    >>> legend.names, legend.colors[255, 0, 0]
    (('body', 'window'), 2)
    """
    table: dict[str, Any] = {}
    given: Any = None
    path = Path(text)
    if path.suffix.lower() == ".json" and is_file(path):
        given = parse_json(read_bytes(path, MAX_BYTES))
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
        given = read_classes(text)
    if isinstance(given, dict):
        table = dict(given)
    else:
        for item in given:
            name, equals, value = item.rpartition("=")
            table[name.strip() if equals else item] = value.strip() if equals else None
        if len(table) < len(given):
            raise ValueError(f"--classes must name each class once. Got {quote(text)}.")
    names = tuple(name for name in table if name.lower() not in _RESERVED)
    if not names or not all(name and name.isprintable() for name in names):
        raise ValueError(f"--classes must name one or more parts. Got {quote(text)}.")
    ours = {**_RESERVED, **{name: number for number, name in enumerate(names, start=1)}}
    numbers: dict[int, int] = {}
    colors: dict[Color, int] = {}
    for name, value in table.items():
        own = ours[name if name in names else name.lower()]
        if isinstance(value, str) and _COLOR.fullmatch(value):
            colors[_rgb(value)] = own
        elif str(value).isdecimal():
            numbers[int(value)] = own
        elif value is None:
            continue
        else:
            raise ValueError(
                f"--classes must give {name!r:.60} a number or a color such as #c80000. Got "
                f"{quote(value)}."
            )
    for own in set(ours.values()) - set(numbers.values()):  # as they are numbered here
        numbers.setdefault(own, own)
    if colors:
        colors.setdefault((0, 0, 0), BACKGROUND)
    return Legend(names, numbers, colors)


def read_mask(
    path: Path, legend: Legend, image: Path, size: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """The class of each pixel that a file gives an image: 0, the legend's, or 255.

    Args:
        path: PNG (TIFF, BMP, GIF, WebP), npy, or COCO's json.
        legend: Classes.
        image: The image, by whose name a COCO file is searched.
        size: Its height and width.

    Raises:
        ValueError: In one line with the file's name.
    """
    data = read_bytes(path, MAX_BYTES)
    try:
        if path.suffix.lower() == ".json":
            return _of_coco(data, legend, image.name, size)
        values = _array(data) if path.suffix.lower() == ".npy" else _pixels(data)
        if values.shape[:2] != size:
            raise ValueError(
                f"a mask must have the size of its image, {size[0]} x {size[1]} pixels (height "
                f"x width). Got {values.shape[0]} x {values.shape[1]}."
            )
        return _by_color(values, legend) if values.ndim == 3 else _by_number(values, legend)
    except ValueError as error:
        raise ValueError(f"{one_line(path.name, 80)}: {error}") from None


def _array(data: bytes) -> np.ndarray:
    try:
        values: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"an array must be readable. Got: {one_line(error)}.") from None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iub":
        raise ValueError("an array must hold class numbers, of height x width. Got another.")
    return values


def _pixels(data: bytes) -> np.ndarray:
    """Numbers of a gray or palette image, or colors."""
    image = open_image(data, FORMATS)
    with readable_image():
        if image.mode in ("1", "L", "P", "I", "I;16"):
            return np.asarray(image)
        if image.mode in ("RGB", "RGBA"):
            return np.asarray(image.convert("RGB"))
    raise ValueError(f"a mask must be of gray, palette or RGB pixels. Got {image.mode}.")


def _by_number(values: np.ndarray, legend: Legend) -> UInt8[np.ndarray, "height width"]:
    found = np.zeros(values.shape, dtype=np.uint8)
    held = np.unique(values).tolist()
    if held in ([BACKGROUND, IGNORE], [IGNORE]) and legend.numbers.get(IGNORE) == IGNORE:
        raise ValueError(
            "a mask must hold the numbers of its classes. Got 0 and 255 alone, and 255 is not "
            f"annotated; if white is {legend.names[0]!r:.40}, give it as {legend.names[0]}=255."
        )
    for value in held:
        if value not in legend.numbers:
            raise ValueError(
                f"a mask must hold numbers of --classes, {_listed(legend)}. Got {value} in "
                f"{int((values == value).sum())} pixels; add NAME={value}, or ignore={value}."
            )
        found[values == value] = legend.numbers[value]
    return found


def _by_color(values: np.ndarray, legend: Legend) -> UInt8[np.ndarray, "height width"]:
    if not legend.colors:
        raise ValueError(
            "a mask of colors needs the color of each class. Got none; give --classes "
            f"{legend.names[0]}=#RRGGBB,..., or a mask of class numbers."
        )
    packed = values.astype(np.int64) @ np.array([65536, 256, 1])
    found = np.zeros(packed.shape, dtype=np.uint8)
    known = {(r << 16) + (g << 8) + b: cls for (r, g, b), cls in legend.colors.items()}
    for value in np.unique(packed).tolist():
        if value not in known:
            raise ValueError(
                f"a mask must have colors of --classes. Got #{value:06x} in "
                f"{int((packed == value).sum())} pixels; add NAME=#{value:06x}, or "
                f"ignore=#{value:06x}. Colors must not be smoothed or stored as JPEG."
            )
        found[packed == value] = known[value]
    return found


def _of_coco(
    data: bytes, legend: Legend, name: str, size: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    tree = parse_json(data)
    try:
        entries = list(tree["images"])
        own = [row for row in entries if Path(str(row["file_name"])).name == name]
        if len(entries) == 1 and not own:
            own = entries
        if len(own) != 1:
            raise ValueError(
                f"COCO's images must have one that is called {name!r:.60}. Got {len(own)}."
            )
        if (int(own[0]["height"]), int(own[0]["width"])) != size:
            raise ValueError(
                f"an annotated image must have the size of its file, {size[0]} x {size[1]} "
                f"pixels (height x width). Got {own[0]['height']} x {own[0]['width']}."
            )
        ours = {row["id"]: str(row["name"]) for row in tree["categories"]}
        rows = [row for row in tree["annotations"] if row["image_id"] == own[0]["id"]]
        masks = [
            (_painted(row["segmentation"], size), legend.names.index(ours[row["category_id"]]))
            for row in rows
            if ours[row["category_id"]] in legend.names
        ]
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"must be COCO's instances. Got: {one_line(repr(error), 80)}.") from None
    found = np.zeros(size, dtype=np.uint8)
    for mask, index in sorted(masks, key=lambda item: -item[0].sum()):
        found[mask] = index + 1
    return found


def _painted(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """The mask of polygons or of run lengths."""
    height, width = size
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError("run lengths must have the size of their image. Got another.")
        if isinstance(segmentation["counts"], list):
            if sum(segmentation["counts"]) != height * width:
                raise ValueError("run lengths must fill their image. Got others.")
            segmentation = coco.frPyObjects(segmentation, height, width)
        return np.asarray(coco.decode(segmentation), dtype=bool)
    if not segmentation or any(len(polygon) < 6 for polygon in segmentation):
        raise ValueError("polygons must have three corners or more. Got fewer.")
    return np.asarray(
        coco.decode(coco.merge(coco.frPyObjects(segmentation, height, width))), dtype=bool
    )


def _listed(legend: Legend) -> str:
    return ", ".join(f"{number}" for number in sorted(legend.numbers))[:60]


def _rgb(text: str) -> Color:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def pair_files(images: Sequence[Path], masks: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Images with their masks: one by one, all with one json, or two folders by the files' names.

    Raises:
        ValueError: In one line, for an image without a mask.
    """
    if len(images) == len(masks) == 1 and images[0].is_dir():
        if masks[0].is_dir():
            by_stem = {path.stem: path for path in sorted(masks[0].iterdir()) if path.is_file()}
        else:
            by_stem = {}
        found = []
        for path in sorted(p for p in images[0].iterdir() if p.is_file()):
            own = by_stem.get(path.stem, masks[0] if masks[0].suffix == ".json" else None)
            if own is None:
                raise ValueError(
                    f"every image must have a mask of its name. Got {one_line(path.name, 80)} "
                    f"without one in {one_line(masks[0], 80)}."
                )
            found.append((path, own))
        return found
    if len(masks) == 1 and masks[0].suffix.lower() == ".json":
        masks = [masks[0]] * len(images)
    if len(images) != len(masks):
        raise ValueError(
            f"--image must be given as often as --mask. Got {len(images)} and {len(masks)}."
        )
    return list(zip(images, masks, strict=True))
