"""PASCAL-Part and CelebAMask-HQ as they are published, prepared as ReGAN does (SLiMe, B.1).

PASCAL-Part: an object of the class is cut out by its box; it is left out if a twentieth of the box
or more lies in another object's, or if a side is below 50 pixels (horses: 32). Boxes are those of
the annotated masks. CelebAMask-HQ: images of 512 x 512.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from synthgen.lab.oneshot.data import Pair, PartImages
from synthgen.lab.oneshot.matfile import read_mat
from synthgen.prompts.reading import read_bytes
from synthgen.storage.images import MAX_BYTES, read_photo
from synthgen.storage.untrusted import one_line, quote

CAR = {
    "body": r"(front|left|right|back|roof)side|(left|right)mirror|door_\d+",
    "light": r"headlight_\d+",
    "plate": r"[fb]liplate",
    "wheel": r"wheel_\d+",
    "window": r"window_\d+",
}
HORSE = {
    "head": r"head|[lr]eye|[lr]ear|muzzle",
    "leg": r"[lr][fb](uleg|lleg|ho)",
    "neck+torso": r"neck|torso",
    "tail": r"tail",
}
PASCAL: Mapping[str, Mapping[str, str]] = {"car": CAR, "horse": HORSE}
"""Parts of a class, and what they are made of in PASCAL-Part; body is the rest of a car."""

MIN_SIDE = {"car": 50, "horse": 32}
MAX_OVERLAP = 0.05

FACE: Mapping[str, tuple[str, ...]] = {
    "cloth": ("cloth",),
    "ear": ("l_ear", "r_ear"),
    "eye": ("l_eye", "r_eye"),
    "eyebrow": ("l_brow", "r_brow"),
    "face": ("skin",),
    "hair": ("hair",),
    "mouth": ("mouth", "u_lip", "l_lip"),
    "neck": ("neck",),
    "nose": ("nose",),
}
"""Parts of a face, and the masks of CelebAMask-HQ that they are made of."""

PAINTED = ("face", "eyebrow", "eye", "ear", "nose", "mouth", "neck", "cloth", "hair")
"""The order in which masks lie on top of each other, as in the publisher's own script."""

SIDE = 512
MAX_MAT = 2**28
"""Bytes that an annotation of PASCAL-Part may fill."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "car": {"augmentation": "car"},
    "horse": {"augmentation": "horse"},
    "face": {"augmentation": "face", "patches": True},
}
"""How the paper learns each class (appendix B)."""

PUBLISHED: Mapping[str, Mapping[int, float]] = {
    "car": {10: 0.683, 1: 0.616},
    "horse": {10: 0.633, 1: 0.564},
    "face": {10: 0.757, 1: 0.696},
}
"""Average IoU that SLiMe reports, by number of examples (tables 2 to 4)."""


def pascal_part(root: Path, name: str, examples: int, tests: int) -> PartImages:
    """Objects of PASCAL-Part: those that show all parts in train to learn from, val to test.

    Args:
        root: Folder with VOC 2010's ``JPEGImages`` and ``ImageSets``, and ``Annotations_Part``.
        name: car or horse.
        examples: As many are looked for.
        tests: As many, or all if there are fewer.

    Raises:
        ValueError: In one line, if the files are not laid out so, or an annotation is damaged.
    """
    if name not in PASCAL:
        raise ValueError(f"classes must be of {', '.join(PASCAL)}. Got {name!r:.40}.")
    every = set(range(1, len(PASCAL[name]) + 1))
    complete = (read for read, shown in _objects(root, name, "train") if every <= shown)
    found = (read for read, _ in _objects(root, name, "val"))
    return PartImages(
        tuple(PASCAL[name]),
        list(islice(complete, examples)),
        list(islice(found, tests)),
        PRESETS[name],
    )


@dataclass(frozen=True, slots=True, eq=False)
class PartObject:
    """An object as PASCAL-Part annotates it.

    Args:
        class_name: As in VOC.
        mask: Its pixels.
        parts: Names and pixels of its parts.
    """

    class_name: str
    mask: Bool[np.ndarray, "_ _"]
    parts: Sequence[tuple[str, Bool[np.ndarray, "_ _"]]]

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns that hold it."""
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        return slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1)

    def numbers(self, groups: Mapping[str, str]) -> UInt8[np.ndarray, "height width"]:
        """The group of each pixel, from 1; 0 where there is none, and where another object is."""
        found = np.zeros(self.mask.shape, dtype=np.uint8)
        if "body" in groups:
            found[self.mask] = 1
        for number, pattern in enumerate(groups.values(), start=1):
            for name, mask in self.parts:
                if re.fullmatch(pattern, name):
                    found[mask] = number
        return found


