"""Finds what is wrong with a dataset, and names it.

Readers accept truncated, reordered and foreign content without a word, so structure, hashes and
ids are checked here: on every staged shard before it is published, and by ``synthgen verify``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synthgen.dataset.labels import class_names
from synthgen.dataset.manifest import (
    CARD,
    CLASSES,
    CONFIG,
    IDENTITY,
    MANIFEST,
    SHARD_NAME,
    Marker,
    ShardRow,
    marker_name,
    metadata_name,
    parse_marker,
    read_manifest,
    shard_index,
    shard_row,
    tar_name,
)
from synthgen.dataset.metadata import Row, parse_rows
from synthgen.dataset.records import IMAGE_OPTIONS, KEY
from synthgen.dataset.shards import BrokenShardError, Span, read_span, scan, span_sha256, spans
from synthgen.dataset.verify_description import verify_description
from synthgen.dataset.verify_samples import Problem, verify_row, verify_sample, wrong_row
from synthgen.dataset.verify_sidecars import verify_beside
from synthgen.storage.publish import Storage, open_storage, sha256_file
from synthgen.storage.seal import sha256_of
from synthgen.storage.untrusted import one_line, quote
from synthgen.types import ByteStream, shard_name

TOP_FILES = (CARD, CONFIG, IDENTITY, CLASSES)


def verify_dataset(directory: Any, deep: bool = False) -> list[Problem]:
    """Every problem of a dataset; an empty list says that it is complete and correct.

    See ``find_problems``.
    """
    return list(find_problems(directory, deep))


def find_problems(directory: Any, deep: bool = False) -> Iterator[Problem]:
    """The problems of a dataset, shard by shard: a hostile one may have millions.

    Args:
        directory: Its folder or URL.
        deep: Also decode every image and mask, rebuild ``mask.png`` from the masks, and look
            into previews, and derive again what summaries say of audits and labels.

    Raises:
        ValueError: If there is nothing of a dataset.
    """
    storage = open_storage(directory)
    if strangers := storage.strangers():
        message = "a link, pipe or device; remove it, nothing is looked at before"
        yield from (Problem("no plain file", name, message) for name in strangers)
        return
    if not {*storage.names(), *storage.names("data"), *storage.names("stats")}:
        raise ValueError(f"A dataset must be a folder of ours. Got nothing in {storage.root}.")
    for name in TOP_FILES:
        if storage.size(name) is None:
            yield Problem("missing file", name, "every dataset has one")
    names, found = _class_names(storage)
    yield from found
    manifest, found = _read_manifest(storage)
    yield from found
    listed = {row["name"]: row for row in manifest["shards"]} if manifest else {}
    shards: list[str] = []
    for shard in _shard_names(storage):
        try:
            found, marker = _verify_published(storage, shard, names, deep)
        except ValueError as error:  # a folder that is called like a file
            yield Problem("unreadable file", tar_name(shard), str(error))
            continue
        yield from found
        if marker is not None:
            shards.append(shard)
        row = listed.pop(tar_name(shard), None)
        if marker is not None and manifest is not None:
            yield from _verify_listed(marker, row, manifest)
        elif row is not None:
            yield Problem("missing marker", tar_name(shard), "the manifest lists it")
    yield from (Problem("missing marker", name, "the manifest lists it") for name in listed)
    if manifest is not None:
        yield from verify_description(storage, manifest, deep)
    yield from _foreign_files(storage)
    digest = manifest["config"] if manifest is not None else None
    yield from verify_beside(storage, shards, names, deep, digest)


def verify_tar(
    stream: ByteStream,
    name: str,
    shard_index: int,
    num_samples: int,
    deep: bool,
    rows: Mapping[str, Row] | None = None,
    names: Mapping[int, str] | None = None,
) -> list[Problem]:
    """Every problem of one tar: structure, keys, members, and the content of the samples.

    Args:
        stream: The open tar.
        name: Its name, for the messages.
        shard_index: Number that its keys begin with.
        num_samples: Samples that it must hold.
        deep: See ``verify_dataset``.
        rows: Rows of the metadata, by key, of the samples that it must hold; None: not compared.
        names: Classes of classes.json by id; None: not compared.
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
    if rows is not None and not problems:
        problems += _verify_row_keys(seen, rows, shard_name(shard_index))
    for span in seen:
        where, members = f"{name} {one_line(span.key, 40)}", read_span(stream, span)
        problems += verify_sample(where, span.key, members, deep, names)
        if rows is not None and span.key in rows and "json" in members:
            row, sha256 = rows[span.key], span_sha256(stream, span)
            problems += verify_row(shard_name(shard_index), row, span, sha256, members["json"])
    return problems


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


