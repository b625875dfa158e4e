"""What comes from outside: records with checked types, JSON of bounded depth, short quotations.

Datasets, prompt files and configurations may be anybody's. Whatever is wrong with one becomes a
ValueError of one line whose length does not depend on the content.
"""

from __future__ import annotations

import json
import reprlib
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

MAX_DEPTH = 64
"""Nesting of JSON files; those of a dataset have at most 6 levels."""

MAX_QUOTE = 80
MAX_MESSAGE = 200

T = TypeVar("T")

_ADAPTERS: dict[Any, Any] = {}

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxtuple = 3, 4, 4, 4
_SHORT.maxstring = _SHORT.maxother = MAX_QUOTE


def quote(value: Any, limit: int = MAX_QUOTE) -> str:
    r"""A value for an error message: one line, short, without looking at all of it.

    ``repr`` alone would first write out a tree of aliases that stands for gigabytes.

    >>> quote("two\nlines"), quote([[[[1]]]])
    ("'two\\nlines'", '[[[[...]]]]')
    """
    try:
        text = _SHORT.repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes
        text = f"a large {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def one_line(text: object, limit: int = MAX_MESSAGE) -> str:
    r"""A library's message in one line of printable characters, cut off at ``limit``.

    >>> one_line("first\n  second \x1b[31m")
    'first second \\x1b[31m'
    """
    safe = printable(" ".join(str(text)[: 8 * limit].split()))
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."


def printable(text: object) -> str:
    r"""A text in which nothing acts on a terminal: all but line ends is seen as what it is.

    >>> printable("\x1b[2Jred\n"), printable("\u202eabc")
    ('\\x1b[2Jred\n', '\\u202eabc')
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON document of at most ``MAX_DEPTH`` levels.

    Raises:
        ValueError: If it is none.

    >>> parse_json(b'{"a": [1]}')
    {'a': [1]}
    """
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {one_line(error)}") from None
    if _is_deeper(tree, MAX_DEPTH):
        raise ValueError(f"JSON of more than {MAX_DEPTH} levels")
    return tree


def parse_object(content: bytes | str) -> dict[str, Any]:
    """The object that a JSON document is.

    Raises:
        ValueError: If it is none, or has more than ``MAX_DEPTH`` levels.
    """
    tree = parse_json(content)
    if not isinstance(tree, dict):
        raise ValueError(f"a {type(tree).__name__} instead of an object")
    return tree


def parse_record(kind: type[T], content: bytes) -> T:
    """A dataclass or TypedDict from JSON: no field unknown, missing or of another type.

    Raises:
        ValueError: With the first field that is wrong.
    """
    try:
        record: T = _adapter(kind).validate_json(content, strict=True, extra="forbid")
    except ValidationError as error:
        raise ValueError(describe(error)) from None
    return record


def check_shape(kind: type, tree: Any) -> None:
    """Refuse a JSON value without the fields of a TypedDict; more fields may be there.

    Raises:
        ValueError: With the first field that is wrong.
    """
    try:
        _adapter(kind).validate_python(tree, strict=True, extra="ignore")
    except ValidationError as error:
        raise ValueError(describe(error)) from None


def describe(error: ValidationError) -> str:
    """The first field that a validation error is about."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return one_line(f"{where[:MAX_QUOTE]}: {first['msg']}, got {quote(first['input'])}")


def _adapter(kind: Any) -> Any:
    """The validator of a class; made once, for that costs a millisecond."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _is_deeper(tree: Any, limit: int) -> bool:
    """Whether a tree has more levels, found level by level, without recursion."""
    level = [tree]
    for _ in range(limit + 1):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return True
