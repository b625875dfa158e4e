"""Finds what is wrong with a dataset, and names it.

Readers accept truncated, reordered and foreign content without a word, so structure, hashes and
ids are checked here: on every staged shard before it is published, and by ``synthgen verify``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.dataset.manifest import (
    CARD,
    CLASSES,
    CONFIG,
    IDENTITY,
    MANIFEST,
    SHARD_NAME,
    Marker,
    marker_name,
    metadata_name,
    parse_marker,
    read_manifest,
    shard_index,
    shard_stem,
    tar_name,
)
from synthgen.dataset.metadata import parse_rows
from synthgen.dataset.publish import Storage, open_storage, sha256_file
from synthgen.dataset.records import (
    IMAGE_OPTIONS,
    KEY,
    MAX_ID,
    bbox_xywh,
    decode_image,
    parse_sample,
)
from synthgen.dataset.rle import decode_masks, run_lengths
from synthgen.dataset.shards import BrokenShardError, Span, read_span, scan, spans
from synthgen.types import IGNORE, ByteStream, shard_name
from synthgen.untrusted import one_line, quote

MAX_LINE = 400
TOP_FILES = (CARD, CONFIG, IDENTITY, CLASSES)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Args:
        kind: Short name, such as ``truncated`` or ``bad id``.
        where: File, and sample where there is one.
        message: What was found.
    """

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return one_line(f"{self.where}: {self.kind}: {self.message}", MAX_LINE)


def verify_dataset(directory: Any, deep: bool = False) -> list[Problem]:
    """Every problem of a dataset; an empty list says that it is complete and correct.

    Args:
        directory: Its folder or URL.
        deep: Also decode every image and mask and rebuild ``mask.png`` from the masks.

    Raises:
        ValueError: If there is nothing of a dataset.
    """
    storage = open_storage(directory)
    if not {*storage.names(), *storage.names("data"), *storage.names("stats")}:
        raise ValueError(f"A dataset must be a folder of ours. Got nothing in {storage.root}.")
    problems = [
        Problem("missing file", name, "every dataset has one")
        for name in TOP_FILES
        if storage.size(name) is None
    ]
    markers: dict[str, Marker] = {}
    for shard in _shard_names(storage):
        found, marker = _verify_published(storage, shard, deep)
        problems += found
        if marker is not None:
            markers[shard] = marker
    return [*problems, *_verify_manifest(storage, markers), *_foreign_files(storage)]


def verify_tar(
    stream: ByteStream, name: str, shard_index: int, num_samples: int, deep: bool
) -> list[Problem]:
    """Every problem of one tar: structure, keys, members, and the content of the samples.

    Args:
        stream: The open tar.
        name: Its name, for the messages.
        shard_index: Number that its keys begin with.
        num_samples: Samples that it must hold.
        deep: See ``verify_dataset``.
    """
    problems: list[Problem] = []
    seen: list[Span] = []
    try:
        for span in spans(scan(stream)):
            seen.append(span)
    except BrokenShardError as error:
        problems.append(Problem(error.kind, name, error.message))
    problems += _verify_keys(seen, name, shard_index)
    problems += _verify_members(seen, name)
    if len(seen) != num_samples and not problems:
        problems.append(Problem("wrong count", name, f"{len(seen)} samples, not {num_samples}"))
    for span in seen:
        where = f"{name} {one_line(span.key, 40)}"
        problems += verify_sample(where, span.key, read_span(stream, span), deep)
    return problems


def verify_sample(
    where: str, key: str, members: Mapping[str, bytes], deep: bool
) -> Iterator[Problem]:
    """Every problem of one sample's content.

    Args:
        where: Its place, for the messages.
        key: Its key.
        members: Its members by suffix; missing ones are reported elsewhere.
        deep: See ``verify_dataset``.
    """
    if not {"json", "mask.png", "txt"} <= members.keys():
        return
    try:
        info = parse_sample(members["json"])
        mask = decode_image(members["mask.png"], "L")
        yield from _verify_json(where, key, info, members)
        yield from _verify_segments(where, info)
        yield from _verify_ids(where, info, mask)
        if "sem.png" in members:
            yield from _verify_labels(where, info, members["sem.png"])
        if deep:
            yield from _verify_pixels(where, info, mask, members)
    except (KeyError, TypeError, ValueError) as error:
        yield Problem("unreadable sample", where, f"{error!r:.200}")


