"""One entry of a prompt file: what it must look like, and the identifier it gets.

Prompts are untrusted: lengths are bounded, and characters that do not print, that reorder text or
that a CLIP tokenizer reads as a command are refused, never cleaned away in silence.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from synthgen.registry import near_miss
from synthgen.types import Prompt
from synthgen.untrusted import MAX_QUOTE, quote

MAX_TEXT = 2000
"""Characters of a prompt; 77 CLIP tokens are about 300."""

MAX_NAME = 200
"""Characters of an id or a class name."""

MAX_CLASSES = 254
"""Classes of one prompt: the ids that an 8-bit map holds besides 0 and 255."""

SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
"""Texts that CLIP's tokenizer reads as its own marks: the rest of the prompt would be ignored."""

_REFUSED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories: control, format (bidirectional overrides, zero width), surrogate, private
use, unassigned, line and paragraph separator."""

TEXT_KEYS = ("prompt", "prompt_sd")


@dataclass(frozen=True, slots=True)
class Entry:
    """A checked entry. ``where`` is its place in the file, such as ``voc.jsonl:12``."""

    where: str
    id: str | None
    text: str
    class_names: tuple[str, ...]
    repeats: tuple[str, ...] = ()


def parse_entry(raw: Any, where: str) -> Entry:
    """The entry in a JSON object ``{id?, prompt | prompt_sd, classes}``; other keys are ignored.

    Raises:
        ValueError: If a key is missing or a value has the wrong type, length or characters.

    >>> parse_entry({"prompt": "a red ball", "classes": ["ball"]}, "x:1").class_names
    ('ball',)
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: must be an object {{id?, prompt, classes}}. Got {_got(raw)}.")
    text = _required(raw, TEXT_KEYS, where)
    names = _required(raw, ("classes",), where)
    if not isinstance(names, list):
        raise ValueError(f"{where}: classes must be a list of names. Got {_got(names)}.")
    return make_entry(raw.get("id"), text, names, where)


def make_entry(raw_id: Any, text: Any, names: list[Any], where: str) -> Entry:
    """An entry from its three values, each checked; repeated classes are kept once."""
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{where}: classes must be at most {MAX_CLASSES}. Got {len(names)}.")
    checked = [_string(name, "a class name", MAX_NAME, where) for name in names]
    repeats = tuple(name for name, count in Counter(checked).items() if count > 1)
    text = _string(text, "prompt", MAX_TEXT, where)
    return Entry(where, _identifier(raw_id, where), text, tuple(dict.fromkeys(checked)), repeats)


def to_prompts(entries: Iterable[Entry], class_table: Collection[str] | None) -> list[Prompt]:
    """Prompts of a whole file: ids derived or unique, classes known, repeats warned about once.

    Raises:
        ValueError: If two entries share an id or a class is not in ``class_table``.
    """
    prompts: list[Prompt] = []
    first: dict[str, str] = {}
    copies: Counter[str] = Counter()
    repeating: list[Entry] = []
    for entry in entries:
        _check_classes(entry, class_table)
        name = entry.id
        if name is None:
            derived = derive_id(entry.text, entry.class_names)
            copies[derived] += 1
            name = derived if copies[derived] == 1 else f"{derived}-{copies[derived]}"
        if name in first:
            raise ValueError(
                f"{entry.where}: ids must be unique. Got {name!r} again, first at {first[name]}."
            )
        first[name] = entry.where
        prompts.append(Prompt(name, entry.text, entry.class_names))
        repeating += [entry] if entry.repeats else []
    _warn_repeats(repeating)
    return prompts


def derive_id(text: str, class_names: tuple[str, ...]) -> str:
    """Identifier of a prompt without one: a hash of its content, so that no other line matters.

    >>> derive_id("a red ball", ("ball",)) == derive_id("a red ball", ("cup",))
    False
    """
    content = json.dumps([text, *class_names], ensure_ascii=True)
    return "p" + hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _required(raw: dict[str, Any], keys: tuple[str, ...], where: str) -> Any:
    found = [key for key in keys if key in raw]
    if len(found) == 1:
        return raw[found[0]]
    if found:
        raise ValueError(f"{where}: must have one of {' and '.join(keys)}. Got both.")
    got = ", ".join(repr(key)[:40] for key in list(raw)[:8]) or "no key"
    hint = next((hint for key in raw if (hint := near_miss(key, list(keys)))), "")
    raise ValueError(f"{where}: must have the key {keys[0]!r}. Got {got}.{hint}")


def _identifier(raw: Any, where: str) -> str | None:
    if raw is None:
        return None
    if isinstance(raw, int) and not isinstance(raw, bool):
        return _string(str(raw), "id", MAX_NAME, where)
    if not isinstance(raw, str):
        raise ValueError(f"{where}: id must be a string or an integer. Got {_got(raw)}.")
    return _string(raw, "id", MAX_NAME, where)


def _string(raw: Any, what: str, limit: int, where: str) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"{where}: {what} must be a string. Got {_got(raw)}.")
    text = raw.strip()
    if not text:
        raise ValueError(f"{where}: {what} must not be empty. Got {_got(raw)}.")
    if len(text) > limit:
        raise ValueError(f"{where}: {what} must have at most {limit} characters. Got {len(text)}.")
    for i, character in enumerate(text):
        if unicodedata.category(character) in _REFUSED:
            raise ValueError(
                f"{where}: {what} must have no control characters. "
                f"Got U+{ord(character):04X} at character {i + 1}."
            )
    for token in SPECIAL_TOKENS:
        if token in text:
            raise ValueError(f"{where}: {what} must have no special token. Got {token!r}.")
    return text


def _check_classes(entry: Entry, class_table: Collection[str] | None) -> None:
    for name in entry.class_names if class_table is not None else ():
        if name not in (class_table or ()):
            hint = near_miss(name, list(class_table or ()))
            raise ValueError(
                f"{entry.where}: classes must be in the class table. Got {name!r}.{hint}"
            )


def _warn_repeats(repeating: list[Entry]) -> None:
    if repeating:
        entry = repeating[0]
        warnings.warn(
            f"{len(repeating)} prompt(s) name a class more than once, first {entry.repeats[0]!r} "
            f"at {entry.where}; each class is kept once.",
            stacklevel=4,
        )


def _got(raw: Any) -> str:
    """A value as JSON, shortened; nested and long ones as Python has them."""
    if isinstance(raw, dict | list) or (isinstance(raw, str) and len(raw) > MAX_QUOTE):
        return quote(raw, 60)
    text = json.dumps(raw, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."
