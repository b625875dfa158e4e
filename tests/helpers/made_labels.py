"""Labels made of noise, and side folders written by hand, for tests that need no model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from made_records import make_record

from synthgen.dataset.labels import (
    LabelMarker,
    description_name,
    labels_marker_bytes,
    labels_marker_name,
    labels_tar_name,
)
from synthgen.dataset.manifest import read_manifest
from synthgen.dataset.shards import ShardWriter
from synthgen.storage.publish import open_storage
from synthgen.types import LabelMap, Record

CLASS_IDS = {"car": 1, "cat": 2, "dog": 3}


def make_labels(
    record: Record, names: tuple[str, ...] = ("cat", "dog"), seed: int = 0
) -> LabelMap:
    """Blocks of random classes with random scores; the last class is never there."""
    rng = np.random.default_rng(seed)
    height, width = record.image.shape[:2]
    blocks = rng.integers(0, len(names) + 1, (-(-height // 8), -(-width // 8)))
    blocks = np.where(blocks == len(names), 255, blocks).astype(np.uint8)
    num = len(record.mask_set)
    return LabelMap(
        class_names=names,
        semantic=np.kron(blocks, np.ones((8, 8), np.uint8))[:height, :width],
        scores=rng.random((height, width)),
        mask_labels=rng.choice([0, 1, 255], num).astype(np.uint8),
        mask_scores=rng.random(num),
        not_found=names[-1:],
    )


def make_labeled(key: str, seed: int = 0, num: int = 6) -> Record:
    """A record of random content with labels of the classes cat and dog (never found)."""
    plain = make_record(key, seed, num)
    prompt = type(plain.prompt)(f"p{seed}", "a cat", ("cat", "dog"))
    labels = make_labels(plain, seed=seed)
    return Record(key, plain.image, prompt, plain.mask_set, plain.provenance, labels, CLASS_IDS)


def write_side_labels(
    out: Path, label_id: str, members: dict[str, dict[str, dict[str, bytes]]]
) -> None:
    """A finished side folder from members by shard, key and suffix."""
    storage = open_storage(out)
    manifest: Any = read_manifest(storage)
    rows = {Path(row["name"]).stem: row for row in manifest["shards"]}
    storage.publish_bytes(json.dumps({"id": label_id}).encode(), description_name(label_id))
    for shard, samples in members.items():
        with storage.staging() as folder:
            writer = ShardWriter(folder / "labels.tar")
            for key, content in samples.items():
                writer.write(key, content)
            writer.close()
            content_bytes = (folder / "labels.tar").read_bytes()
            storage.publish(folder / "labels.tar", labels_tar_name(label_id, shard))
        marker = LabelMarker(
            name=shard,
            digest="0" * 64,
            tar_sha256=rows[shard]["sha256"],
            sha256=hashlib.sha256(content_bytes).hexdigest(),
            bytes=len(content_bytes),
            samples=len(samples),
            statistics={"images": len(samples), "background": 0, "undecided": 0, "classes": {}},
        )
        storage.publish_bytes(labels_marker_bytes(marker), labels_marker_name(label_id, shard))
