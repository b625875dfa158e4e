"""COCO instances: ``train/KEY.jpg`` and ``annotations/instances_train.json``.

Masks are polygons, which every reader takes and pycocotools fills to the mask, pixel for pixel;
or run lengths, compressed (``rle``) or as lists (``rle-list``). ``iscrowd`` is 0. Without labels
every mask is an instance of the one category ``mask``. Masks have a ``parent``: the id of the
annotation that holds them, 0 at the top. Ids begin at 1; an image's id is its key plus one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import numpy as np

from synthgen.dataset.records import bbox_xywh
from synthgen.dataset.rle import encode_masks, run_lengths
from synthgen.export.contours import polygons
from synthgen.export.format import ExportContext, Exporter, ExportSample, File, Row, Tables
from synthgen.registry import near_miss

SEGMENTATIONS: Mapping[str, Callable[[np.ndarray], Any]] = {
    "polygon": lambda mask: [polygon.ravel().astype(int).tolist() for polygon in polygons(mask)],
    "rle": lambda mask: encode_masks(mask[None])[0],
    "rle-list": lambda mask: _run_list(encode_masks(mask[None])[0]),
}


class CocoExporter(Exporter):
    """Instances with boxes and masks.

    Raises:
        ValueError: If the context's ``segmentation`` is none of ``SEGMENTATIONS``.
    """

    def __init__(self, context: ExportContext) -> None:
        self.context = context
        segmentation = context.segmentation or "polygon"
        if segmentation not in SEGMENTATIONS:
            raise ValueError(
                f"segmentation must be one of {', '.join(SEGMENTATIONS)}. Got "
                f"{segmentation!r:.40}.{near_miss(segmentation, SEGMENTATIONS)}"
            )
        self.encode = SEGMENTATIONS[segmentation]

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Images as they are stored; a row per image and per instance."""
        for sample in samples:
            yield File(f"{sample.split}/{sample.file_name}", sample.image)
            yield Row(f"images-{sample.split}", image_entry(sample))
            for annotation in self._annotations(sample):
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

    def _annotations(self, sample: ExportSample) -> Iterator[dict[str, Any]]:
        """Entries without ids, which count over all shards; parents by position, from 1."""
        for instance in sample.instances:
            entry = {
                "image_id": image_id(sample.key),
                "category_id": instance.class_id,
                "segmentation": self.encode(instance.mask),
                "area": int(instance.mask.sum()),
                "bbox": list(bbox_xywh(instance.mask)),
                "iscrowd": 0,
                "score": round(instance.score, 4),
            }
            if self.context.overlapping:
                entry["parent"] = 0 if instance.parent is None else instance.parent + 1
            yield entry

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
    """Annotations with ids from 1, their parents' too; those of an image stand together."""
    number = 0
    for _, group in groupby(rows, key=lambda row: row["image_id"]):
        first = number
        for number, row in enumerate(group, start=first + 1):
            above = {"parent": row["parent"] + first} if row.get("parent") else {}
            yield {"id": number, **row, **above}


def _run_list(rle: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": rle["size"], "counts": run_lengths(rle).tolist()}


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
