"""A finished dataset without a diffusion model: smooth random regions stand for what it draws.

For measuring and testing what reads datasets. Label maps are the argmax of smooth random fields,
masks are merged from them as from real clusters, so counts, sizes and nesting are lifelike.
Every file of a dataset is there: `synthgen verify --deep` finds nothing wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from synthgen.config import Config
from synthgen.dataset.card import class_table, config_yaml, readme
from synthgen.dataset.label_statistics import count_labels
from synthgen.dataset.manifest import (
    Marker,
    build_manifest,
    marker_bytes,
    marker_name,
    metadata_name,
    preview_name,
    publish_manifest,
    tar_name,
)
from synthgen.dataset.metadata import Row, rows_bytes
from synthgen.dataset.records import encode_image, encode_record
from synthgen.dataset.shards import ShardWriter, Span, scan, spans
from synthgen.segmentation.masks import build_masks
from synthgen.storage.publish import Storage, open_storage, sha256_file
from synthgen.storage.seal import hash_file, sha256_of
from synthgen.types import Prompt, Record, Segmentation

KS = (2, 5, 6, 10, 20)
DIGEST = "0" * 64
_ENVIRONMENT: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "versions": {"synthgen": "made"},
}
_PROVENANCE = {
    "seed": 1,
    "image_index": 0,
    "config": DIGEST,
    "model": "made",
    "revision": "",
    **_ENVIRONMENT,
    "algorithm_version": 1,
    "batch": 0,
    "batch_size": 1,
}


@dataclass(frozen=True, slots=True)
class MadeSample:
    """A record with the label maps that its masks were merged from.

    Args:
        record: The record; its key is given when it is written.
        segmentation: Its masks and label maps.
        preview: Whether label maps are kept.
    """

    record: Record
    segmentation: Segmentation
    preview: bool = True


def make_sample(seed: int, prompt: str, size: tuple[int, int], preview: bool = True) -> MadeSample:
    """A sample of smooth random regions, each cluster of the finest k in one color."""
    rng = np.random.default_rng(seed)
    labels = np.stack([_regions(rng, k, size) for k in KS])
    segmentation = Segmentation.of(build_masks(labels, KS), KS, labels)
    colors = rng.integers(0, 256, (KS[-1], 3), dtype=np.uint8)
    noise = rng.integers(0, 24, (*size, 3), dtype=np.uint8)
    image = np.minimum(colors[labels[-1]], 231) + noise
    record = Record(
        key="0" * 10,
        image=image,
        prompt=Prompt(f"p{seed}", prompt, ("cat", "<b>dog</b>")[: 1 + seed % 2]),
        mask_set=segmentation.mask_set,
        provenance=_PROVENANCE,
    )
    return MadeSample(record, segmentation, preview)


def write_dataset(
    root: Path,
    samples: Sequence[MadeSample],
    num: int,
    shard_size: int = 64,
    failures: Sequence[Row] = (),
) -> None:
    """Write a finished dataset of ``num`` samples, the given ones again and again.

    Args:
        root: New folder.
        samples: What is written.
        num: Samples.
        shard_size: Samples per shard.
        failures: Rows of failed samples, added to the last shard.
    """
    storage = open_storage(root)
    encoded = [_encode(sample) for sample in samples]
    markers = []
    for index, start in enumerate(range(0, max(num, 1), shard_size)):
        numbers = range(num)[start : start + shard_size]
        chosen = {
            f"{index:06d}{position:04d}": encoded[number % len(encoded)]
            for position, number in enumerate(numbers)
        }
        failed = failures if start + shard_size >= num else ()
        markers.append(_write_shard(storage, f"train-{index:06d}", chosen, failed))
    model: dict[str, Any] = {"id": "made", "revision": None, "sha256": {}}
    times = {"finished": "2026-01-01T00:00:00+00:00", "seconds": {"generate": 1.5 * num}}
    manifest = build_manifest(markers, DIGEST, [model], times)
    identity = {"digest": DIGEST, "content": {"model": model}, "environments": [_ENVIRONMENT]}
    config = Config(num=num + len(failures))
    names = (name for sample in samples for name in sample.record.prompt.class_names)
    tars = [tar_name(marker.name) for marker in markers]
    for file, text in {
        "identity.json": json.dumps(identity),
        "config.yaml": config_yaml(config, DIGEST),
        "classes.json": json.dumps(class_table(names)),
        "README.md": readme(config, identity, tars, manifest),
    }.items():
        storage.publish_bytes(text.encode("utf-8"), file)
    publish_manifest(storage, manifest)


_Encoded = tuple[Mapping[str, bytes], Mapping[str, bytes], Row]
"""Members, preview and row of a sample, made once and written under many keys."""


def _write_shard(
    storage: Storage, name: str, samples: Mapping[str, _Encoded], failed: Sequence[Row]
) -> Marker:
    """Publish tars, rows and marker of a shard; samples by key."""
    size, sha256, places = 0, "", dict[str, Span]()
    if samples:
        with storage.staging() as folder:
            writer, previews = ShardWriter(folder / "data"), ShardWriter(folder / "previews")
            for key, (members, preview, _) in samples.items():
                info = {**json.loads(members["json"]), "key": key}
                writer.write(key, {**members, "json": json.dumps(info).encode()})
                if preview:
                    previews.write(key, preview)
            writer.close()
            previews.close()
            with (folder / "data").open("rb") as stream:
                places = {span.key: span for span in spans(scan(stream))}
                stream.seek(0)
                sha256, size = sha256_file(stream), stream.tell()
            storage.publish(folder / "data", tar_name(name))
            if previews.num_samples:
                storage.publish(folder / "previews", preview_name(name))
    rows = [
        replace(row, key=key, byte_offset=places[key].offset, byte_size=places[key].size)
        for key, (_, _, row) in samples.items()
    ]
    content = rows_bytes([*rows, *failed])
    storage.publish_bytes(content, metadata_name(name))
    marker = Marker(
        name=name,
        config=DIGEST,
        planned=len(rows) + len(failed),
        counts={"ok": len(rows), "failed": len(failed)},
        reasons=dict(Counter(row.reason for row in failed)),
        bytes=size,
        sha256=sha256,
        skipped=not samples,
        batch_size=1,
        seconds={},
        created="",
        environment=_ENVIRONMENT,
        metadata_sha256=sha256_of(content),
        previews_sha256=hash_file(storage, preview_name(name)) or "",
    )
    storage.publish_bytes(marker_bytes(marker), marker_name(name))
    return marker


def _encode(sample: MadeSample) -> _Encoded:
    """Label maps of the preview are as they are; colors and error are stand-ins of their size."""
    record, maps = sample.record, sample.segmentation.labels
    pixels = {f"k{k:02d}.png": maps[i] for i, k in enumerate(sample.segmentation.ks)}
    pixels |= {"pca.png": 255 - record.image, "upsampling.png": maps[-1] * 12}
    shown = pixels if sample.preview else {}
    preview = {name: encode_image(each, "png") for name, each in shown.items()}
    prompt, labels = record.prompt, record.labels
    row = Row(
        *("", "ok", "", "", prompt.id, prompt.text, prompt.class_names, 0, 1, 0),
        num_segments=len(record.mask_set),
        seconds_generate=1.5,
        seconds_segment=0.25,
        labels=None if labels is None else count_labels(labels),
    )
    return encode_record(record, "jpg"), preview, row


def _regions(
    rng: np.random.Generator, k: int, size: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """Argmax of k random fields on an 8 x 8 grid, interpolated to the size."""
    fields = [
        Image.fromarray(rng.random((8, 8), dtype=np.float32)).resize(
            size[::-1], Image.Resampling.BICUBIC
        )
        for _ in range(k)
    ]
    stacked = np.stack([np.asarray(field) for field in fields])
    return np.asarray(stacked.argmax(0), dtype=np.uint8)
