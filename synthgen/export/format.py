"""What a format is: a pure function from samples to files and rows, and one from rows to files.

An exporter sees the samples of one shard at a time and never the whole dataset. What has to
stand in one file over all shards (COCO's json) it gives as rows; they come back, streamed and in
order, when the last shard is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from synthgen.dataset.records import encode_image
from synthgen.types import Verdict

Tables = Callable[[str], Iterator[dict[str, Any]]]
"""Rows of a table by its name, over all shards in order."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One object, or one mask where a dataset has no labels."""

    class_id: int
    score: float  # how sure its label is, 0 to 1; 1 without labels
    mask: Bool[np.ndarray, "height width"]  # objects by class do not overlap, masks do
    # among masks, the position in the sample's instances of the smallest one that holds this one;
    # None at the top, and for objects by class
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class ExportSample:
    """A sample as exporters see it."""

    key: str  # digits only; safe as a file name
    split: str  # train, val or test
    image: bytes  # the file as it is stored
    image_format: str  # its suffix: jpg, png or webp
    pixels: UInt8[np.ndarray, "height width 3"]
    # class of each pixel, 0 background, 255 ignore; None without labels
    semantic: UInt8[np.ndarray, "height width"] | None
    # objects by class; every mask, overlapping, where that was asked for or there are no labels
    instances: tuple[Instance, ...]
    # id of the smallest mask at each pixel, 0 where there is none
    id_map: UInt8[np.ndarray, "height width"]
    # all masks as the dataset describes them: id, area, bbox_xywh, parent, rle, …
    segments: tuple[Mapping[str, Any], ...]
    prompt_id: str
    prompt: str  # untrusted
    verdict: Verdict | None = None  # of the audit, None where none was asked for

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def file_name(self) -> str:
        """Name of the image file as it is stored."""
        return f"{self.key}.{self.image_format}"

    @property
    def jpeg(self) -> bytes:
        """The image as a JPEG: as it is stored if it is one, else encoded as datasets are."""
        return self.image if self.image_format == "jpg" else encode_image(self.pixels, "jpg")

    @property
    def labels(self) -> UInt8[np.ndarray, "height width"]:
        """The semantic map, which formats with ``needs_labels`` can rely on."""
        assert self.semantic is not None
        return self.semantic


@dataclass(frozen=True, slots=True)
class ExportContext:
    """What an exporter knows before it sees a sample."""

    classes: Mapping[int, str]  # id to name, without 0 and 255; {1: "mask"} without labels
    splits: tuple[str, ...]  # in use
    labeled: bool  # whether samples have a semantic map
    license: str = "unknown"  # of the images, as far as it is known
    overlapping: bool = False  # whether instances are masks, which may overlap and have parents
    segmentation: str | None = None  # how COCO's masks are written


@dataclass(frozen=True, slots=True)
class File:
    """A file of the export."""

    name: str  # with slashes; made of keys and fixed words, never of text from data
    content: bytes


@dataclass(frozen=True, slots=True)
class Row:
    """A row that comes back in ``finish``."""

    table: str  # lower-case words joined by "-"
    content: Mapping[str, Any]  # what json can hold


class Exporter:
    """A format; made by ``EXPORTERS[name](context)``, the same for every shard."""

    needs_labels = False
    """Whether every sample must have a semantic map, and no two of its objects may overlap."""

    def __init__(self, context: ExportContext) -> None:
        self.context = context

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """Files and rows of a shard's samples, in order; equal samples give equal bytes."""
        raise NotImplementedError

    def finish(self, tables: Tables) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Name and content, in chunks, of the files over all shards."""
        return iter(())

    def usage(self) -> str:
        """How to load the export: a few lines of Markdown for its card."""
        raise NotImplementedError

    def metadata(self, splits: Sequence[str]) -> dict[str, Any]:
        """What the hub reads in the card's head, given the splits that have samples."""
        return {}


def check_exporter(exporter: Any, format: str, context: ExportContext) -> None:
    """Refuse what is no format, and a dataset that a format of classes has no place for.

    Raises:
        ValueError: If methods are missing, or labels are, or objects may overlap.
    """
    methods = ("shard", "finish", "usage", "metadata")
    if not all(callable(getattr(exporter, name, None)) for name in methods):
        raise ValueError(
            f"A format must have the methods shard, finish, usage and metadata; see "
            f"synthgen.export.format. Got {format!r}."
        )
    if not getattr(exporter, "needs_labels", False):
        return
    if not context.labeled:
        raise ValueError(
            f"The format {format} must have class labels. Got a dataset without them; run "
            f"'synthgen label' first, or export coco, yolo-seg or hf-parquet."
        )
    if context.overlapping:
        raise ValueError(
            f"masks=all must be with a format whose objects may overlap. Got {format}; export "
            f"coco or yolo-seg, or hf-parquet, which always holds all masks."
        )
