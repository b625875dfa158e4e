"""Finds what is wrong with a dataset, and names it.

Readers accept truncated, reordered and foreign content without a word, so structure, hashes and
ids are checked here: on all that is staged before it is published, and by ``synthgen verify``.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
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
    marker_name,
    metadata_name,
    parse_marker,
    plans_more,
    read_manifest,
    shard_index,
    shard_row,
    tar_name,
    totals,
    version_name,
    versions,
)
from synthgen.dataset.metadata import Row, parse_rows
from synthgen.dataset.records import IMAGE_OPTIONS, KEY
from synthgen.dataset.shards import (
    BrokenShardError,
    Span,
    read_span,
    scan,
    sha256_of_members,
    span_sha256,
    spans,
)
from synthgen.dataset.verify_samples import Problem, verify_row, verify_sample, wrong_row
from synthgen.dataset.verify_sidecars import verify_sidecars
from synthgen.storage.publish import Storage, open_storage, sha256_file
from synthgen.storage.seal import hash_file, sha256_of
from synthgen.storage.untrusted import one_line, quote
from synthgen.types import ByteStream, shard_name

_AGAIN = "run the command again that made the dataset"

logger = logging.getLogger(__name__)


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
    for name in (CARD, CONFIG, IDENTITY, CLASSES):
        if storage.size(name) is None:
            yield Problem("missing file", name, "every dataset has one")
    names: Mapping[int, str] | None = None
    manifest: dict[str, Any] | None = None
    try:
        names = class_names(storage) or None
    except ValueError as error:
        yield Problem("unreadable file", CLASSES, str(error))
    try:
        if (manifest := read_manifest(storage)) is None:
            yield Problem("missing file", MANIFEST, "the dataset is not finalized; run again")
    except ValueError as error:
        yield Problem("unreadable file", MANIFEST, f"{error} remove it and {_AGAIN}")
    listed = {row["name"]: row for row in manifest["shards"]} if manifest else {}
    shards: list[str] = []
    for shard in _shard_names(storage):
        try:
            marker = yield from _verify_shard(storage, shard, names, deep)
        except ValueError as error:  # a folder that is called like a file
            yield Problem("unreadable file", tar_name(shard), str(error))
            continue
        if marker is not None:
            shards.append(shard)
            row = listed.pop(tar_name(shard), None)
            if manifest is not None:
                yield from _verify_listed(marker, row, manifest["config"])
    yield from (Problem("missing marker", name, "the manifest lists it") for name in listed)
    if manifest is not None:
        yield from _verify_description(storage, manifest, deep)
    for folder, suffix in (("data", ".tar"), ("stats", ".json"), ("metadata", ".parquet")):
        for name in storage.names(folder):
            stem = name.removeprefix(f"{folder}/").removesuffix(suffix)
            if not name.endswith(suffix) or not SHARD_NAME.fullmatch(stem):
                yield Problem("foreign file", name, "is not part of a dataset")
    digest = manifest["config"] if manifest is not None else None
    yield from verify_sidecars(storage, shards, names, deep, digest)


def verify_tar(
    stream: ByteStream,
    name: str,
    shard_index: int,
    num_samples: int,
    deep: bool,
    rows: Mapping[str, Row] | None = None,
    names: Mapping[int, str] | None = None,
    verified: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Every problem of one tar: structure, keys, members, and the content of the samples.

    Args:
        shard_index: Number that its keys begin with.
        num_samples: Samples that it must hold.
        deep: See ``find_problems``.
        rows: Rows of the metadata, by key, of the samples that it must hold; None: not compared.
        names: Classes of classes.json by id; None: not compared.
        verified: Hashes, by key, of contents that were looked into before they were written: they
            must be the same; None: all are looked into.
    """
    problems: list[Problem] = []
    seen: list[Span] = []
    try:
        for span in spans(scan(stream)):
            seen.append(span)
    except BrokenShardError as error:
        problems.append(Problem(error.kind, name, error.message))
    problems += _verify_keys(seen, name, f"{shard_index:06d}")
    problems += _verify_members(seen, name)
    if len(seen) != num_samples and not problems:
        problems.append(Problem("wrong count", name, f"{len(seen)} samples, not {num_samples}"))
    shard, keys = shard_name(shard_index), {span.key for span in seen}
    if rows is not None and not problems:
        for keys_of_one, found in (
            (rows.keys() - keys, "the tar has no such sample"),
            (keys - rows.keys(), "the tar has such a sample, the rows have none"),
        ):
            problems += [wrong_row(shard, key, found) for key in sorted(keys_of_one)]
    for span in seen:
        where, members = f"{name} {one_line(span.key, 40)}", read_span(stream, span)
        if verified is None:
            problems += verify_sample(where, span.key, members, deep, names)
        elif sha256_of_members(members) != verified.get(span.key):
            problems.append(Problem("wrong hash", where, "is not what was written"))
        if rows is not None and span.key in rows and "json" in members:
            sha256 = span_sha256(stream, span)
            problems += verify_row(shard, rows[span.key], span, sha256, members["json"])
    return problems


