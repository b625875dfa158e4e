"""Annotated images as their publishers lay them out: VOC, Context, ADE20K, Cityscapes, COCO, …

Class maps keep the publisher's numbers; what a benchmark leaves out is 255. Background (0) is no
class in VOC and COCO, whose other pixels are things that nobody annotated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import Int, UInt8

from synthgen.embedded.vocabulary import CLASSES, TUNING_SEEDS, VALIDATION_SEEDS
from synthgen.lab.segment.class_names import (
    CITYSCAPES,
    CITYSCAPES_27,
    CONTEXT,
    STUFF_27,
    STUFF_27_OF,
    VOC,
    stuff_171,
)
from synthgen.lab.world.render import Scene, render
from synthgen.registry import near_miss
from synthgen.storage.images import MAX_BYTES, SUFFIXES, open_image, read_photo, readable_image
from synthgen.storage.untrusted import one_line, quote
from synthgen.types import IGNORE

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "voc": {"BL, SD 2.1, semantic": 0.66, "BL, SD 2.1, instances": 0.62},
    "cityscapes": {"BL, SD 2.1, semantic": 0.27, "BL, SD 2.1, instances": 0.21},
    "cityscapes-27": {"DiffSeg, SD 1.4, mIoU": 0.212, "DiffCut, SSD-1B, mIoU": 0.306},
    "cocostuff": {"DiffSeg, SD 1.4, mIoU": 0.436, "DiffCut, SSD-1B, mIoU": 0.491},
}
"""As reported (class IoU: BL section 5; one mask per class: mIoU), to stand beside ours."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of an image.

    Args:
        semantic: Class of each pixel, `IGNORE` where nobody says.
        instance: Number of the object at each pixel, 0 where there is none; None: not annotated.
        part: Number of the part at each pixel, 0 where there is none.
        partitions: What several people took the image apart into: a number per piece.
    """

    semantic: Int[np.ndarray, "height width"]
    instance: Int[np.ndarray, "height width"] | None = None
    part: Int[np.ndarray, "height width"] | None = None
    partitions: tuple[Int[np.ndarray, "height width"], ...] = ()


@dataclass(frozen=True, slots=True)
class Annotated:
    """An image with its annotation, neither of them read yet."""

    name: str
    image: Callable[[], UInt8[np.ndarray, "height width 3"]]
    truth: Callable[[], Truth]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """Annotated images of one kind.

    Args:
        images: In a fixed order.
        names: Classes by number; those that are not named are called by their number.
        background: Numbers that are no class.
        groups: Where classes are named finely and compared coarsely: the group of each.
        group_names: Groups by number.
    """

    images: Sequence[Annotated]
    names: Mapping[int, str] = field(default_factory=dict)
    background: frozenset[int] = frozenset()
    groups: Mapping[int, int] = field(default_factory=dict)
    group_names: Mapping[int, str] = field(default_factory=dict)


def open_layout(kind: str, root: Path | None = None, split: str = "val", num: int = 200) -> Layout:
    """Annotated images of a data set.

    Args:
        kind: Row of `LAYOUTS`.
        root: Its folder: of VOC the one with ``JPEGImages``, of PASCAL Context VOC2010's with
            ``59_context_labels`` or ``trainval`` and ``labels.txt`` in it, of ADE20K with
            ``images`` and ``annotations`` (and objectInfo150.txt, where classes are asked for by
            name), of Cityscapes with ``leftImg8bit`` and ``gtFine``, of
            COCO with ``annotations`` and ``val2017``, of COCO-Stuff with ``images/val2017`` and
            ``annotations/val2017`` (PNG of stuffthingmaps; PiCIE's list in ``curated``, if there
            is one; cocostuff-171: its finer classes, compared as 27), of BSDS500 with
            ``data/images`` and ``data/groundTruth``; of a pair of folders the one with ``images``
            and ``masks``, PNG of class numbers with the images' names (and classes.json, names
            by number).
        split: Part of it: val, train, …
        num: The first so many.

    Raises:
        ValueError: In one line, if it is none of these, or is not laid out so.
    """
    if kind not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise ValueError(
            f"data must be of {known}. Got {quote(kind, 40)}{near_miss(kind, [*LAYOUTS])}"
        )
    if root is None and not kind.startswith("scenes"):
        raise ValueError(f"root must be the folder of {kind}. Got none.")
    layout = LAYOUTS[kind](root or Path(), split, num)
    if not layout.images:
        raise ValueError(f"root must hold images of {kind}, {split}. Got none in {root}.")
    return layout


def _scenes(seeds: Sequence[int]) -> Callable[[Path, str, int], Layout]:
    def truth(scene: Scene) -> Truth:
        maps = (scene.semantic, scene.instance, scene.part)
        semantic, instance, part = (one.astype(np.int64) for one in maps)
        return Truth(semantic, instance, part)

    def read(_root: Path, _split: str, num: int) -> Layout:
        images = [
            Annotated(
                f"scene-{seed}",
                lambda seed=seed: render(seed).image,  # type: ignore[misc]
                lambda seed=seed: truth(render(seed)),  # type: ignore[misc]
                render(seed).caption,
            )
            for seed in seeds[:num]
        ]
        return Layout(images, dict(enumerate(CLASSES, start=1)), frozenset({0}))

    return read


def _voc(root: Path, split: str, num: int) -> Layout:
    listed = _lines(root / "ImageSets" / "Segmentation" / f"{split}.txt")[:num]
    _refuse_paths(listed)

    def truth(name: str) -> Truth:
        semantic = read_labels(root / "SegmentationClass" / f"{name}.png")
        objects = root / "SegmentationObject" / f"{name}.png"
        if not objects.is_file():
            return Truth(semantic)
        instance = read_labels(objects)
        return Truth(semantic, np.where(instance == IGNORE, 0, instance))

    images = [_annotated(name, root / "JPEGImages" / f"{name}.jpg", truth) for name in listed]
    return Layout(images, dict(enumerate(VOC, start=1)), frozenset({0}))


def _context(root: Path, split: str, num: int) -> Layout:
    """59 classes; all else is left out (LS section 4.1)."""
    listed = _lines(root / "ImageSets" / "Main" / f"{split}.txt")[:num]
    _refuse_paths(listed)
    pictures = root / "59_context_labels"
    numbers = np.full(2**16, IGNORE)
    if pictures.is_dir():
        numbers[1 : len(CONTEXT) + 1] = np.arange(1, len(CONTEXT) + 1)
    else:  # of 459 classes, called by their names
        text = "\n".join(_lines(root / "labels.txt", "\n"))
        for number, name in re.findall(r"^\s*(\d{1,3})\s*:\s*(.+?)\s*$", text, re.MULTILINE):
            if name in CONTEXT:
                numbers[int(number)] = CONTEXT.index(name) + 1

    def truth(name: str) -> Truth:
        if pictures.is_dir():
            return Truth(numbers[read_labels(pictures / f"{name}.png")])
        return Truth(numbers[read_mat(root / "trainval" / f"{name}.mat", "LabelMap").astype(int)])

    images = [_annotated(name, root / "JPEGImages" / f"{name}.jpg", truth) for name in listed]
    return Layout(images, dict(enumerate(CONTEXT, start=1)))


def _cocostuff(root: Path, split: str, num: int) -> Layout:
    """27 classes, of PiCIE's images where its list is there; as DiffSeg."""
    fine = _cocostuff_171(root, split, num)

    def coarse(one: Annotated) -> Annotated:
        def truth() -> Truth:
            return Truth(merged(one.truth().semantic, fine.groups))

        return replace(one, truth=truth)

    return Layout([coarse(one) for one in fine.images], fine.group_names)


