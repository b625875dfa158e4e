"""COCO instances and COCO panoptic: ``train/KEY.jpg`` and a json per split in ``annotations``.

Instances (``instances_train.json``): masks are polygons, which every reader takes and pycocotools
fills to the mask, pixel for pixel; or run lengths, compressed (``rle``) or as lists
(``rle-list``). ``iscrowd`` is 0. Without labels every mask is an instance of the one category
``mask``. Masks have a ``parent``: the id of the annotation that holds them, 0 at the top. Ids
begin at 1; an image's id is its key plus one.

Panoptic (``panoptic_train.json``, and a PNG per image beside it): a pixel's segment is
``R + 256 G + 65536 B``, 0 is void. Objects are things; the background is one segment of a stuff
class of its own, so that a model can be wrong there. Void are ignored pixels and specks too small
to be an object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from synthgen.dataset.records import bbox_xywh, encode_image
from synthgen.dataset.rle import encode_masks, run_lengths
from synthgen.export.contours import polygons
from synthgen.export.format import ExportContext, Exporter, ExportSample, File, Row, Tables
from synthgen.export.voc import voc_colors
from synthgen.registry import near_miss
from synthgen.types import BACKGROUND


def _run_list(mask: np.ndarray) -> dict[str, Any]:
    rle = encode_masks(mask[None])[0]
    return {"size": rle["size"], "counts": run_lengths(rle).tolist()}


SEGMENTATIONS: Mapping[str, Callable[[np.ndarray], Any]] = {
    "polygon": lambda mask: [polygon.ravel().astype(int).tolist() for polygon in polygons(mask)],
    "rle": lambda mask: encode_masks(mask[None])[0],
    "rle-list": _run_list,
}


class CocoExporter(Exporter):
    """Instances with boxes and masks.

    Raises:
        ValueError: If the context's ``segmentation`` is none of ``SEGMENTATIONS``.
    """

    def __init__(self, context: ExportContext) -> None:
        super().__init__(context)
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
            yield Row(f"images-{sample.split}", _image_entry(sample))
            for annotation in self._annotations(sample):
                yield Row(f"annotations-{sample.split}", annotation)

    def finish(self, tables: Tables) -> Iterator[tuple[str, Iterable[bytes]]]:
        """One json per split, also for an empty one."""
        head = _head(self.context) | {
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
                "image_id": _image_id(sample),
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


class PanopticExporter(Exporter):
    """Every pixel in one segment, or in none."""

    needs_labels = True

    @property
    def background(self) -> int:
        """The category id of the background: one more than the largest class."""
        return max(self.context.classes, default=0) + 1

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Images as they are stored, their segment maps, and a row for each."""
        for sample in samples:
            segment_ids, segments = panoptic_segments(sample, self.background)
            png = encode_image(id_to_rgb(segment_ids), "png")
            yield File(f"{sample.split}/{sample.file_name}", sample.image)
            yield File(f"annotations/panoptic_{sample.split}/{sample.key}.png", png)
            yield Row(f"images-{sample.split}", _image_entry(sample))
            annotation = {
                "image_id": _image_id(sample),
                "file_name": f"{sample.key}.png",
                "segments_info": segments,
            }
            yield Row(f"annotations-{sample.split}", annotation)

    def finish(self, tables: Tables) -> Iterator[tuple[str, Iterable[bytes]]]:
        """One json per split."""
        names = dict(self.context.classes) | {self.background: "background"}
        head = _head(self.context) | {
            "categories": [
                {
                    "id": number,
                    "name": names[number],
                    "supercategory": "object" if number != self.background else "background",
                    "isthing": int(number != self.background),
                    "color": voc_colors()[number % 256].tolist(),
                }
                for number in sorted(names)
            ]
        }
        for split in self.context.splits:
            lists = {name: tables(f"{name}-{split}") for name in ("images", "annotations")}
            yield f"annotations/panoptic_{split}.json", stream_json(head, lists)

    def usage(self) -> str:
        """With Pillow; panopticapi reads the same files."""
        return f"""Category {self.background} is the background, a stuff class; 0 is void, ignored.

```python
import json
import numpy as np
from PIL import Image

annotations = json.load(open("annotations/panoptic_train.json"))["annotations"]
png = Image.open("annotations/panoptic_train/" + annotations[0]["file_name"])
segment_id = np.asarray(png).astype(int) @ (1, 256, 65536)
```"""


def panoptic_segments(
    sample: ExportSample, background: int
) -> tuple[Int[np.ndarray, "height width"], list[dict[str, Any]]]:
    """Segment id of each pixel, and the segments: instances in their order, then background."""
    masks = [(instance.class_id, instance.mask) for instance in sample.instances]
    rest = sample.labels == BACKGROUND
    masks += [(background, rest)] if rest.any() else []
    ids = np.zeros(sample.size, dtype=np.int64)
    segments = []
    for number, (category, mask) in enumerate(masks, start=1):
        assert not ids[mask].any(), "instances must not overlap"
        ids[mask] = number
        segments.append(
            {
                "id": number,
                "category_id": category,
                "area": int(mask.sum()),
                "bbox": list(bbox_xywh(mask)),
                "iscrowd": 0,
            }
        )
    return ids, segments


def id_to_rgb(ids: Int[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """Segment ids as colors.

    >>> id_to_rgb(np.array([[1, 256 + 2, 3 * 65536]])).tolist()
    [[[1, 0, 0], [2, 1, 0], [0, 0, 3]]]
    """
    channels = [(ids >> shift) & 255 for shift in (0, 8, 16)]
    return np.stack(channels, axis=-1).astype(np.uint8)


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


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _head(context: ExportContext) -> dict[str, Any]:
    return {
        "info": {"description": "synthetic, made by synthgen", "version": "1.0"},
        "licenses": [{"id": 1, "name": context.license, "url": ""}],
    }


def _image_entry(sample: ExportSample) -> dict[str, Any]:
    height, width = sample.size
    entry = {"id": _image_id(sample), "file_name": sample.file_name}
    return {**entry, "height": height, "width": width, "license": 1}


def _image_id(sample: ExportSample) -> int:
    return int(sample.key) + 1


def _numbered(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Annotations with ids from 1, their parents' too; those of an image stand together."""
    number = 0
    for _, group in groupby(rows, key=lambda row: row["image_id"]):
        first = number
        for number, row in enumerate(group, start=first + 1):
            above = {"parent": row["parent"] + first} if row.get("parent") else {}
            yield {"id": number, **row, **above}