def _verify_keys(seen: Sequence[Span], name: str, prefix: str) -> Iterator[Problem]:
    last = ""
    keys: set[str] = set()
    for span in seen:
        where = f"{name} {quote(span.key, 40)}"
        if not KEY.fullmatch(span.key):
            yield Problem("bad key", where, "not 10 to 20 digits")
        elif not span.key.startswith(prefix):
            yield Problem("bad key", where, f"does not begin with {prefix}")
        if span.key in keys:
            yield Problem("duplicate key", where, "occurs twice in the shard")
        elif span.key < last:
            yield Problem("wrong order", where, f"stands after {quote(last, 40)}")
        keys.add(span.key)
        last = max(last, span.key)


def _verify_members(seen: Sequence[Span], name: str) -> Iterator[Problem]:
    """Every sample has the same members, with one image."""
    suffixes = {suffix for span in seen for suffix in span.members}
    images = sorted(suffixes & IMAGE_OPTIONS.keys())[:1] or ["jpg"]
    expected = {"json", "mask.png", "txt", *images, *(suffixes & {"sem.png"})}
    for span in seen:
        where = f"{name} {quote(span.key, 40)}"
        for suffix in sorted(span.members.keys() - expected):
            yield Problem("foreign member", where, quote(suffix))
        for suffix in sorted(expected - span.members.keys()):
            yield Problem("missing member", where, repr(suffix))


def _verify_shard(
    storage: Storage, shard: str, names: Mapping[int, str] | None, deep: bool
) -> Generator[Problem, None, Marker | None]:
    """What is wrong with the tar and the rows of a shard; returns its marker."""
    tar, size = tar_name(shard), storage.size(tar_name(shard))
    content = storage.read(marker_name(shard))
    if content is None:
        kind = "missing marker" if size is None else "tar without marker"
        yield Problem(kind, tar, f"{marker_name(shard)} does not exist")
        return None
    try:
        marker = parse_marker(content, shard)
    except ValueError as error:
        yield Problem("bad marker", marker_name(shard), str(error))
        return None
    rows = yield from _verify_rows(storage, marker)
    if marker.skipped and size is not None:
        yield Problem("foreign file", tar, "its marker says skipped")
    elif size is None and not marker.skipped:
        yield Problem("marker without tar", tar, "does not exist")
    elif size is not None and size != marker.bytes:
        yield Problem("wrong size", tar, f"{size} bytes, the marker says {marker.bytes}")
    if marker.skipped or size is None or size > 2 * marker.bytes:  # perhaps a sparse terabyte
        return marker
    with storage.open(tar) as stream:
        sha256 = sha256_file(stream)
        if sha256 != marker.sha256:
            found = f"sha256 {sha256[:12]}…, the marker says {marker.sha256[:12]}…"
            yield Problem("wrong hash", tar, found)
            rows = None  # they are about another tar
        num_ok = marker.counts.get("ok", 0)
        yield from verify_tar(stream, tar, shard_index(shard), num_ok, deep, rows, names)
    return marker