def merged(
    semantic: Int[np.ndarray, "height width"], groups: Mapping[int, int]
) -> Int[np.ndarray, "height width"]:
    """Classes as their groups; what has none stays.

    >>> merged(np.array([[-1, 3]]), {}).tolist()
    [[-1, 3]]
    >>> merged(np.array([[0, 7, 255]]), {0: 9, 7: 11}).tolist()
    [[9, 11, 255]]
    """
    if not groups:
        return semantic
    numbers = np.arange(max(IGNORE, int(semantic.max()), *groups) + 1)
    numbers[list(groups)] = list(groups.values())
    found: Int[np.ndarray, "height width"] = numbers[semantic]
    return found


def _cocostuff_171(root: Path, split: str, num: int) -> Layout:
    """171 classes are named, and compared as the 27 that they belong to (LS section 4.1)."""
    folder = root / "images" / f"{split}2017"
    curated = root / "curated" / f"{split}2017" / "Coco164kFull_Stuff_Coarse_7.txt"
    names = _lines(curated) if curated.is_file() else [path.stem for path in _files(folder)]
    _refuse_paths(names[:num])

    def truth(name: str) -> Truth:
        found = read_labels(root / "annotations" / f"{split}2017" / f"{name}.png")
        return Truth(np.where(found < len(STUFF_27_OF), found, IGNORE))

    images = [_annotated(name, folder / f"{name}.jpg", truth) for name in names[:num]]
    groups = dict(enumerate(STUFF_27_OF))
    return Layout(images, stuff_171(), groups=groups, group_names=dict(enumerate(STUFF_27)))


