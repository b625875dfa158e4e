"""Ultralytics' YOLO segmentation: one text file per image, one polygon per line.

A line is ``class x1 y1 x2 y2 …``, the class counted from 0 (`data.yaml` and `classes.json` say
which) and coordinates as shares of the image. A polygon around several pieces or a hole is one
closed line (`contours`). Without labels every mask is of the class ``mask``.

Ultralytics fills polygons at the size it trains at: it cuts coordinates off to whole pixels and
takes the outline with what is inside. So edges stay a hundredth of a pixel inside of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from synthgen.dataset.manifest import CLASSES
from synthgen.export.contours import outline
from synthgen.export.format import Exporter, ExportSample, File, Row, Tables
from synthgen.storage.publish import dump_json

DATA = "data.yaml"
INSET = 0.01
"""More than six decimals of a share lose in an image of 8192 pixels."""


class YoloExporter(Exporter):
    """Polygons."""

    @property
    def index(self) -> dict[int, int]:
        """Place of each class, counted from 0."""
        return {number: index for index, number in enumerate(sorted(self.context.classes))}

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Image and lines; an image without objects has an empty file."""
        for sample in samples:
            lines = "".join(self._lines(sample))
            yield File(f"images/{sample.split}/{sample.file_name}", sample.image)
            yield File(f"labels/{sample.split}/{sample.key}.txt", lines.encode())
            yield Row(f"keys-{sample.split}", {"key": sample.key})

    def finish(self, tables: Tables) -> Iterator[tuple[str, Iterable[bytes]]]:
        """``data.yaml``. Ultralytics wants a val split: without one it is train's.

        It names no ``path``: folders are then those beside it, wherever it is used from.
        """
        rows = {split: tables(f"keys-{split}") for split in self.context.splits}
        filled = [split for split, found in rows.items() if next(found, None) is not None]
        tree: dict[str, Any] = {split: f"images/{split}" for split in filled}
        tree.setdefault("train", "images/train")
        tree.setdefault("val", tree["train"])
        tree["names"] = {
            index: self.context.classes[number] for number, index in self.index.items()
        }
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        yield DATA, [text.encode("utf-8")]
        yield CLASSES, [dump_json({str(index): name for index, name in tree["names"].items()})]

    def usage(self) -> str:
        """With ultralytics."""
        return """Without a val split, `data.yaml` names the training images in its place.

```python
from ultralytics import YOLO

YOLO("yolo11n-seg.yaml").train(data="data.yaml")
```"""

    def _lines(self, sample: ExportSample) -> Iterator[str]:
        height, width = sample.size
        for instance in sample.instances:
            shares = outline(instance.mask, INSET) / (width, height)
            numbers = " ".join(f"{value:.6f}" for value in shares.ravel().tolist())
            yield f"{self.index[instance.class_id]} {numbers}\n"