def _objects(root: Path, name: str, split: str) -> Iterator[tuple[Callable[[], Pair], set[int]]]:
    """Objects of a class that are kept: how to read one, and the parts that it shows."""
    for image in _listed(root / "ImageSets" / "Main" / f"{name}_{split}.txt"):
        objects = read_annotation(root / "Annotations_Part" / f"{image}.mat")
        boxes = [one.box for one in objects]
        for place, own in enumerate(objects):
            box, others = boxes[place], boxes[:place] + boxes[place + 1 :]
            if own.class_name != name or min(_sides(box)) < MIN_SIDE[name]:
                continue
            if max((_overlap(box, other) for other in others), default=0.0) > MAX_OVERLAP:
                continue
            mask = own.numbers(PASCAL[name])[box]
            path = root / "JPEGImages" / f"{image}.jpg"
            read = functools.partial(_cut_out, path, own.mask.shape, box, mask)
            yield read, set(np.unique(mask).tolist())


def _sides(box: tuple[slice, slice]) -> tuple[int, int]:
    return box[0].stop - box[0].start, box[1].stop - box[1].start


def _overlap(box: tuple[slice, slice], other: tuple[slice, slice]) -> float:
    """Share of a box that lies in another.

    >>> _overlap((slice(0, 10), slice(0, 10)), (slice(5, 20), slice(8, 20)))
    0.1
    """
    shared = 1
    for own, their in zip(box, other, strict=True):
        shared *= max(0, min(own.stop, their.stop) - max(own.start, their.start))
    height, width = _sides(box)
    return shared / (height * width)


def _cut_out(path: Path, size: tuple[int, int], box: tuple[slice, slice], mask: Any) -> Pair:
    pixels = read_photo(path)
    if pixels.shape[:2] != size:
        raise ValueError(
            f"An annotation must be of its image's size, {pixels.shape[1]} x {pixels.shape[0]}. "
            f"Got {size[1]} x {size[0]} for {quote(path.name)}."
        )
    return pixels[box], mask


def _listed(path: Path) -> list[str]:
    """Images that show a class, of a list of VOC: a name and 1, 0 (difficult) or -1 per line."""
    if not path.is_file():
        raise ValueError(f"root must have its publisher's files. Got no {path}.")
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    names = [row[0] for row in rows if len(row) == 2 and row[1] == "1"]
    for name in names:
        if PurePath(name).name != name:
            raise ValueError(f"Names of images must be names of files. Got {quote(name, 60)}.")
    return names


def read_annotation(path: Path) -> list[PartObject]:
    """Objects of a MAT-file of PASCAL-Part.

    Raises:
        ValueError: In one line, if it is none, or would fill more than `MAX_MAT` bytes.
    """
    try:
        (anno,) = read_mat(read_bytes(path, MAX_BYTES), MAX_MAT)["anno"]
        objects = [
            PartObject(
                _name(one["class"]),
                _plane(one["mask"]),
                [(_name(part["part_name"]), _plane(part["mask"])) for part in _rows(one["parts"])],
            )
            for one in _rows(anno["objects"])
        ]
        shapes = {one.mask.shape for one in objects}
        shapes |= {mask.shape for one in objects for _, mask in one.parts}
        if len(shapes) > 1:
            raise ValueError(f"masks of {len(shapes)} sizes")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"An annotation must be a MAT-file of PASCAL-Part. Got {quote(path.name)}: "
            f"{one_line(error)}."
        ) from None
    return [one for one in objects if one.mask.any()]


