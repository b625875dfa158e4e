"""COCO panoptic: ``annotations/panoptic_train.json`` and a PNG per image beside it.

A pixel's segment is ``R + 256 G + 65536 B``, 0 is void. Objects are things; the background is
one segment of a stuff class of its own, so that a model can be wrong there. Void are ignored
pixels and specks too small to be an object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from synthgen.dataset.records import bbox_xywh, encode_image
from synthgen.export.coco import coco_head, image_entry, image_id, stream_json
from synthgen.export.format import (
    ExportContext,
    Exporter,
    ExportSample,
    File,
    Row,
    Tables,
    require_labels,
)
from synthgen.export.palette import voc_colors
from synthgen.types import BACKGROUND


class PanopticExporter(Exporter):
    """Every pixel in one segment, or in none."""

    def __init__(self, context: ExportContext) -> None:
        require_labels(context, "coco-panoptic")
        self.context = context
        self.background = free_id(context)

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Images as they are stored, their segment maps, and a row for each."""
        for sample in samples:
            segment_ids, segments = panoptic_segments(sample, self.background)
            folder = f"annotations/panoptic_{sample.split}"
            png = encode_image(id_to_rgb(segment_ids), "png")
            yield File(f"{sample.split}/{sample.file_name}", sample.image)
            yield File(f"{folder}/{sample.key}.png", png)
            yield Row(f"images-{sample.split}", image_entry(sample))
            annotation = {
                "image_id": image_id(sample.key),
                "file_name": f"{sample.key}.png",
                "segments_info": segments,
            }
            yield Row(f"annotations-{sample.split}", annotation)

    def finish(self, tables: Tables) -> Iterator[tuple[str, Iterable[bytes]]]:
        """One json per split."""
        head = coco_head(self.context) | {"categories": self._categories()}
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

    def _categories(self) -> list[dict[str, Any]]:
        names = dict(self.context.classes) | {self.background: "background"}
        colors = voc_colors()
        return [
            {
                "id": number,
                "name": names[number],
                "supercategory": "object" if number != self.background else "background",
                "isthing": int(number != self.background),
                "color": colors[number % 256].tolist(),
            }
            for number in sorted(names)
        ]


def free_id(context: ExportContext) -> int:
    """The category id that stands for the background: one more than the largest class."""
    return max(context.classes, default=0) + 1


def panoptic_segments(
    sample: ExportSample, background: int
) -> tuple[Int[np.ndarray, "height width"], list[dict[str, Any]]]:
    """Segment id of each pixel, and the segments: instances in their order, then background."""
    assert sample.semantic is not None
    masks = [(instance.class_id, instance.mask) for instance in sample.instances]
    rest = sample.semantic == BACKGROUND
    masks += [(background, rest)] if rest.any() else []
    ids = np.zeros(sample.size, dtype=np.int64)
    for number, (_, mask) in enumerate(masks, start=1):
        assert not ids[mask].any(), "instances must not overlap"
        ids[mask] = number
    segments = [
        {
            "id": number,
            "category_id": category,
            "area": int(mask.sum()),
            "bbox": list(bbox_xywh(mask)),
            "iscrowd": 0,
        }
        for number, (category, mask) in enumerate(masks, start=1)
    ]
    return ids, segments


def id_to_rgb(ids: Int[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """Segment ids as colors.

    >>> id_to_rgb(np.array([[1, 256 + 2, 3 * 65536]])).tolist()
    [[[1, 0, 0], [2, 1, 0], [0, 0, 3]]]
    """
    channels = [(ids >> shift) & 255 for shift in (0, 8, 16)]
    return np.stack(channels, axis=-1).astype(np.uint8)
