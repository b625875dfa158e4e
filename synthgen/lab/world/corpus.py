"""Rendered training scenes, cached on disk so that recipes only read.

A corpus is a folder: `images.npy` (uint8, memory-mapped) and `scenes.json` (captions, classes,
colors, in the same order). The first `single_share` of the scenes hold one object.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy.lib.format import open_memmap

from synthgen.embedded.vocabulary import IMAGE_SIZE, TRAIN_SEEDS
from synthgen.lab.world.render import Scene, render


@dataclass(frozen=True, slots=True)
class Corpus:
    """Images with what is known about them.

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
class _Row:
    caption: str
    classes: tuple[str, ...]
    colors: tuple[tuple[str, ...], ...]


def _row(scene: Scene) -> _Row:
    return _Row(
        scene.caption,
        tuple(item.class_name for item in scene.objects),
        tuple(item.colors for item in scene.objects),
    )


def _render_one(num_single: int, first_seed: int, index: int) -> tuple[np.ndarray, _Row]:
    scene = render(first_seed + index, 1 if index < num_single else None)
    return scene.image, _row(scene)


def _corpus(images: np.ndarray, rows: Sequence[_Row]) -> Corpus:
    return Corpus(
        images,
        tuple(row.caption for row in rows),
        tuple(row.classes for row in rows),
        tuple(row.colors for row in rows),
    )


def render_corpus(
    num: int, single_share: float, first_seed: int = TRAIN_SEEDS.start, workers: int = 2
) -> Corpus:
    """Render scenes into memory.

    Args:
        num: Number of scenes.
        single_share: Share of them, from the front, that hold one object.
        first_seed: Seed of the first; the others follow.
        workers: Processes; 0 renders in this one.
    """
    job = partial(_render_one, round(num * single_share), first_seed)
    if workers == 0:
        pairs = [job(i) for i in range(num)]
    else:
        with get_context("spawn").Pool(workers) as pool:
            pairs = pool.map(job, range(num), chunksize=50)
    return _corpus(np.stack([image for image, _ in pairs]), [row for _, row in pairs])


def cached_corpus(folder: Path, num: int, single_share: float, workers: int = 2) -> Corpus:
    """Training corpus from `folder`, rendered there first where it is missing.

    Raises:
        ValueError: If the folder holds a corpus of another size.
    """
    rows_path, images_path = folder / "scenes.json", folder / "images.npy"
    if not rows_path.exists():
        _write_corpus(folder, num, single_share, workers)
    rows = [
        _Row(r["caption"], tuple(r["classes"]), tuple(tuple(c) for c in r["colors"]))
        for r in json.loads(rows_path.read_text())
    ]
    if len(rows) != num:
        raise ValueError(
            f"the corpus in {folder} must hold {num} scenes. Got {len(rows)}; delete the folder "
            "to render it again, or pass its size."
        )
    return _corpus(np.load(images_path, mmap_mode="r"), rows)


def _write_corpus(folder: Path, num: int, single_share: float, workers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shape = (num, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    rows: list[_Row] = []
    job = partial(_render_one, round(num * single_share), TRAIN_SEEDS.start)
    with get_context("spawn").Pool(workers) as pool:
        for i, (image, row) in enumerate(pool.imap(job, range(num), chunksize=50)):
            images[i] = image
            rows.append(row)
    images.flush()
    (folder / "scenes.json").write_text(json.dumps([asdict(row) for row in rows]))