def _verify_json(
    where: str, key: str, info: Mapping[str, Any], members: Mapping[str, bytes]
) -> Iterator[Problem]:
    if info["key"] != key:
        yield Problem("wrong key", where, f"the json says {quote(info['key'], 40)}")
    if info["prompt"].encode("utf-8") != members["txt"]:
        yield Problem("wrong prompt", where, "the json's prompt is not the txt's")
    if info["num_segments"] != len(info["segments"]):
        found = len(info["segments"])
        yield Problem("wrong count", where, f"{found} segments, not {info['num_segments']}")


def _verify_segments(where: str, info: Mapping[str, Any]) -> Iterator[Problem]:
    num = len(info["segments"])
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


def _verify_ids(
    where: str, info: Mapping[str, Any], mask: UInt8[np.ndarray, "height width"]
) -> Iterator[Problem]:
    if mask.shape != (info["height"], info["width"]):
        yield Problem("wrong size", where, f"mask.png is {mask.shape[0]} x {mask.shape[1]}")
    known = {0, IGNORE, *(segment["id"] for segment in info["segments"])}
    unknown = sorted(set(np.unique(mask).tolist()) - known)
    if unknown:
        yield Problem("bad id", where, f"mask.png has ids {unknown} that no segment has")


def _verify_labels(where: str, info: Mapping[str, Any], sem_png: bytes) -> Iterator[Problem]:
    """Size of the semantic map, and that classes which were not found have no pixels or masks."""
    semantic = decode_image(sem_png, "L")
    if semantic.shape != (info["height"], info["width"]):
        yield Problem("wrong size", where, f"sem.png is {semantic.shape[0]} x {semantic.shape[1]}")
    known = {"", "background", *info["classes"]}
    named = {item["label"] for item in (*info["segments"], *info["instances"])}
    for name in sorted(named - known):
        yield Problem("bad label", where, f"{quote(name, 40)} is no class of the prompt")
    found = {item["label"] for item in info["instances"]} & set(info["not_found"])
    for name in sorted(found):
        yield Problem("bad label", where, f"{quote(name, 40)} has an instance and is not found")


def _verify_pixels(
    where: str,
    info: Mapping[str, Any],
    mask: UInt8[np.ndarray, "height width"],
    members: Mapping[str, bytes],
) -> Iterator[Problem]:
    for suffix in IMAGE_OPTIONS.keys() & members.keys():
        image = decode_image(members[suffix])
        if image.shape[:2] != (info["height"], info["width"]):
            found = f"{suffix} is {image.shape[0]} x {image.shape[1]}"
            yield Problem("wrong size", where, found)
    masks = decode_masks([s["rle"] for s in info["segments"]], info["height"], info["width"])
    painted = np.zeros(mask.shape, dtype=np.int64)  # ids of a forged json may be any number
    smallest = np.full(mask.shape, np.inf)
    for segment, pixels in zip(info["segments"], masks, strict=True):
        if list(bbox_xywh(pixels)) != segment["bbox_xywh"]:
            yield Problem("wrong box", where, f"segment {segment['id']}")
        inside = pixels & (segment["area"] <= smallest)
        painted[inside], smallest[inside] = segment["id"], segment["area"]
    if not np.array_equal(painted, mask):
        wrong = int((painted != mask).sum())
        yield Problem("bad id", where, f"{wrong} pixels do not have the smallest mask's id")


def _verify_keys(seen: list[Span], name: str, shard_index: int) -> Iterator[Problem]:
    last = ""
    keys: set[str] = set()
    for span in seen:
        where = f"{name} {quote(span.key, 40)}"
        if not KEY.fullmatch(span.key):
            yield Problem("bad key", where, "not 10 to 20 digits")
        elif not span.key.startswith(f"{shard_index:06d}"):
            yield Problem("bad key", where, f"does not begin with {shard_index:06d}")
        if span.key in keys:
            yield Problem("duplicate key", where, "occurs twice in the shard")
        elif span.key < last:
            yield Problem("wrong order", where, f"stands after {quote(last, 40)}")
        keys.add(span.key)
        last = max(last, span.key)