def _bsds(root: Path, split: str, num: int) -> Layout:
    """No classes: pieces, as five people see them."""

    def truth(name: str) -> Truth:
        path = root / "data" / "groundTruth" / split / f"{name}.mat"
        people = read_mat(path, "groundTruth")
        pieces = [one["Segmentation"][0, 0].astype(np.int64) for one in people[0]]
        return Truth(np.zeros_like(pieces[0]), partitions=tuple(pieces))

    paths = _files(root / "data" / "images" / split)[:num]
    images = [_annotated(path.stem, path, truth) for path in paths]
    return Layout(images, background=frozenset({0}))


def _ade(root: Path, split: str, num: int) -> Layout:
    part = {"val": "validation", "train": "training"}.get(split, split)

    def truth(name: str) -> Truth:
        semantic = read_labels(root / "annotations" / part / f"{name}.png")
        return Truth(
            np.where(semantic == 0, IGNORE, semantic)
        )  # 0 is what has none of 150 classes

    images = [_annotated(path.stem, path, truth) for path in _files(root / "images" / part)[:num]]
    listed = root / "objectInfo150.txt"  # number, shares, …, "building, edifice"
    rows = listed.read_text(encoding="utf-8").splitlines()[1:] if listed.is_file() else []
    columns = [row.split("\t") for row in rows]
    names = {int(c[0]): c[-1].strip() for c in columns if c[0].isdecimal() and len(c) > 1}
    return Layout(images, names)


def _cityscapes(root: Path, split: str, num: int, names: Mapping[int, str] = CITYSCAPES) -> Layout:
    def truth(name: str) -> Truth:
        city, stem = name.split("/")
        folder = root / "gtFine" / split / city
        labels = read_labels(folder / f"{stem}_gtFine_labelIds.png")
        semantic = np.where(np.isin(labels, list(names)), labels, IGNORE)
        objects = folder / f"{stem}_gtFine_instanceIds.png"
        if not objects.is_file():
            return Truth(semantic)
        instance = read_labels(objects)  # class * 1000 + number; groups have the class alone
        return Truth(semantic, np.where(instance >= 1000, instance, 0))

    paths = [
        path
        for city in sorted(_folder(root / "leftImg8bit" / split).iterdir())
        if city.is_dir()
        for path in _files(city)
    ]
    images = [
        _annotated(f"{path.parent.name}/{path.stem.removesuffix('_leftImg8bit')}", path, truth)
        for path in paths[:num]
    ]
    return Layout(images, names)


