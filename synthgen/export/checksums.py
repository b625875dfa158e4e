"""An export's own manifest: a hash of every file, and how an export is checked against it.

``SHA256SUMS`` is what ``sha256sum -c`` reads; ``export.json``, written last, holds its hash and
one of itself. Files that are not listed are others' business, unless they are of a listed kind and
in a folder of listed ones: whoever trains on the folder would take them too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from synthgen.dataset.verify_samples import Problem
from synthgen.storage import urls
from synthgen.storage.publish import Storage, dump_json, sha256_file
from synthgen.storage.seal import sha256_of
from synthgen.storage.untrusted import parse_object, quote

EXPORT = "export.json"
SUMS = "SHA256SUMS"
ASKED = ".synthgen/export.json"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\\x00-\x1f][^\\\x00-\x1f]*)")
_AGAIN = "remove it and run the export again"


def sum_line(sha256: str, name: str) -> bytes:
    """A line of ``SHA256SUMS``.

    >>> sum_line("0" * 64, "train/1.jpg")[-15:]
    b'0  train/1.jpg\\n'
    """
    return f"{sha256}  {name}\n".encode()


def seal(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary with the hash of its content."""
    return {**summary, "sha256": sha256_of(dump_json(summary))}


def read_summary(storage: Storage) -> dict[str, Any] | None:
    """The content of ``export.json``, None where there is none.

    Raises:
        ValueError: If it is not what was written.
    """
    content = storage.read(EXPORT)
    if content is None:
        return None
    summary = parse_object(content)
    if seal({k: v for k, v in summary.items() if k != "sha256"}) != summary:
        raise ValueError("its own sha256 differs")
    return summary


def file_sizes(storage: Storage, links: bool = False) -> dict[str, int]:
    """Bytes of every plain file by name, and of links where they are asked for."""
    storage.fs.invalidate_cache()
    prefix = storage.root.lstrip("/") + "/"
    found = urls.ask(storage.fs, storage.root, lambda: storage.fs.find(storage.root, detail=True))
    return {
        str(path).lstrip("/").removeprefix(prefix): int(info["size"] or 0)
        for path, info in found.items()
        if links or not info.get("islink")
    }


def is_export(storage: Storage) -> bool:
    """Whether a folder is an export, finished or damaged."""
    return any(storage.size(name) is not None for name in (EXPORT, SUMS, ASKED))


def verify_export(storage: Storage) -> Iterator[Problem]:
    """Every problem of an export, which may be anybody's: files missing, changed, or not of it."""
    summary = None
    try:
        summary = read_summary(storage)
        if summary is None:
            yield Problem("missing file", EXPORT, "the export is not finished; run it again")
    except ValueError as error:
        yield Problem("unreadable file", EXPORT, f"{error}; {_AGAIN}")
    sizes = file_sizes(storage)
    if SUMS not in sizes:
        yield Problem("missing file", SUMS, f"every export has one; {_AGAIN}")
        return
    listed, whole = set[str](), hashlib.sha256()
    with storage.open(SUMS) as stream:
        for line in stream.read().splitlines(keepends=True):
            whole.update(line)
            match = _LINE.fullmatch(line.decode("utf-8", "replace").rstrip("\n"))
            if match is None or ".." in match[2].split("/"):
                yield Problem("unreadable file", SUMS, f"the line {quote(line)}")
                continue
            sha256, name = match.groups()
            listed.add(name)
            if name not in sizes:
                yield Problem("missing file", name, f"{SUMS} lists it; run the export again")
                continue
            with storage.open(name) as content:
                if sha256_file(content) != sha256:
                    yield Problem("wrong hash", name, f"now {sizes[name]} bytes; {_AGAIN}")
    if summary is not None and summary.get("sha256sums") != whole.hexdigest():
        yield Problem("wrong hash", SUMS, f"{EXPORT} has another; {_AGAIN}")
    kinds = {_kind(name) for name in listed}
    for name in sorted(sizes):
        if "/" in name and name not in listed and _kind(name) in kinds:
            yield Problem("foreign file", name, f"{SUMS} does not list it; move it away")


def _kind(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    return str(path.parent), path.suffix