def _verify_rows(
    storage: Storage, marker: Marker
) -> Generator[Problem, None, dict[str, Row] | None]:
    """Returns the rows by key of the samples that a shard's tar must hold, None without."""
    name = metadata_name(marker.name)
    content = storage.read(name)
    if content is None:
        yield Problem("missing file", name, "every shard has one")
        return None
    if marker.metadata_sha256 and sha256_of(content) != marker.metadata_sha256:
        again = f"remove {name} and run again"
        yield Problem("wrong hash", name, f"its marker says another; {again}")
        return None
    try:
        rows = parse_rows(content)
    except ValueError as error:
        yield Problem("unreadable file", name, str(error))
        return None
    found = {status: sum(row.status == status for row in rows) for status in marker.counts}
    if len(rows) != marker.planned or found != dict(marker.counts):
        yield Problem("wrong count", name, f"{len(rows)} rows, {marker.planned} planned")
    return {row.key: row for row in rows if row.status == "ok"}


def _verify_listed(
    marker: Marker, row: Mapping[str, Any] | None, config: str
) -> Iterator[Problem]:
    """Whether manifest and marker say the same of a shard."""
    tar, expected = tar_name(marker.name), dict(shard_row(marker))
    if row is None:
        yield Problem("wrong manifest", MANIFEST, f"does not list {tar}")
    elif any(value != expected.get(name) for name, value in row.items()):
        yield Problem("wrong manifest", MANIFEST, f"{tar} differs from its marker")
    if marker.config != config:
        yield Problem("bad marker", marker_name(marker.name), "carries another digest")


def _verify_description(
    storage: Storage, manifest: Mapping[str, Any], deep: bool
) -> Iterator[Problem]:
    """The files that a manifest vouches for, and its own sums.

    The card, which people may have edited, is looked at only where ``deep`` asks for it.
    """
    if "files" not in manifest["times"]:
        logger.warning(
            "%s is of an older version, which has no hashes of the description, of earlier "
            "manifests, rows and previews: damage in them cannot be found.",
            MANIFEST,
        )
    if totals(manifest["shards"])["samples"] != manifest["totals"]["samples"]:
        yield Problem("wrong manifest", MANIFEST, "its totals are not those of its shards")
    files, known = (manifest["times"].get(name, {}) for name in ("files", "versions"))
    for name, sha256 in (*files.items(), *known.items()):
        again = f"restore it, or {_AGAIN}"
        if name in known:
            again = "restore it; only readers of that version need it"
        if name == CONFIG and plans_more(storage, manifest):
            yield Problem("unfinished", name, f"plans more than the manifest lists; {_AGAIN}")
        elif name == CARD and not deep:
            continue
        elif (found := hash_file(storage, name)) is None:
            yield Problem("missing file", name, f"the manifest has its hash; {again}")
        elif found != sha256:
            message = f"sha256 {found[:12]}…, the manifest's is another; {again}"
            yield Problem("wrong hash", name, message)
    for name in map(version_name, versions(storage) if known else ()):
        if name not in known:
            yield Problem("unfinished", name, f"the manifest does not know it; {_AGAIN}")


def _shard_names(storage: Storage) -> list[str]:
    """Shards that have a tar or a marker, and those in between that have neither."""
    names = [*storage.names("data"), *storage.names("stats")]
    stems = (name.split("/")[-1].rsplit(".", 1)[0] for name in names)
    numbers = [int(match[1]) for stem in stems if (match := SHARD_NAME.fullmatch(stem))]
    return [shard_name(number) for number in range(max(numbers, default=-1) + 1)]