def _coco(root: Path, split: str, num: int) -> Layout:
    from pycocotools.coco import COCO

    year = next((y for y in ("2017", "2014") if (root / f"{split}{y}").is_dir()), "2017")
    path = root / "annotations" / f"instances_{split}{year}.json"
    if not path.is_file():
        raise ValueError(f"root must hold {path.relative_to(root)}. Got none in {root}.")
    coco = COCO(path)
    ids = {image["file_name"]: image["id"] for image in coco.loadImgs(sorted(coco.getImgIds()))}

    def truth(name: str) -> Truth:
        image = coco.loadImgs(ids[name])[0]
        semantic = np.zeros((image["height"], image["width"]), dtype=np.int64)
        instance = np.zeros_like(semantic)
        found = coco.loadAnns(coco.getAnnIds(ids[name]))
        for number, one in sorted(enumerate(found, start=1), key=lambda item: -item[1]["area"]):
            inside = coco.annToMask(one).astype(bool)  # the smallest is on top
            semantic[inside] = IGNORE if one["iscrowd"] else one["category_id"]
            instance[inside] = 0 if one["iscrowd"] else number
        return Truth(semantic, instance)

    _refuse_paths(ids)
    folder = root / f"{split}{year}"
    images = [_annotated(name, folder / name, truth) for name in sorted(ids)[:num]]
    names = {one["id"]: one["name"] for one in coco.loadCats(coco.getCatIds())}
    return Layout(images, names, frozenset({0}))


def _pair(root: Path, _split: str, num: int) -> Layout:
    def truth(name: str) -> Truth:
        return Truth(read_labels(root / "masks" / f"{name}.png"))

    images = [_annotated(path.stem, path, truth) for path in _files(root / "images")[:num]]
    return Layout(images, _named(root / "classes.json"), frozenset({0}))


LAYOUTS: Mapping[str, Callable[[Path, str, int], Layout]] = {
    "scenes": _scenes(VALIDATION_SEEDS),
    "scenes-tuning": _scenes(TUNING_SEEDS),
    "voc": _voc,
    "context": _context,
    "cocostuff": _cocostuff,
    "cocostuff-171": _cocostuff_171,
    "bsds": _bsds,
    "ade": _ade,
    "cityscapes": _cityscapes,
    "cityscapes-27": partial(_cityscapes, names=CITYSCAPES_27),
    "coco": _coco,
    "folder": _pair,
}


def _named(path: Path) -> dict[int, str]:
    """Names by number, as a dataset of this package has them; none where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {int(number): str(name) for number, name in found.items() if int(number)}
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f'{path.name} must be names by number, {{"1": "cat"}}. Got {quote(str(error), 80)}.'
        ) from None


def read_labels(path: Path) -> Int[np.ndarray, "height width"]:
    """Numbers of a PNG, of 8 or 16 bits, with or without a palette.

    Raises:
        ValueError: In one line, if it is none.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        image = open_image(path.read_bytes(), ("PNG",))
        if image.mode not in ("P", "L", "I", "I;16", "1"):
            raise ValueError(f"colors ({image.mode})")
        with readable_image():
            return np.array(image).astype(np.int64)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"An annotation must be a PNG of class numbers. Got {quote(path.name)}: {error}"
        ) from None


def read_mat(path: Path, name: str) -> np.ndarray:
    """An array of a MATLAB file.

    Raises:
        ValueError: In one line, if it is none.
    """
    from scipy.io import loadmat

    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        found: np.ndarray = loadmat(path, variable_names=[name])[name]
    except Exception as error:  # scipy raises of every kind for files that are damaged
        raise ValueError(
            f"An annotation must be a MATLAB file with {name}. Got {quote(path.name)}: "
            f"{one_line(error, 80)}"
        ) from None
    return found


def _annotated(name: str, path: Path, truth: Callable[[str], Truth]) -> Annotated:
    return Annotated(name, lambda: read_photo(path), lambda: truth(name))


def _refuse_paths(names: Iterable[str]) -> None:
    """Names that data gives are names of files, and lead nowhere else."""
    for name in names:
        if PurePath(name).name != name:
            raise ValueError(f"Names of images must be names of files. Got {quote(name, 60)}.")


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in _folder(folder).iterdir() if p.suffix.lower() in SUFFIXES)


def _folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"root must have its publisher's folders. Got no {folder}.")
    return folder


def _lines(path: Path, separator: str | None = None) -> list[str]:
    if not path.is_file():
        raise ValueError(f"root must have its publisher's files. Got no {path}.")
    return path.read_text(encoding="utf-8").split(separator)
