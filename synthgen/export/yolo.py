"""Ultralytics' YOLO segmentation: one text file per image, one polygon per line.

A line is ``class x1 y1 x2 y2 …``, the class counted from 0 and coordinates as shares of the
image. A polygon around several pieces or a hole is one closed line (`contours`). Without labels
every mask is of the class ``mask``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from synthgen.export.contours import outline
from synthgen.export.format import ExportContext, Exporter, ExportSample, File, Row, Tables

DATA = "data.yaml"


class YoloExporter(Exporter):
    """Polygons."""

    def __init__(self, context: ExportContext) -> None:
        self.context = context
        self.index = {number: index for index, number in enumerate(sorted(context.classes))}

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Image and lines; an image without objects has an empty file."""
        for sample in samples:
            lines = "".join(self._lines(sample))
            yield File(f"images/{sample.split}/{sample.file_name}", sample.image)
            yield File(f"labels/{sample.split}/{sample.key}.txt", lines.encode())
            yield Row(f"keys-{sample.split}", {"key": sample.key})

    def finish(self, tables: Tables) -> Iterator[tuple[str, Iterable[bytes]]]:
        """``data.yaml``. Ultralytics wants a val split: without one it is train's."""
        rows = {split: tables(f"keys-{split}") for split in self.context.splits}
        filled = [split for split, found in rows.items() if next(found, None) is not None]
        tree: dict[str, Any] = {"path": "."}
        tree |= {split: f"images/{split}" for split in filled}
        tree.setdefault("train", "images/train")
        tree.setdefault("val", tree["train"])
        tree["names"] = {
            index: self.context.classes[number] for number, index in self.index.items()
        }
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        yield DATA, [text.encode("utf-8")]

    def usage(self) -> str:
        """With ultralytics."""
        return """Without a val split, `data.yaml` names the training images in its place. Polygons
run half-way between pixel centers; ultralytics rounds them to whole pixels.

```python
from ultralytics import YOLO

YOLO("yolo11n-seg.yaml").train(data="data.yaml")
```"""

    def _lines(self, sample: ExportSample) -> Iterator[str]:
        height, width = sample.size
        for instance in sample.instances:
            shares = outline(instance.mask) / (width, height)
            numbers = " ".join(f"{value:.6f}" for value in shares.ravel().tolist())
            yield f"{self.index[instance.class_id]} {numbers}\n"
