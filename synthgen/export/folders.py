"""Folders of images and of label maps beside them: FiftyOne's and ADE20K's.

FiftyOne: ``train/data/KEY.jpg`` and ``train/labels/KEY.png``, pixels as in classes.json, 0
background and 255 ignore. ADE20K: ``images/training`` and ``annotations/training``, where 0 is
"other" and not evaluated: our 255. Every other id is one higher, background 1, so that the usual
``reduce_zero_label`` gives classes.json's ids and 255 back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8

from synthgen.dataset.records import encode_image
from synthgen.export.format import (
    ExportContext,
    Exporter,
    ExportSample,
    File,
    Row,
    Tables,
    jpeg_bytes,
    require_labels,
)
from synthgen.types import IGNORE

ADE_NAMES = {"train": "training", "val": "validation", "test": "test"}


class FiftyOneExporter(Exporter):
    """FiftyOne's ImageSegmentationDirectory, one per split."""

    def __init__(self, context: ExportContext) -> None:
        require_labels(context, "fiftyone")

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Image and label map."""
        for sample in samples:
            assert sample.semantic is not None
            yield File(f"{sample.split}/data/{sample.file_name}", sample.image)
            labels = encode_image(sample.semantic, "png")
            yield File(f"{sample.split}/labels/{sample.key}.png", labels)

    def finish(self, tables: Tables) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Nothing over all shards."""
        return iter(())

    def usage(self) -> str:
        """With FiftyOne."""
        return """```python
import json
import fiftyone as fo

dataset = fo.Dataset.from_dir("train", dataset_type=fo.types.ImageSegmentationDirectory)
classes = json.load(open("classes.json"))
dataset.default_mask_targets = {int(number): name for number, name in classes.items()}
```"""


class AdeExporter(Exporter):
    """ADE20K's scene parsing folders."""

    def __init__(self, context: ExportContext) -> None:
        require_labels(context, "ade")
        self.context = context

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Image and label map."""
        for sample in samples:
            assert sample.semantic is not None
            folder = ADE_NAMES[sample.split]
            yield File(f"images/{folder}/{sample.key}.jpg", jpeg_bytes(sample))
            labels = encode_image(ade_ids(sample.semantic), "png")
            yield File(f"annotations/{folder}/{sample.key}.png", labels)

    def finish(self, tables: Tables) -> Iterator[tuple[str, Iterable[bytes]]]:
        """The table of ids."""
        names = {0: "other (ignored)", 1: "background"}
        names |= {number + 1: name for number, name in self.context.classes.items()}
        rows = "".join(f"{number}\t{names[number]}\n" for number in sorted(names))
        yield "objectInfo.txt", [f"Idx\tName\n{rows}".encode()]

    def usage(self) -> str:
        """With transformers."""
        return """Pixels: 0 other (ignored), 1 background, then the ids of classes.json plus one
(`objectInfo.txt`). In MMSegmentation set `reduce_zero_label=True`; in transformers:

```python
from PIL import Image
from transformers import SegformerImageProcessor

processor = SegformerImageProcessor(do_reduce_labels=True)
inputs = processor(Image.open(image), Image.open(annotation))
```"""


def ade_ids(semantic: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """ADE20K's ids: 255 becomes 0, any other is one higher.

    >>> ade_ids(np.array([[0, 1, 254, 255]], dtype=np.uint8)).tolist()
    [[1, 2, 255, 0]]
    """
    raised = semantic.astype(np.int64) + 1
    return np.where(semantic == IGNORE, 0, raised).astype(np.uint8)
