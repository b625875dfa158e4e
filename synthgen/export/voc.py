"""PASCAL VOC: palette PNGs of classes and objects, boxes in XML, lists of keys.

Laid out as the 2012 development kit, so that torchvision finds it. Pixels are class ids; 255,
VOC's border, marks what is to be ignored. Truncated is what touches the image's edge. An image
has at most 254 objects; smaller ones beyond that are 255 in the object map and have no box.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from synthgen.dataset.records import bbox_xywh
from synthgen.export.format import Exporter, ExportSample, File, Row, Tables
from synthgen.types import IGNORE

ROOT = "VOCdevkit/VOC2012"
MAX_OBJECTS = 254


class VocExporter(Exporter):
    """Semantic and object maps."""

    needs_labels = True

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Four files per sample, and its key for the lists."""
        for sample in samples:
            files = {
                f"JPEGImages/{sample.key}.jpg": sample.jpeg,
                f"SegmentationClass/{sample.key}.png": encode_palette(sample.labels),
                f"SegmentationObject/{sample.key}.png": encode_palette(_object_map(sample)),
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
                rows = (row for split in splits for row in tables(f"keys-{split}"))
                lines = (f"{row['key']}\n".encode() for row in rows)
                yield f"{ROOT}/ImageSets/{folder}/{name}.txt", lines

    def usage(self) -> str:
        """With torchvision."""
        return """```python
from torchvision.datasets import VOCSegmentation

image, target = VOCSegmentation(".", year="2012", image_set="train")[0]
```"""

    def _xml(self, sample: ExportSample) -> bytes:
        """Boxes count pixels from 1 and include their last one."""
        height, width = sample.size
        root = ET.Element("annotation")
        _add(root, folder="VOC2012", filename=f"{sample.key}.jpg")
        _add(ET.SubElement(root, "size"), width=width, height=height, depth=3)
        _add(root, segmented=1)
        for instance in sample.instances[:MAX_OBJECTS]:
            item, mask = ET.SubElement(root, "object"), instance.mask
            cut = mask[[0, -1]].any() or mask[:, [0, -1]].any()
            name = self.context.classes[instance.class_id]
            _add(item, name=name, pose="Unspecified", truncated=int(cut), difficult=0)
            x, y, w, h = bbox_xywh(mask)
            _add(ET.SubElement(item, "bndbox"), xmin=x + 1, ymin=y + 1, xmax=x + w, ymax=y + h)
        ET.indent(root)
        return bytes(ET.tostring(root, encoding="utf-8")) + b"\n"


def _add(parent: ET.Element, **texts: object) -> None:
    for name, text in texts.items():
        ET.SubElement(parent, name).text = str(text)


def _object_map(sample: ExportSample) -> UInt8[np.ndarray, "height width"]:
    """Number of the object at each pixel, 0 background, 255 ignore."""
    numbers = np.where(sample.labels == 0, 0, IGNORE).astype(np.uint8)
    for number, instance in enumerate(sample.instances[:MAX_OBJECTS], start=1):
        numbers[instance.mask] = number
    return numbers


def voc_colors() -> UInt8[np.ndarray, "256 3"]:
    """PASCAL VOC's color of every id: its bits, dealt to red, green and blue in turn.

    >>> voc_colors()[[0, 1, 15, 255]].tolist()
    [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]
    """
    ids = np.arange(256)[:, None] >> np.array([0, 1, 2])
    channels = sum(((ids >> 3 * place) & 1) << (7 - place) for place in range(3))
    return np.asarray(channels, dtype=np.uint8)


def encode_palette(ids: UInt8[np.ndarray, "height width"]) -> bytes:
    """A PNG of mode P whose pixels are the ids and whose palette is VOC's."""
    image = Image.frombytes("P", (ids.shape[1], ids.shape[0]), np.ascontiguousarray(ids).tobytes())
    image.putpalette(voc_colors().tobytes())
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=6)
    return stream.getvalue()