def _rows(found: Any) -> list[Any]:
    """Structs of an array of them; an empty array has none.

    Raises:
        ValueError: If there is something else.
    """
    rows = [] if isinstance(found, np.ndarray) and not found.size else found
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("no struct where one must be")
    return rows


def _name(found: Any) -> str:
    if not isinstance(found, str):
        raise ValueError("no name where one must be")
    return found


def _plane(found: Any) -> Bool[np.ndarray, "height width"]:
    if not isinstance(found, np.ndarray) or found.ndim != 2:
        raise ValueError("no mask where one must be")
    inside: Bool[np.ndarray, "height width"] = found != 0
    return inside


def celebamask(root: Path, name: str, examples: int, tests: int) -> PartImages:
    """Faces of CelebAMask-HQ; CelebA's training faces to learn from, its test faces to test.

    Args:
        root: Folder with ``CelebA-HQ-img``, ``CelebAMask-HQ-mask-anno`` and
            ``CelebA-HQ-to-CelebA-mapping.txt``, and CelebA's ``list_eval_partition.txt``.
        name: face.
        examples: As many that show all parts are looked for.
        tests: As many, or all if there are fewer.

    Raises:
        ValueError: In one line, if the files are not laid out so.
    """
    if name != "face":
        raise ValueError(f"classes must be of face. Got {name!r:.40}.")
    parts = _partition(root)
    every = set(range(1, len(FACE) + 1))
    complete = (
        functools.partial(_face, root, number)
        for number in parts.get("0", [])
        if every <= set(np.unique(_face_mask(root, number)).tolist())
    )
    found = [functools.partial(_face, root, number) for number in parts.get("2", [])[:tests]]
    return PartImages(tuple(FACE), list(islice(complete, examples)), found, PRESETS[name])


def _partition(root: Path) -> dict[str, list[int]]:
    """Numbers of CelebA-HQ's images by CelebA's part: 0 train, 1 val, 2 test."""
    tables = []
    for name, columns in (
        ("list_eval_partition.txt", 2),
        ("CelebA-HQ-to-CelebA-mapping.txt", 3),
    ):
        path = root / name
        if not path.is_file():
            raise ValueError(
                f"root must have {name}, which says what is train and test. Got none in {root}."
            )
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        tables.append([row for row in rows if len(row) == columns])
    part_of = dict(tables[0])
    found: dict[str, list[int]] = {}
    for number, _, name in tables[1]:
        if number.isdecimal() and name in part_of:
            found.setdefault(part_of[name], []).append(int(number))
    return found


def _face_mask(root: Path, number: int) -> UInt8[np.ndarray, "512 512"]:
    """Masks of a face, one on top of the other; a part that is not seen has no file."""
    found = np.zeros((SIDE, SIDE), dtype=np.uint8)
    folder = root / "CelebAMask-HQ-mask-anno" / str(number // 2000)
    for part in PAINTED:
        for kind in FACE[part]:
            path = folder / f"{number:05d}_{kind}.png"
            if path.is_file():
                mask = read_photo(path)[..., 0] > 127
                if mask.shape != found.shape:
                    raise ValueError(
                        f"A mask must be of {SIDE} x {SIDE} pixels. Got {mask.shape[1]} x "
                        f"{mask.shape[0]} for {quote(path.name)}."
                    )
                found[mask] = list(FACE).index(part) + 1
    return found


def _face(root: Path, number: int) -> Pair:
    image = Image.fromarray(read_photo(root / "CelebA-HQ-img" / f"{number}.jpg"))
    pixels = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(pixels), _face_mask(root, number)
