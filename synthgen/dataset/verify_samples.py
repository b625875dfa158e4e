"""What can be wrong with one sample: json, masks, labels, pixels, and its row of the metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.dataset.labels import check_ids
from synthgen.dataset.manifest import marker_name, metadata_name
from synthgen.dataset.metadata import Row
from synthgen.dataset.records import IMAGE_OPTIONS, MAX_ID, bbox_xywh, decode_image, parse_sample
from synthgen.dataset.rle import iterate_masks, run_lengths
from synthgen.dataset.shards import Span
from synthgen.storage.untrusted import one_line, parse_object, quote
from synthgen.types import IGNORE

MAX_LINE = 400
_TOLD = ("prompt", "prompt_id", "classes", "image_index", "seed", "num_segments")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    kind: str  # short name, such as ``truncated`` or ``bad id``
    where: str  # file, and sample where there is one
    message: str  # what was found

    def __str__(self) -> str:
        return one_line(f"{self.where}: {self.kind}: {self.message}", MAX_LINE)


def verify_sample(
    where: str,
    key: str,
    members: Mapping[str, bytes],
    deep: bool,
    names: Mapping[int, str] | None = None,
) -> Iterator[Problem]:
    """Every problem of one sample's content.

    Args:
        members: Its members by suffix; missing ones are reported elsewhere.
        deep: See `synthgen.dataset.verify.verify_dataset`.
        names: Classes of classes.json by id; None where it is not known.
    """
    if not {"json", "mask.png", "txt"} <= members.keys():
        return
    try:
        info = parse_sample(members["json"])
        mask = decode_image(members["mask.png"], "L")
        if info["key"] != key:
            yield Problem("wrong key", where, f"the json says {quote(info['key'], 40)}")
        if info["prompt"].encode("utf-8") != members["txt"]:
            yield Problem("wrong prompt", where, "the json's prompt is not the txt's")
        yield from _verify_segments(where, info)
        yield from _verify_size(where, "mask.png", info, mask)
        known = {0, IGNORE, *(segment["id"] for segment in info["segments"])}
        if unknown := sorted(set(np.unique(mask).tolist()) - known):
            yield Problem("bad id", where, f"mask.png has ids {unknown} that no segment has")
        if "sem.png" in members:
            semantic = decode_image(members["sem.png"], "L")
            yield from _verify_size(where, "sem.png", info, semantic)
            yield from verify_class_ids(where, semantic, names)
            yield from _verify_labels(where, info)
        if deep:
            for suffix in IMAGE_OPTIONS.keys() & members.keys():
                yield from _verify_size(where, suffix, info, decode_image(members[suffix]))
            if mask.shape == (info["height"], info["width"]) and len(info["segments"]) <= MAX_ID:
                yield from _verify_masks(where, info["segments"], mask)
    except (KeyError, TypeError, ValueError) as error:
        yield Problem("unreadable sample", where, f"{error!r:.200}")


def verify_class_ids(
    where: str, semantic: UInt8[np.ndarray, "height width"], names: Mapping[int, str] | None
) -> Iterator[Problem]:
    """Ids of a semantic map that classes.json does not know; see `verify_sample`."""
    try:
        if names is not None:
            check_ids(where, semantic, names)
    except ValueError as error:
        yield Problem("bad id", where, str(error))


def verify_row(
    shard: str, row: Row, span: Span, sha256: str, sample_json: bytes
) -> Iterator[Problem]:
    """Whether a row of the metadata says of a sample what the tar says.

    Args:
        span: Where it lies in the tar.
        sha256: Hash of its bytes there.
        sample_json: Content of its json; reported elsewhere if it cannot be read.
    """
    try:
        info = parse_object(sample_json)
    except ValueError:
        return
    found = {name: info.get(name) for name in _TOLD}
    found |= {"byte_offset": span.offset, "byte_size": span.size}
    found |= {"sha256": sha256} if row.sha256 else {}  # older rows have none
    for name, there in found.items():
        value = getattr(row, name)
        if (list(value) if isinstance(value, tuple) else value) != there:
            yield wrong_row(
                shard, row.key, f"{name} is {quote(value, 40)}, in the tar {quote(there, 40)}"
            )


def wrong_row(shard: str, key: str, found: str) -> Problem:
    """A row of the metadata that is not about the tar beside it, and what to do."""
    where = f"{metadata_name(shard)} {quote(key, 40)}"
    return Problem("wrong row", where, f"{found}; remove {marker_name(shard)} and run again")


def _verify_size(
    where: str, name: str, info: Mapping[str, Any], pixels: UInt8[np.ndarray, "h w *channel"]
) -> Iterator[Problem]:
    if pixels.shape[:2] != (info["height"], info["width"]):
        yield Problem("wrong size", where, f"{name} is {pixels.shape[0]} x {pixels.shape[1]}")


def _verify_segments(where: str, info: Mapping[str, Any]) -> Iterator[Problem]:
    num = len(info["segments"])
    if info["num_segments"] != num:
        yield Problem("wrong count", where, f"{num} segments, not {info['num_segments']}")
    for position, segment in enumerate(info["segments"], start=1):
        if segment["id"] != position:
            yield Problem("bad id", where, f"segment {position} has id {segment['id']}")
        if not 0 <= segment["parent"] <= num or segment["parent"] == segment["id"]:
            yield Problem("bad id", where, f"segment {position} has parent {segment['parent']}")
        area = int(run_lengths(segment["rle"])[1::2].sum())
        if area != segment["area"]:
            message = f"segment {position} says {segment['area']} pixels, its rle has {area}"
            yield Problem("wrong area", where, message)
    if num > MAX_ID:
        yield Problem("wrong count", where, f"{num} segments, at most {MAX_ID}")


def _verify_labels(where: str, info: Mapping[str, Any]) -> Iterator[Problem]:
    """Names are those of the prompt; classes that were not found have no instances."""
    known = {"", "background", *info["classes"]}
    named = {item["label"] for item in (*info["segments"], *info["instances"])}
    for name in sorted(named - known):
        yield Problem("bad label", where, f"{quote(name, 40)} is no class of the prompt")
    found = {item["label"] for item in info["instances"]} & set(info["not_found"])
    for name in sorted(found):
        yield Problem("bad label", where, f"{quote(name, 40)} has an instance and is not found")


def _verify_masks(
    where: str, segments: Sequence[Mapping[str, Any]], mask: UInt8[np.ndarray, "height width"]
) -> Iterator[Problem]:
    """Boxes of the masks, and ``mask.png``, which follows from them."""
    # the smallest mask is drawn last, and no two are in memory at once; by position, for ids
    # of a forged json may be any number, and column by column, as masks are decoded
    order = sorted(range(len(segments)), key=lambda index: -segments[index]["area"])
    masks = iterate_masks([segments[index]["rle"] for index in order], *mask.shape)
    drawn, wrong_boxes = np.zeros(mask.shape, dtype=np.uint8, order="F"), []
    for index, pixels in zip(order, masks, strict=True):
        if list(bbox_xywh(pixels)) != segments[index]["bbox_xywh"]:
            wrong_boxes.append(index)
        np.copyto(drawn, np.uint8(index + 1), where=pixels)
    for index in sorted(wrong_boxes):
        yield Problem("wrong box", where, f"segment {segments[index]['id']}")
    if not np.array_equal(drawn, mask):
        wrong = int((drawn != mask).sum())
        yield Problem("bad id", where, f"{wrong} pixels do not have the smallest mask's id")
