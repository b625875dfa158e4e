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
    """One object, or one mask where a dataset has no labels.

    Args:
        class_id: Its class.
        score: How sure its label is, 0 to 1; 1 without labels.
        mask: Its pixels; objects by class do not overlap, masks do.
        parent: Among masks, the position in the sample's instances of the smallest one that
            holds this one; None at the top, and for objects by class.
    """

    class_id: int
    score: float
    mask: Bool[np.ndarray, "height width"]
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class ExportSample:
    """A sample as exporters see it.

    Args:
        key: Digits only; safe as a file name.
        split: ``train``, ``val`` or ``test``.
        image: The image file as it is stored.
        image_format: Its suffix: ``jpg``, ``png`` or ``webp``.
        pixels: The decoded image.
        semantic: Class of each pixel, 0 background, 255 ignore; None without labels.
        instances: Objects by class; every mask, overlapping, where that was asked for or there
            are no labels.
        id_map: Id of the smallest mask at each pixel, 0 where there is none.
        segments: All masks as the dataset describes them (id, area, bbox_xywh, parent, rle, …).
        prompt_id: Id of its prompt.
        prompt: Text of its prompt. Untrusted.
        verdict: What the audit says, None where none was asked for.
    """

    key: str
    split: str
    image: bytes
    image_format: str
    pixels: UInt8[np.ndarray, "height width 3"]
    semantic: UInt8[np.ndarray, "height width"] | None
    instances: tuple[Instance, ...]
    id_map: UInt8[np.ndarray, "height width"]
    segments: tuple[Mapping[str, Any], ...]
    prompt_id: str
    prompt: str
    verdict: Verdict | None = None

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
    """What an exporter knows before it sees a sample.

    Args:
        classes: Id to name, without 0 and 255; ``{1: "mask"}`` without labels.
        splits: Names of the splits in use.
        labeled: Whether samples have a semantic map.
        license: Of the images, as far as it is known.
        overlapping: Whether instances are masks, which may overlap and have parents.
        segmentation: How masks are written, None where nothing was asked for; of COCO.
    """

    classes: Mapping[int, str]
    splits: tuple[str, ...]
    labeled: bool
    license: str = "unknown"
    overlapping: bool = False
    segmentation: str | None = None


@dataclass(frozen=True, slots=True)
class File:
    """A file of the export.

    Args:
        name: Relative, with slashes; made of keys and fixed words, never of text from data.
        content: Its bytes.
    """

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Row:
    """A row that comes back in ``finish``.

    Args:
        table: Name of its table: lower-case words joined by ``-``.
        content: What json can hold.
    """

    table: str
    content: Mapping[str, Any]


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
