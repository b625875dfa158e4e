"""Bytes and JSON of untrusted files: bounded, UTF-8, with the line of whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synthgen.untrusted import one_line

MAX_BYTES = 512 * 2**20
"""Largest file that is read; COCO's ``instances_train2017.json`` has 448 MiB."""


def is_file(path: Path) -> bool:
    """Whether there is such a file; no for names that no file can have."""
    try:
        return path.is_file()
    except OSError:  # too long
        return False


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
