"""MAT-files of version 5, as far as annotations need them: numbers, texts, structs and cells.

scipy's reader crashes the process on some damaged files, so untrusted ones are read here, with
every length checked against the bytes that are there, and a bound on what they expand to.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
"""Types of elements that are numbers."""

_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR, _NUMERIC = 1, 2, 4, range(6, 16)  # classes of a matrix
_DEEPEST = 16


class _Element(NamedTuple):
    kind: int
    data: memoryview


def read_mat(data: bytes, most: int) -> dict[str, Any]:
    """Variables by name: arrays, texts, lists of dicts (structs), lists (cells).

    Args:
        data: A file.
        most: Bytes that it may have when it is expanded.

    Raises:
        ValueError: In one line, if it is none, is cut off, larger, or has what is not read.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError("no MAT-file of version 5")
    found: dict[str, Any] = {}
    for element in _elements(memoryview(data)[128:], order):
        if element.kind == _COMPRESSED:
            unpack = zlib.decompressobj()
            try:
                content = unpack.decompress(element.data, most + 1)
            except zlib.error as error:
                raise ValueError(f"damaged: {error}") from None
            most -= len(content)
            if most < 0:
                raise ValueError("more bytes than are read, when it is expanded")
            own = list(_elements(memoryview(content), order))
        else:
            own = [element]
        for one in own:
            name, value = _matrix(one, order, 0)
            found[name] = value
    return found


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    start = 0
    while start < len(data):
        (head,) = _unpack(f"{order}I", data[start : start + 4])
        if head >> 16:  # up to 4 bytes, in the tag itself
            kind, length, begin, step = head & 0xFFFF, head >> 16, start + 4, 8
        else:
            kind, begin = head, start + 8
            (length,) = _unpack(f"{order}I", data[start + 4 : start + 8])
            step = 8 + length + (0 if kind == _COMPRESSED else -length % 8)
        if begin + length > len(data) or (begin == start + 4 and length > 4):
            raise ValueError("cut off")
        yield _Element(kind, data[begin : begin + length])
        start += step


def _matrix(element: _Element, order: str, depth: int) -> tuple[str, Any]:
    """Name and value of a variable, or of a field."""
    if element.kind != _MATRIX or depth > _DEEPEST:
        raise ValueError(f"an element of type {element.kind}, at depth {depth}")
    if not element.data:
        return "", np.zeros((0, 0))
    rows = _elements(element.data, order)
    try:
        flags = _numbers(next(rows), order)
        shape = [int(side) for side in _numbers(next(rows), order)]
        name = _text(next(rows), order)
        cls, size = int(flags[0]) & 0xFF, math.prod(shape)
        if not shape or min(shape) < 0 or size > len(element.data) * 8:
            raise ValueError(f"an array of shape {shape}"[:80])
        if cls == _CHAR:
            return name, _text(next(rows), order)
        if cls in _NUMERIC:
            return name, _numbers(next(rows), order).reshape(shape, order="F")
        if cls == _CELL:
            return name, [_matrix(next(rows), order, depth + 1)[1] for _ in range(size)]
        if cls == _STRUCT:
            width = int(_numbers(next(rows), order)[0])
            listed = next(rows).data.tobytes()
            names = [
                listed[at : at + width].split(b"\0")[0].decode("latin-1")
                for at in range(0, len(listed), max(width, 1))
            ]
            return name, [
                {field: _matrix(next(rows), order, depth + 1)[1] for field in names}
                for _ in range(size)
            ]
    except (StopIteration, IndexError):
        raise ValueError("cut off") from None
    raise ValueError(f"an array of class {cls}")


def _numbers(element: _Element, order: str) -> np.ndarray:
    if element.kind not in _NUMBERS:
        raise ValueError(f"numbers of type {element.kind}")
    return np.frombuffer(element.data, np.dtype(f"{order}{_NUMBERS[element.kind]}"))


def _text(element: _Element, order: str) -> str:
    if element.kind not in _TEXTS:
        raise ValueError(f"a text of type {element.kind}")
    coding = _TEXTS[element.kind]
    if coding in ("utf-16", "utf-32"):
        coding += "-le" if order == "<" else "-be"
    return element.data.tobytes().decode(coding)


def _unpack(form: str, data: memoryview) -> tuple[Any, ...]:
    try:
        return struct.unpack(form, data)
    except struct.error:
        raise ValueError("cut off") from None
