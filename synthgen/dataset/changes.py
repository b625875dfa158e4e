"""Which settings differ from those that something was begun with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthgen.storage.untrusted import one_line

SHOWN = 8


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ between two trees.

    >>> changed_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": None})
    ['a.c', 'd']
    """
    left, right = _flat(old), _flat(new)
    return sorted(
        key.removeprefix("settings.")
        for key in left.keys() | right.keys()
        if (key in left, left.get(key)) != (key in right, right.get(key))
    )


def list_keys(keys: Sequence[str]) -> str:
    """The first keys, and how many more there are.

    >>> list_keys("abcdefghij")
    'a, b, c, d, e, f, g, h and 2 more'
    """
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(one_line(key) for key in keys[:SHOWN]) + more


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
