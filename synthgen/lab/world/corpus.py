"""Rendered training scenes, cached on disk and memory-mapped, so that recipes only read.

A folder of captioned scenes has ``images.npy`` and ``scenes.json`` (captions, classes, colors);
its first scenes hold one object. A folder of scenes with their truth has ``image.npy``,
``semantic.npy``, ``instance.npy`` and ``part.npy``, and ``corpus.json``. All maps are uint8, scene
by scene in the order of the seeds. A folder is rendered under another name and renamed when
complete, so that recipes which share it may start at the same time.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.lib.format import open_memmap

from synthgen.embedded.vocabulary import IMAGE_SIZE, TRAIN_SEEDS
from synthgen.lab.processes import in_processes
from synthgen.lab.world.render import Scene, render

CHUNK = 50
"""Scenes that a process renders at a time."""

CAPTIONED, TRUTH = "scenes.json", "corpus.json"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Images with what captions say about them.

    Args:
        images: sRGB, 0-255, possibly memory-mapped.
        captions: One per image.
        classes: Classes of the objects, back to front, one tuple per image.
        colors: Colors of each object, in the same order.
    """

    images: UInt8[np.ndarray, "scene height width 3"]
    captions: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    colors: tuple[tuple[tuple[str, ...], ...], ...]

    def singles(self) -> np.ndarray:
        """Indices of the scenes with one object."""
        return np.flatnonzero([len(names) == 1 for names in self.classes])


@dataclass(frozen=True, slots=True)
class TruthCorpus:
    """Scenes with everything their pixels are, values as in `Scene`.

    Args:
        image: sRGB, 0-255.
        semantic: 0 background, otherwise 1 + index in `CLASSES`.
        instance: 0 background, otherwise the object's number.
        part: 0 background, otherwise 1 + index in `PARTS`.
    """

    image: UInt8[np.ndarray, "scene height width 3"]
    semantic: UInt8[np.ndarray, "scene height width"]
    instance: UInt8[np.ndarray, "scene height width"]
    part: UInt8[np.ndarray, "scene height width"]

    def __len__(self) -> int:
        return len(self.image)


_MAPS = {field.name: field.name for field in fields(TruthCorpus)}


def render_corpus(num: int, single_share: float, first_seed: int = TRAIN_SEEDS.start) -> Corpus:
    """Scenes of consecutive seeds in memory, the first share of them with one object."""
    num_single = round(num * single_share)
    scenes = [render(first_seed + i, 1 if i < num_single else None) for i in range(num)]
    return _corpus(np.stack([scene.image for scene in scenes]), map(_described, scenes))


def cached_corpus(folder: Path, num: int, single_share: float, workers: int = 2) -> Corpus:
    """Captioned scenes from `folder`, rendered there first where they are missing.

    Raises:
        ValueError: If the folder holds a corpus of another size.
    """
    if not (folder / CAPTIONED).exists():
        num_single, files = round(num * single_share), {"images": "image"}
        _render_folder(folder, CAPTIONED, files, TRAIN_SEEDS.start, num, num_single, workers)
    rows = json.loads((folder / CAPTIONED).read_text())
    if len(rows) != num:
        raise ValueError(
            f"the corpus in {folder} must hold {num} scenes. Got {len(rows)}; delete the folder "
            "to render it again, or pass its size."
        )
    return _corpus(np.load(folder / "images.npy", mmap_mode="r"), rows)


def truth_corpus(
    folder: Path, num: int, workers: int = 2, first_seed: int = TRAIN_SEEDS.start
) -> TruthCorpus:
    """The first `num` scenes of the corpus in `folder`, rendered there where it is missing.

    Args:
        folder: Where the corpus is kept.
        num: Scenes to use; a larger corpus serves as well.
        workers: Processes that render, about 30 ms a scene and core; 0 renders in this one.
        first_seed: Seed of the first scene; the others follow.

    Raises:
        ValueError: If the folder holds fewer scenes, or scenes of other seeds.
    """
    if not (folder / TRUTH).exists():
        _render_folder(folder, TRUTH, _MAPS, first_seed, num, 0, workers)
    index = json.loads((folder / TRUTH).read_text())
    if index["num"] < num or index["first_seed"] != first_seed:
        raise ValueError(
            f"the corpus in {folder} must hold {num} scenes from seed {first_seed}. Got "
            f"{index['num']} from {index['first_seed']}; delete the folder or ask for those."
        )
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r")[:num] for name in _MAPS}
    return TruthCorpus(**maps)


def _described(scene: Scene) -> dict[str, Any]:
    return {
        "caption": scene.caption,
        "classes": [item.class_name for item in scene.objects],
        "colors": [list(item.colors) for item in scene.objects],
    }


def _corpus(images: np.ndarray, rows: Iterable[Mapping[str, Any]]) -> Corpus:
    rows = list(rows)
    return Corpus(
        images,
        tuple(row["caption"] for row in rows),
        tuple(tuple(row["classes"]) for row in rows),
        tuple(tuple(map(tuple, row["colors"])) for row in rows),
    )


def _render_folder(
    folder: Path,
    index: str,
    files: Mapping[str, str],
    first_seed: int,
    num: int,
    num_single: int,
    workers: int,
) -> None:
    """Render scenes into a folder: its files by what of a scene they hold, and its index."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        for file, part in files.items():
            shape = (num, IMAGE_SIZE, IMAGE_SIZE, 3)[: 4 if part == "image" else 3]
            open_memmap(staging / f"{file}.npy", "w+", np.uint8, shape).flush()
        jobs = [
            (staging, files, first_seed, range(start, min(start + CHUNK, num)), num_single)
            for start in range(0, num, CHUNK)
        ]
        rows = [row for part in in_processes(_render_chunk, jobs, workers) for row in part]
        content = rows if index == CAPTIONED else {"num": num, "first_seed": first_seed}
        (staging / index).write_text(json.dumps(content))
        staging.rename(folder)
    except OSError:  # another process was first: its corpus has the same bytes
        if not (folder / index).exists():
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _render_chunk(
    folder: Path, files: Mapping[str, str], first_seed: int, numbers: range, num_single: int
) -> list[dict[str, Any]]:
    maps = {part: np.load(folder / f"{file}.npy", mmap_mode="r+") for file, part in files.items()}
    rows = []
    for number in numbers:
        scene = render(first_seed + number, 1 if number < num_single else None)
        for part, stored in maps.items():
            stored[number] = getattr(scene, part)
        rows.append(_described(scene))
    return rows