def _verify_members(seen: list[Span], name: str) -> Iterator[Problem]:
    images = {suffix for span in seen for suffix in span.members if suffix in IMAGE_OPTIONS}
    labeled = any("sem.png" in span.members for span in seen)
    expected = {"json", "mask.png", "txt", *(sorted(images)[:1] or ["jpg"])}
    expected |= {"sem.png"} if labeled else set()
    for span in seen:
        where = f"{name} {quote(span.key, 40)}"
        for suffix in sorted(span.members.keys() - expected):
            yield Problem("foreign member", where, quote(suffix))
        for suffix in sorted(expected - span.members.keys()):
            yield Problem("missing member", where, repr(suffix))


def _verify_published(
    storage: Storage, shard: str, deep: bool
) -> tuple[list[Problem], Marker | None]:
    tar, size = tar_name(shard), storage.size(tar_name(shard))
    content = storage.read(marker_name(shard))
    if content is None:
        kind = "missing marker" if size is None else "tar without marker"
        return [Problem(kind, tar, f"{marker_name(shard)} does not exist")], None
    try:
        marker = parse_marker(content, shard)
    except ValueError as error:
        return [Problem("bad marker", marker_name(shard), str(error))], None
    problems = [*_verify_metadata(storage, marker)]
    if marker.skipped:
        if size is not None:
            problems.append(Problem("foreign file", tar, "its marker says skipped"))
    elif size is None:
        problems.append(Problem("marker without tar", tar, "does not exist"))
    else:
        problems += _verify_content(storage, marker, size, deep)
    return problems, marker


def _verify_content(storage: Storage, marker: Marker, size: int, deep: bool) -> Iterator[Problem]:
    tar = tar_name(marker.name)
    if size != marker.bytes:
        yield Problem("wrong size", tar, f"{size} bytes, the marker says {marker.bytes}")
    if size > 2 * marker.bytes:  # perhaps a terabyte, and sparse
        return
    with storage.open(tar) as stream:
        sha256 = sha256_file(stream)
        if sha256 != marker.sha256:
            found = f"sha256 {sha256[:12]}…, the marker says {marker.sha256[:12]}…"
            yield Problem("wrong hash", tar, found)
        index = shard_index(marker.name)
        yield from verify_tar(stream, tar, index, marker.counts.get("ok", 0), deep)


def _verify_metadata(storage: Storage, marker: Marker) -> Iterator[Problem]:
    name = metadata_name(marker.name)
    content = storage.read(name)
    if content is None:
        yield Problem("missing file", name, "every shard has one")
        return
    try:
        rows = parse_rows(content)
    except ValueError as error:
        yield Problem("unreadable file", name, str(error))
        return
    found = {status: sum(row.status == status for row in rows) for status in marker.counts}
    if len(rows) != marker.planned or found != dict(marker.counts):
        yield Problem("wrong count", name, f"{len(rows)} rows, {marker.planned} planned")


def _verify_manifest(storage: Storage, markers: Mapping[str, Marker]) -> Iterator[Problem]:
    try:
        manifest = read_manifest(storage)
    except ValueError as error:
        yield Problem("unreadable file", MANIFEST, str(error))
        return
    if manifest is None:
        yield Problem("missing file", MANIFEST, "the dataset is not finalized; run again")
        return
    listed = {row["name"]: row for row in manifest["shards"]}
    for shard, marker in markers.items():
        row = listed.pop(tar_name(shard), None)
        if row is None:
            yield Problem("wrong manifest", MANIFEST, f"does not list {tar_name(shard)}")
        elif (row["sha256"], row["bytes"]) != (marker.sha256, marker.bytes):
            yield Problem("wrong manifest", MANIFEST, f"{tar_name(shard)} differs from its marker")
    for name in listed:
        if shard_stem(name) not in markers:
            yield Problem("missing marker", name, "the manifest lists it")


def _foreign_files(storage: Storage) -> Iterator[Problem]:
    for folder, suffix in (("data", ".tar"), ("stats", ".json"), ("metadata", ".parquet")):
        for name in storage.names(folder):
            stem = name.removeprefix(f"{folder}/").removesuffix(suffix)
            if not name.endswith(suffix) or not SHARD_NAME.fullmatch(stem):
                yield Problem("foreign file", name, "is not part of a dataset")


def _shard_names(storage: Storage) -> list[str]:
    """Shards that have a tar or a marker, and those in between that have neither."""
    stems = {
        name.split("/")[-1].rsplit(".", 1)[0]
        for folder in ("data", "stats")
        for name in storage.names(folder)
    }
    numbers = [int(match[1]) for stem in stems if (match := SHARD_NAME.fullmatch(stem))]
    return [shard_name(number) for number in range(max(numbers, default=-1) + 1)]
