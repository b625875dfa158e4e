"""Rendered training scenes with their truth, cached on disk and memory-mapped.

A corpus is a folder of `image.npy`, `semantic.npy`, `instance.npy` and `part.npy` (uint8, scene by
scene in the order of the seeds) and `corpus.json`. It is rendered under another name and renamed
when complete, so that recipes which share a folder may start at the same time.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy.lib.format import open_memmap

from synthgen.embedded.vocabulary import IMAGE_SIZE, TRAIN_SEEDS
from synthgen.lab.world.render import render

CHUNK = 50
"""Scenes that a process renders at a time."""

_INDEX = "corpus.json"


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


_MAPS = tuple(field.name for field in fields(TruthCorpus))


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
    if not (folder / _INDEX).exists():
        _render_corpus(folder, num, workers, first_seed)
    index = json.loads((folder / _INDEX).read_text())
    if index["num"] < num or index["first_seed"] != first_seed:
        raise ValueError(
            f"the corpus in {folder} must hold {num} scenes from seed {first_seed}. Got "
            f"{index['num']} from {index['first_seed']}; delete the folder or ask for those."
        )
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r")[:num] for name in _MAPS}
    return TruthCorpus(**maps)


def _render_corpus(folder: Path, num: int, workers: int, first_seed: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        _create_maps(staging, num)
        job = partial(_render_chunk, staging, num, first_seed)
        if workers == 0:
            list(map(job, range(0, num, CHUNK)))
        else:
            with get_context("spawn").Pool(workers) as pool:  # a fork keeps our signal handlers
                pool.map(job, range(0, num, CHUNK), chunksize=1)
        (staging / _INDEX).write_text(json.dumps({"num": num, "first_seed": first_seed}))
        _publish(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _create_maps(folder: Path, num: int) -> None:
    for name in _MAPS:
        shape = (num, IMAGE_SIZE, IMAGE_SIZE, 3)[: 4 if name == "image" else 3]
        open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape).flush()


def _render_chunk(folder: Path, num: int, first_seed: int, start: int) -> None:
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in _MAPS}
    for row in range(start, min(start + CHUNK, num)):
        scene = render(first_seed + row)
        for name, stored in maps.items():
            stored[row] = getattr(scene, name)


def _publish(staging: Path, folder: Path) -> None:
    """Rename, unless another process was first: its corpus has the same bytes."""
    try:
        staging.rename(folder)
    except OSError:
        if not (folder / _INDEX).exists():
            raise
