"""PASCAL VOC: palette PNGs of classes and objects, boxes in XML, lists of keys.

Laid out as the 2012 development kit, so that torchvision finds it. Pixels are class ids; 255,
VOC's border, marks what is to be ignored. Truncated is what touches the image's edge. An image
has at most 254 objects; smaller ones beyond that are 255 in the object map and have no box.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8

from synthgen.dataset.records import bbox_xywh
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
from synthgen.export.palette import encode_palette
from synthgen.types import IGNORE

ROOT = "VOCdevkit/VOC2012"
MAX_OBJECTS = 254


class VocExporter(Exporter):
    """Semantic and object maps."""

    def __init__(self, context: ExportContext) -> None:
        require_labels(context, "voc")
        self.context = context

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Four files per sample, and its key for the lists."""
        for sample in samples:
            assert sample.semantic is not None
            files = {
                f"JPEGImages/{sample.key}.jpg": jpeg_bytes(sample),
                f"SegmentationClass/{sample.key}.png": encode_palette(sample.semantic),
                f"SegmentationObject/{sample.key}.png": encode_palette(object_map(sample)),
                f"Annotations/{sample.key}.xml": self._xml(sample),
            }
            yield from (File(f"{ROOT}/{name}", content) for name, content in files.items())
            yield Row(f"keys-{sample.split}", {"key": sample.key})

    def finish(self, tables: Tables) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Lists per split, and of train and val together."""
        sets: dict[str, tuple[str, ...]] = {split: (split,) for split in self.context.splits}
        sets["trainval"] = tuple(split for split in self.context.splits if split != "test")
        for folder in ("Segmentation", "Main"):
            for name, splits in sets.items():
                lines = (
                    f"{row['key']}\n".encode()
                    for split in splits
                    for row in tables(f"keys-{split}")
                )
                yield f"{ROOT}/ImageSets/{folder}/{name}.txt", lines

    def usage(self) -> str:
        """With torchvision."""
        return """```python
from torchvision.datasets import VOCSegmentation

image, target = VOCSegmentation(".", year="2012", image_set="train")[0]
```"""

    def _xml(self, sample: ExportSample) -> bytes:
        root = ET.Element("annotation")
        ET.SubElement(root, "folder").text = "VOC2012"
        ET.SubElement(root, "filename").text = f"{sample.key}.jpg"
        size = ET.SubElement(root, "size")
        height, width = sample.size
        for name, value in (("width", width), ("height", height), ("depth", 3)):
            ET.SubElement(size, name).text = str(value)
        ET.SubElement(root, "segmented").text = "1"
        for instance in sample.instances[:MAX_OBJECTS]:
            item = ET.SubElement(root, "object")
            ET.SubElement(item, "name").text = self.context.classes[instance.class_id]
            cut = [side.any() for side in (instance.mask[[0, -1]], instance.mask[:, [0, -1]])]
            ET.SubElement(item, "pose").text = "Unspecified"
            ET.SubElement(item, "truncated").text = str(int(any(cut)))
            ET.SubElement(item, "difficult").text = "0"
            _add_box(item, bbox_xywh(instance.mask))
        ET.indent(root)
        return bytes(ET.tostring(root, encoding="utf-8")) + b"\n"


def object_map(sample: ExportSample) -> UInt8[np.ndarray, "height width"]:
    """Number of the object at each pixel, 0 background, 255 ignore."""
    assert sample.semantic is not None
    numbers = np.full(sample.size, IGNORE, dtype=np.uint8)
    numbers[sample.semantic == 0] = 0
    for number, instance in enumerate(sample.instances[:MAX_OBJECTS], start=1):
        numbers[instance.mask] = number
    return numbers


def _add_box(item: ET.Element, box_xywh: tuple[int, int, int, int]) -> None:
    """VOC's boxes count pixels from 1 and include their last one."""
    x, y, width, height = box_xywh
    box = ET.SubElement(item, "bndbox")
    limits = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
    for name, value in limits.items():
        ET.SubElement(box, name).text = str(value)
