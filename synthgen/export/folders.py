"""Folders of images and folders of label maps: FiftyOne's and ADE20K's.

FiftyOne: ``train/data/KEY.jpg`` and ``train/labels/KEY.png``, pixels as in classes.json, 0
background and 255 ignore; ``train/fields.jsonl`` holds what else is known of each sample, for no
importer of pairs takes more. ADE20K: ``images/training`` and ``annotations/training``, where 0 is
"other" and not evaluated: our 255. Every other id is one higher, background 1, so that the usual
``reduce_zero_label`` gives classes.json's ids and 255 back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.dataset.records import bbox_xywh, encode_image
from synthgen.export.format import Exporter, ExportSample, File, Row, Tables
from synthgen.types import IGNORE

ADE_NAMES = {"train": "training", "val": "validation", "test": "test"}


class FiftyOneExporter(Exporter):
    """FiftyOne's ImageSegmentationDirectory, one per split."""

    needs_labels = True

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Image and label map."""
        for sample in samples:
            yield File(f"{sample.split}/data/{sample.file_name}", sample.image)
            labels = encode_image(sample.labels, "png")
            yield File(f"{sample.split}/labels/{sample.key}.png", labels)
            yield Row(f"fields-{sample.split}", self._fields(sample))

    def finish(self, tables: Tables) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Prompt, verdict and objects of every sample, a line each."""
        for split in self.context.splits:
            lines = (f"{json.dumps(row)}\n".encode() for row in tables(f"fields-{split}"))
            yield f"{split}/fields.jsonl", lines

    def _fields(self, sample: ExportSample) -> dict[str, Any]:
        """Values by name; boxes as FiftyOne has them, in shares of the image."""
        height, width = sample.size
        scale = np.array([width, height, width, height])
        fields: dict[str, Any] = {"key": sample.key, "prompt": sample.prompt}
        fields["prompt_id"] = sample.prompt_id
        if (verdict := sample.verdict) is not None:
            known = {name: value for name, value in verdict.metrics.items() if value == value}
            fields |= {"keep": verdict.keep, "reason": verdict.reason, "metrics": known}
        return {
            **fields,
            "objects": [
                {
                    "label": self.context.classes[item.class_id],
                    "confidence": round(item.score, 4),
                    "bounding_box": (np.array(bbox_xywh(item.mask)) / scale).round(6).tolist(),
                }
                for item in sample.instances
            ],
        }

    def usage(self) -> str:
        """With FiftyOne."""
        return """```python
import json
from pathlib import Path
import fiftyone as fo

dataset = fo.Dataset.from_dir("train", dataset_type=fo.types.ImageSegmentationDirectory)
classes = json.load(open("classes.json"))
dataset.default_mask_targets = {int(number): name for number, name in classes.items()}
fields = {row.pop("key"): row for row in map(json.loads, open("train/fields.jsonl"))}
for sample in dataset.iter_samples(autosave=True):  # prompt, verdict, objects with confidence
    row = fields[Path(sample.filepath).stem]
    row["objects"] = fo.Detections(detections=[fo.Detection(**o) for o in row["objects"]])
    for name, value in row.items():
        sample[name] = value
```"""


class AdeExporter(Exporter):
    """ADE20K's scene parsing folders."""

    needs_labels = True

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Image and label map."""
        for sample in samples:
            folder = ADE_NAMES[sample.split]
            yield File(f"images/{folder}/{sample.key}.jpg", sample.jpeg)
            labels = encode_image(ade_ids(sample.labels), "png")
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
    return np.where(semantic == IGNORE, 0, semantic + 1).astype(np.uint8)
