"""Labeled datasets of drawn shapes, with exact labels: what exports are checked against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from made_records import PROVENANCE
from made_report import write_audit
from truth_world import CONFIG, write_shard

from synthgen.config import dump
from synthgen.dataset.audits import description_name
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.manifest import build_manifest, publish_manifest, read_markers
from synthgen.dataset.records import encode_record
from synthgen.storage.publish import open_storage
from synthgen.types import LabelMap, MaskSet, Prompt, Record, Verdict

NAMES = {0: "background", 1: "car", 2: "cat & <b>mouse</b>", 7: "never|seen", 255: "ignore"}
CLASS_IDS = {NAMES[number]: number for number in (1, 2, 7)}
COLORS = np.array([[60, 60, 60], [220, 60, 40], [50, 80, 230]], dtype=np.uint8)
SIZE = (48, 64)


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Image, semantic map (classes 1 and 2, a rim of 255) and the shapes: a ring and a box."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(SIZE)
    center, radius = rng.integers((14, 14), (34, 24)), rng.integers(8, 12)
    distance = np.hypot(rows - center[0], columns - center[1])
    ring = (distance < radius) & (distance >= radius / 2.5)
    top, left = rng.integers(2, 20), rng.integers(40, 50)
    box = (rows >= top) & (rows < top + 20) & (columns >= left) & (columns < left + 12)
    semantic = np.where(ring, 1, np.where(box & ~ring, 2, 0)).astype(np.uint8)
    semantic[0] = 255
    image = COLORS[np.where(semantic == 255, 0, semantic)] + rng.integers(
        0, 25, (*SIZE, 3), dtype=np.uint8
    )
    return image, semantic, [ring, box & ~ring]


def make_record(key: str, seed: int, prompt: Prompt, labeled: bool = True) -> Record:
    """A record whose masks are the image but its first row, the shapes, and half of the ring."""
    image, semantic, (ring, box) = draw(seed)
    left_half = ring & (np.arange(SIZE[1]) < np.flatnonzero(ring.any(0)).mean())
    masks = sorted([semantic != 255, ring, box, left_half], key=lambda mask: -int(mask.sum()))
    parents = [
        max((j for j in range(i) if not (mask & ~masks[j]).any()), default=-1)
        for i, mask in enumerate(masks)
    ]
    mask_set = MaskSet(np.stack(masks), (((2, 0),),) * 4, np.array(parents, dtype=np.int64))
    labels = None
    if labeled:
        scores = np.where(semantic == 1, 0.9, np.where(seed % 2, 0.8, 0.2))
        classes = [int(np.bincount(semantic[mask & (semantic != 255)]).argmax()) for mask in masks]
        labels = LabelMap(
            tuple(CLASS_IDS)[:2],
            semantic,
            scores,
            np.array(classes, dtype=np.uint8),
            np.full(4, 0.5),
            (),
        )
    return Record(key, image, prompt, mask_set, PROVENANCE, labels, CLASS_IDS if labeled else {})


def make_members(
    shard: int, first: int, num: int, labeled: bool, image_format: str
) -> dict[str, dict[str, bytes]]:
    """Members of a shard's samples; two images in turn share a prompt."""
    members = {}
    for position in range(num):
        key, seed = f"{shard:06d}{position:04d}", first + position
        prompt = Prompt(f"p{seed // 2}", f"a ring and a box, number {seed // 2}", NAMES_ASKED)
        members[key] = encode_record(make_record(key, seed, prompt, labeled), image_format)
    return members


NAMES_ASKED = tuple(CLASS_IDS)[:2]


def make_dataset(
    out: str | Path,
    num: int = 10,
    shard_size: int = 4,
    labeled: bool = True,
    image_format: str = "jpg",
) -> None:
    """A finished dataset; called again with a larger ``num`` (whole shards) it has grown."""
    storage = open_storage(out)
    storage.publish_bytes(dump(CONFIG).encode(), "config.yaml")
    if labeled:
        table = {str(number): name for number, name in NAMES.items()}
        storage.publish_bytes(json.dumps(table).encode(), "classes.json")
    for shard, start in enumerate(range(0, num, shard_size)):
        count = min(shard_size, num - start)
        members = make_members(shard, start, count, labeled, image_format)
        write_shard(storage, shard, members, count)
    model: dict[str, Any] = {"id": "scenes", "revision": None, "sha256": {}}
    manifest = build_manifest(read_markers(storage), "d" * 64, [model], {})
    publish_manifest(storage, manifest)


def add_audit(out: Path, audit_id: str, rejected: set[str]) -> None:
    """A finished audit that rejects the given keys."""
    open_storage(out).publish_bytes(b"{}", description_name(audit_id))
    keys = [sample["key"] for sample in open_dataset(out, masks=False)]
    kept, refused = Verdict(True, "", {}), Verdict(False, "low_agreement", {})
    write_audit(out, audit_id, lambda n: refused if keys[n] in rejected else kept, "")


def tree(root: Path, hidden: bool = True) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and (hidden or ".synthgen" not in path.parts)
    }
