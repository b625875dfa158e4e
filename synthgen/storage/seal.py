"""Small files that vouch for themselves, and files that others vouch for.

The last line of a sealed JSON file is the sha256 of what stands before it, so that damage is seen
wherever the file is read. Files of schema version 1 had no seal. Of every other file of a dataset
a sealed one has the sha256: a marker, or the manifest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from synthgen.storage.publish import Storage, dump_json, sha256_file
from synthgen.storage.untrusted import T, parse_object, parse_record
from synthgen.types import ByteStream

SEALED = 2
"""Schema version of manifests, markers, audits and labels from which on they are sealed."""

_LINE = b',\n "seal": "'
_SEAL = re.compile(rb',\n "seal": "([0-9a-f]{64})"\n}\n')


def sha256_of(content: bytes) -> str:
    """The sha256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def hash_file(storage: Storage, name: str) -> str | None:
    """The sha256 of a file, whatever its size; None where there is none."""
    try:
        with storage.open(name) as stream:
            return sha256_file(stream)
    except FileNotFoundError:
        return None


def sealed_json(tree: Mapping[str, Any]) -> bytes:
    """A small file of ours, sealed if its schema version is."""
    content = dump_json(tree)
    return seal(content) if tree["schema_version"] >= SEALED else content


def sealed_record(record: Any) -> bytes:
    """A marker, a dataclass with a schema version, as it stands on the disk."""
    return sealed_json({field.name: getattr(record, field.name) for field in fields(record)})


def seal(content: bytes) -> bytes:
    """A JSON object of ours with its seal as the last line.

    >>> open_seal(seal(b'{\\n "a": 1\\n}\\n'))
    (b'{\\n "a": 1\\n}\\n', True)
    """
    hashed = sha256_of(content).encode("ascii")
    return content.removesuffix(b"\n}\n") + _LINE + hashed + b'"\n}\n'


def open_seal(content: bytes) -> tuple[bytes, bool]:
    """A JSON object without its seal, and whether it had one.

    Raises:
        ValueError: If the seal is another content's.
    """
    body, _, _ = content.rpartition(_LINE)
    match = _SEAL.fullmatch(content, len(body))
    if match is None:
        return content, False
    if sha256_of(body + b"\n}\n").encode("ascii") != match[1]:
        raise ValueError("other content than was sealed: it was damaged or changed")
    return body + b"\n}\n", True


def parse_sealed(content: bytes) -> dict[str, Any]:
    """The object that a file of ours is, its seal looked at and left out.

    Raises:
        ValueError: If it is none, or not what was sealed.
    """
    body, has_seal = open_seal(content)
    tree = parse_object(body)
    _check_sealed(tree.get("schema_version"), has_seal)
    return tree


def parse_sealed_record(kind: type[T], content: bytes) -> T:
    """What ``sealed_record`` wrote.

    Raises:
        ValueError: If it is no such record, or not what was sealed.
    """
    body, has_seal = open_seal(content)
    record = parse_record(kind, body)
    _check_sealed(getattr(record, "schema_version", None), has_seal)
    return record


def _check_sealed(schema_version: object, has_seal: bool) -> None:
    if schema_version == SEALED and not has_seal:
        raise ValueError("no seal in the last line: it was damaged or changed")


def check_vouched(name: str, found: str, expected: str, by: str) -> None:
    """Refuse a file that is not the one that another vouches for.

    Args:
        found: Its sha256.
        expected: The sha256 that it must have; empty where an older version says none.
        by: Who says so.

    Raises:
        ValueError: If it is another one.
    """
    if expected and found != expected:
        raise ValueError(
            f"{name} must be the file that {by} vouches for. Got another sha256; see "
            f"'synthgen verify'."
        )


@contextmanager
def open_vouched(storage: Storage, name: str, expected: str, by: str) -> Iterator[ByteStream]:
    """A file opened for reading, once it is certain that it is the one that was published.

    Raises:
        ValueError: See ``check_vouched``.
    """
    with storage.open(name) as stream:
        check_vouched(name, sha256_file(stream) if expected else "", expected, by)
        stream.seek(0)
        yield stream
