"""Records made of seeded noise and random rectangles, for tests that need no diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from synthgen.dataset.records import encode_record
from synthgen.dataset.shards import ShardWriter
from synthgen.types import MaskSet, Prompt, Record

PROVENANCE: dict[str, Any] = {
    "seed": 2**62 + 1,
    "image_index": 3,
    "config": "0" * 64,
    "model": "tiny",
    "revision": "",
    "device": "cpu",
    "dtype": "float32",
    "versions": {"synthgen": "0.1.0"},
    "algorithm_version": 1,
    "batch": 0,
    "batch_size": 2,
}


def make_mask_set(rng: np.random.Generator, num: int, height: int, width: int) -> MaskSet:
    """Rectangles of distinct areas, largest first, each a child of the smallest around it."""
    by_area: dict[int, np.ndarray] = {}
    while len(by_area) < num:
        mask = np.zeros((height, width), dtype=bool)
        top, left = rng.integers(height), rng.integers(width)
        mask[top : rng.integers(top, height) + 1, left : rng.integers(left, width) + 1] = True
        by_area.setdefault(int(mask.sum()), mask)
    masks = [by_area[area] for area in sorted(by_area, reverse=True)]
    parent = [
        max((j for j in range(i) if not (mask & ~masks[j]).any()), default=-1)
        for i, mask in enumerate(masks)
    ]
    stack = np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool)
    members = tuple(((2, i % 2), (5, i % 5)) for i in range(num))
    return MaskSet(stack, members, np.array(parent, dtype=np.int64))


def make_record(key: str, seed: int = 0, num: int = 6, size: tuple[int, int] = (24, 40)) -> Record:
    """A record of random content."""
    rng = np.random.default_rng(seed)
    return Record(
        key=key,
        image=rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        prompt=Prompt(f"p{seed}", f'a "cat" n° {seed}', ("cat",) if seed % 2 else ()),
        mask_set=make_mask_set(rng, num, *size),
        provenance=PROVENANCE,
    )


def write_tar(path: Path, members: dict[str, dict[str, bytes]]) -> Path:
    """A tar of the given members by key and suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(path)
    for key, content in members.items():
        writer.write(key, content)
    writer.close()
    return path


def encode_many(
    num: int, shard: int = 0, image_format: str = "jpg"
) -> dict[str, dict[str, bytes]]:
    """Members of ``num`` records by key."""
    keys = [f"{shard:06d}{index:04d}" for index in range(num)]
    return {key: encode_record(make_record(key, i), image_format) for i, key in enumerate(keys)}