def _verify_row_keys(seen: list[Span], rows: Mapping[str, Row], shard: str) -> Iterator[Problem]:
    keys = {span.key for span in seen}
    for key in sorted(rows.keys() - keys):
        yield wrong_row(shard, key, "the tar has no such sample")
    for key in sorted(keys - rows.keys()):
        yield wrong_row(shard, key, "the tar has such a sample, the rows have none")


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
    storage: Storage, shard: str, names: Mapping[int, str] | None, deep: bool
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
    rows, problems = _read_rows(storage, marker)
    if marker.skipped:
        if size is not None:
            problems.append(Problem("foreign file", tar, "its marker says skipped"))
    elif size is None:
        problems.append(Problem("marker without tar", tar, "does not exist"))
    else:
        problems += _verify_content(storage, marker, size, rows, names, deep)
    return problems, marker


def _verify_content(
    storage: Storage,
    marker: Marker,
    size: int,
    rows: Mapping[str, Row] | None,
    names: Mapping[int, str] | None,
    deep: bool,
) -> Iterator[Problem]:
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
            rows = None  # they are about another tar
        index, num_ok = shard_index(marker.name), marker.counts.get("ok", 0)
        yield from verify_tar(stream, tar, index, num_ok, deep, rows, names)


def _read_rows(storage: Storage, marker: Marker) -> tuple[dict[str, Row] | None, list[Problem]]:
    """Rows by key of the samples that a shard's tar must hold, None without such a file."""
    name = metadata_name(marker.name)
    content = storage.read(name)
    if content is None:
        return None, [Problem("missing file", name, "every shard has one")]
    again = f"remove {name} and run again"
    if marker.metadata_sha256 and sha256_of(content) != marker.metadata_sha256:
        return None, [Problem("wrong hash", name, f"its marker says another; {again}")]
    try:
        rows = parse_rows(content)
    except ValueError as error:
        return None, [Problem("unreadable file", name, str(error))]
    problems = []
    found = {status: sum(row.status == status for row in rows) for status in marker.counts}
    if len(rows) != marker.planned or found != dict(marker.counts):
        message = f"{len(rows)} rows, {marker.planned} planned"
        problems.append(Problem("wrong count", name, message))
    return {row.key: row for row in rows if row.status == "ok"}, problems


def _class_names(storage: Storage) -> tuple[dict[int, str] | None, list[Problem]]:
    """Classes of classes.json by id, None where it is missing or unreadable."""
    try:
        return class_names(storage) or None, []
    except ValueError as error:
        return None, [Problem("unreadable file", CLASSES, str(error))]


def _read_manifest(storage: Storage) -> tuple[dict[str, Any] | None, list[Problem]]:
    try:
        manifest = read_manifest(storage)
    except ValueError as error:
        again = "remove it and run the command again that made the dataset"
        return None, [Problem("unreadable file", MANIFEST, f"{error} {again}")]
    missing = Problem("missing file", MANIFEST, "the dataset is not finalized; run again")
    return manifest, [missing] if manifest is None else []


def _verify_listed(
    marker: Marker, row: ShardRow | None, manifest: Mapping[str, Any]
) -> Iterator[Problem]:
    """Whether manifest and marker say the same of a shard."""
    expected: Mapping[str, Any] = shard_row(marker)
    if row is None:
        yield Problem("wrong manifest", MANIFEST, f"does not list {tar_name(marker.name)}")
    elif any(value != expected.get(name) for name, value in row.items()):
        found = f"{tar_name(marker.name)} differs from its marker"
        yield Problem("wrong manifest", MANIFEST, found)
    if marker.config != manifest["config"]:
        yield Problem("bad marker", marker_name(marker.name), "carries another digest")


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
