"""Finished datasets of rendered scenes with masks from their truth, and an auditor that knows it.

No diffusion model: label maps of growing k are made from instances and parts, shifted and with
wrong pixels, and go the way of every dataset from there. ``shift`` gives every sample the masks
of another one: a deliberately broken dataset.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from synthgen.auditing.auditor import Auditor
from synthgen.config import AuditorConfig, Config, dump, load
from synthgen.dataset.manifest import (
    Marker,
    build_manifest,
    marker_bytes,
    marker_name,
    publish_manifest,
    tar_name,
)
from synthgen.dataset.records import encode_record
from synthgen.dataset.shards import ShardWriter
from synthgen.lab.world.render import Scene, render
from synthgen.segmentation.masks import build_masks
from synthgen.storage.publish import Storage, open_storage, sha256_file
from synthgen.types import Annotations, MaskSet, Prompt, Record

FIRST_SEED = 700_000
KS = (2, 6, 12)
CONFIG: Config = load(overrides=["segmentation.clusters.ks=[2,6,12]"])


@functools.cache
def scene(index: int) -> Scene:
    """One of the world's scenes."""
    return render(FIRST_SEED + index)


def truth(index: int) -> Annotations:
    """The scene's background, foreground, objects and parts as an auditor would give them."""
    known = scene(index)
    whole = known.instance * np.uint8(32) + known.part
    maps = (known.instance > 0, known.instance, whole)
    masks = [labels == value for labels in maps for value in np.unique(labels)]
    masks = [mask for mask in masks if mask.sum() > 20]
    kept = [m for i, m in enumerate(masks) if not any((m == other).all() for other in masks[:i])]
    points = tuple((float(x), float(y)) for y, x in (np.argwhere(mask)[0] for mask in kept))
    ones = (1.0,) * len(kept)
    return Annotations(np.stack(kept), ones, ones, points, ("",) * len(kept))


def our_masks(index: int) -> MaskSet:
    """Masks as clustering might give them: shifted by up to 2 pixels, 1 % of pixels wrong."""
    known, rng = scene(index), np.random.default_rng(index)
    whole = known.instance * np.uint8(32) + known.part
    labels = []
    for k, values in zip(KS, (known.instance > 0, known.instance, whole), strict=True):
        dense = np.unique(values, return_inverse=True)[1].reshape(values.shape) % k
        moved = np.roll(dense, rng.integers(-2, 3, 2), (0, 1)).astype(np.uint8)
        wrong = rng.random(moved.shape) < 0.01
        labels.append(np.where(wrong, rng.integers(0, k, moved.shape, dtype=np.uint8), moved))
    return build_masks(np.stack(labels), KS, **dict(CONFIG.segmentation.masks))


def make_dataset(out: str | Path, num: int, shard_size: int, shift: int = 0) -> Storage:
    """A finished dataset of the first scenes; sample i has the masks of scene i + shift."""
    storage = open_storage(out)
    storage.publish_bytes(dump(CONFIG).encode(), "config.yaml")
    markers = [
        _make_shard(
            storage, start // shard_size, range(start, min(start + shard_size, num)), num, shift
        )
        for start in range(0, num, shard_size)
    ]
    publish_manifest(storage, build_manifest(markers, "0" * 64, [], {}))
    return storage


def write_shard(
    storage: Storage, shard: int, members: dict[str, dict[str, bytes]], planned: int
) -> Marker:
    """Publish a tar of these members and its marker."""
    stem = f"train-{shard:06d}"
    with storage.staging() as folder:
        writer = ShardWriter(folder / "shard.tar")
        for key, content in members.items():
            writer.write(key, content)
        writer.close()
        num_bytes = (folder / "shard.tar").stat().st_size
        with (folder / "shard.tar").open("rb") as stream:
            sha256 = sha256_file(stream)
        storage.publish(folder / "shard.tar", tar_name(stem))
    counts = {"ok": len(members), "failed": 0}
    marker = Marker(
        stem, "0" * 64, planned, counts, {}, num_bytes, sha256, not members, 1, {}, "", {}
    )
    storage.publish_bytes(marker_bytes(marker), marker_name(stem))
    return marker


def members_of(
    index: int, shard: int, position: int, masks_of: int
) -> tuple[str, dict[str, bytes]]:
    """Key and members of a sample."""
    key = f"{shard:06d}{position:04d}"
    provenance = {"seed": FIRST_SEED + index, "image_index": 0, "config": "0" * 64}
    prompt = Prompt(f"p{index}", scene(index).caption)
    record = Record(key, scene(index).image, prompt, our_masks(masks_of), provenance)
    return key, encode_record(record, "png")


def _make_shard(
    storage: Storage, shard: int, indices: Sequence[int], num: int, shift: int
) -> Marker:
    members = dict(
        members_of(index, shard, position, (index + shift) % num)
        for position, index in enumerate(indices)
    )
    return write_shard(storage, shard, members, len(members))


class TruthAuditor:
    """Recognizes the scenes by their pixels and gives their truth; counts what it looked at.

    Args:
        least: Smallest annotation in pixels; a parameter, so that audits can differ in it.
    """

    def __init__(self, least: int = 0) -> None:
        self.least = least
        self.looked = 0
        self.known: dict[bytes, int] = {}

    @property
    def identity(self) -> dict[str, object]:
        return {"name": "truth", "generator": {"least": self.least}}

    def annotate(self, images: Sequence[np.ndarray]) -> list[Annotations]:
        self.looked += len(images)
        return [self._recognize(image) for image in images]

    def _recognize(self, image: np.ndarray) -> Annotations:
        while image.tobytes() not in self.known:
            assert len(self.known) < 64, "not a scene of this world"
            self.known[scene(len(self.known)).image.tobytes()] = len(self.known)
        found = truth(self.known[image.tobytes()])
        kept = [i for i, mask in enumerate(found.masks) if mask.sum() >= self.least]
        return Annotations(
            found.masks[kept],
            *(
                tuple(values[i] for i in kept)
                for values in (found.predicted_iou, found.stability_score)
            ),
            tuple(found.points_xy[i] for i in kept),
            ("",) * len(kept),
        )


def load_truth(settings: AuditorConfig) -> Auditor:
    """The auditor by name: ``truth_world:load_truth``."""
    return TruthAuditor(int(settings.generator.get("least", 0)))
