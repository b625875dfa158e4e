"""Bytes and JSON of untrusted files: bounded, UTF-8, with the line of whatever is wrong."""

from __future__ import annotations

import functools
import json
import sys
import zlib
from pathlib import Path
from typing import Any

from synthgen.storage.untrusted import one_line
from synthgen.storage.urls import read_url

MAX_BYTES = 512 * 2**20
"""Largest file that is read; COCO's ``instances_train2017.json`` has 448 MiB."""

STDIN = "-"
"""Name of standard input."""


def is_file(path: Path) -> bool:
    """Whether there is such a file; no for names that no file can have."""
    try:
        return path.is_file()
    except OSError:  # too long
        return False


def read_source(source: str, max_bytes: int) -> bytes:
    """Content of a file, a URL or standard input, unpacked if it is gzip.

    Raises:
        ValueError: If there is no such thing, or it is too large; the message is one line.
        OSError: In one line, if the store of a URL cannot be reached.
    """
    if source == STDIN:
        data = _standard_input(max_bytes)
    elif "://" in source:
        data = read_url(source, max_bytes)
    else:
        data = read_bytes(Path(source), max_bytes)
    return _unpacked(data, one_line(source), max_bytes) if data[:2] == b"\x1f\x8b" else data


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Content of a regular file of at most ``max_bytes``.

    Raises:
        ValueError: If it is no such file; the message is one line.
    """
    try:
        if not is_file(path):
            raise ValueError(
                f"{one_line(path)}: must be an existing file. Got none; check the path."
            )
        size = path.stat().st_size
        if size > max_bytes:
            raise ValueError(
                f"{one_line(path)}: must have at most {max_bytes:,} bytes. Got {size:,}; "
                f"split the file."
            )
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{one_line(path)}: must be readable. Got {error.strerror}.") from None


@functools.cache
def _standard_input(max_bytes: int) -> bytes:
    """All of standard input, which can be read once only."""
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError(
            "Prompts from standard input must come through a pipe, such as 'cat list.txt | "
            "synthgen generate -'. Got a terminal or nothing."
        )
    data = sys.stdin.buffer.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"-: must have at most {max_bytes:,} bytes. Got more; split the list.")
    return data


def _unpacked(data: bytes, name: str, max_bytes: int) -> bytes:
    """What gzip packed, of however many members; a few bytes may stand for gigabytes."""
    parts, size = [], 0
    try:
        while data.strip(b"\0"):
            stream = zlib.decompressobj(wbits=31)
            parts.append(stream.decompress(data, max_bytes + 1 - size))
            size += len(parts[-1])
            if size > max_bytes:
                raise ValueError(
                    f"{name}: must have at most {max_bytes:,} bytes unpacked. Got more; split "
                    f"the file."
                )
            if not stream.eof:
                raise zlib.error("it is cut off")
            data = stream.unused_data
    except zlib.error as error:
        got = one_line(error, 60)
        raise ValueError(f"{name}: must be whole gzip data. Got an error: {got}.") from None
    return b"".join(parts)


def decode(data: bytes, name: str) -> str:
    r"""Text of UTF-8 bytes, without a byte order mark.

    Raises:
        ValueError: If it is not UTF-8; the message names the line.

    >>> decode(b"\xef\xbb\xbfa ball", "x.txt")
    'a ball'
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        got = f"byte 0x{data[error.start]:02X}"
        raise ValueError(f"{name}:{line}: must be UTF-8. Got {got}; convert the file.") from None


def parse_json(text: str, where: str) -> Any:
    """The JSON value of a text.

    Raises:
        ValueError: If it is not JSON; a document of several lines gets the line's number.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{where}:{error.lineno}" if "\n" in text else where
        raise ValueError(
            f"{place}: must be JSON. Got {error.msg} at column {error.colno}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: must be plain JSON. Got {one_line(error, 60)}.") from None
