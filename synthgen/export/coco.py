"""COCO instances: ``train/KEY.jpg`` and ``annotations/instances_train.json``.

Masks are compressed run-length encodings, which pycocotools and every reader built on it takes;
``iscrowd`` is 0. Without labels every mask is an instance of the one category ``mask``. Ids
begin at 1; an image's id is its key plus one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np

from synthgen.dataset.records import bbox_xywh
from synthgen.dataset.rle import encode_masks
from synthgen.export.format import ExportContext, Exporter, ExportSample, File, Row, Tables


class CocoExporter(Exporter):
    """Instances with boxes and run-length encoded masks."""

    def __init__(self, context: ExportContext) -> None:
        self.context = context

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Images as they are stored; a row per image and per instance."""
        for sample in samples:
            yield File(f"{sample.split}/{sample.file_name}", sample.image)
            yield Row(f"images-{sample.split}", image_entry(sample))
            for annotation in instance_entries(sample):
                yield Row(f"annotations-{sample.split}", annotation)

    def finish(self, tables: Tables) -> Iterator[tuple[str, Iterable[bytes]]]:
        """One json per split, also for an empty one."""
        head = coco_head(self.context) | {
            "categories": [
                {"id": number, "name": name, "supercategory": "object"}
                for number, name in sorted(self.context.classes.items())
            ]
        }
        for split in self.context.splits:
            lists = {
                "images": tables(f"images-{split}"),
                "annotations": _numbered(tables(f"annotations-{split}")),
            }
            yield f"annotations/instances_{split}.json", stream_json(head, lists)

    def usage(self) -> str:
        """With torchvision."""
        return """```python
from torchvision.datasets import CocoDetection

train = CocoDetection("train", "annotations/instances_train.json")
image, annotations = train[0]
mask = train.coco.annToMask(annotations[0])
```"""


def coco_head(context: ExportContext) -> dict[str, Any]:
    """The fields ``info`` and ``licenses``."""
    return {
        "info": {"description": "synthetic, made by synthgen", "version": "1.0"},
        "licenses": [{"id": 1, "name": context.license, "url": ""}],
    }


def image_entry(sample: ExportSample) -> dict[str, Any]:
    """An entry of ``images``."""
    height, width = sample.size
    return {
        "id": image_id(sample.key),
        "file_name": sample.file_name,
        "height": height,
        "width": width,
        "license": 1,
    }


def image_id(key: str) -> int:
    """COCO's id of an image.

    >>> image_id("0000010003")
    10004
    """
    return int(key) + 1


def instance_entries(sample: ExportSample) -> Iterator[dict[str, Any]]:
    """Entries of ``annotations``, without their ids, which count over all shards."""
    if not sample.instances:
        return
    rles = encode_masks(np.stack([instance.mask for instance in sample.instances]))
    for instance, rle in zip(sample.instances, rles, strict=True):
        yield {
            "image_id": image_id(sample.key),
            "category_id": instance.class_id,
            "segmentation": rle,
            "area": int(instance.mask.sum()),
            "bbox": list(bbox_xywh(instance.mask)),
            "iscrowd": 0,
            "score": round(instance.score, 4),
        }


def stream_json(
    head: Mapping[str, Any], lists: Mapping[str, Iterable[Mapping[str, Any]]]
) -> Iterator[bytes]:
    """A JSON object of some fields and some long lists, one line per element.

    >>> parts = stream_json({"a": 1}, {"b": [{"c": 2}, {"c": 3}], "d": []})
    >>> json.loads(b"".join(parts))
    {'a': 1, 'b': [{'c': 2}, {'c': 3}], 'd': []}
    """
    yield _line(head)[:-1]
    for name, rows in lists.items():
        yield f',\n"{name}": ['.encode()
        for number, row in enumerate(rows):
            yield (b",\n" if number else b"\n") + _line(row)
        yield b"]"
    yield b"}\n"


def _numbered(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    numbers = count(1)
    return ({"id": next(numbers), **row} for row in rows)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
