"""One entry of a prompt file: what it must look like, and the identifier it gets.

Prompts are untrusted: lengths are bounded, and characters that do not print, that reorder text or
that a CLIP tokenizer reads as a command are refused, never cleaned away in silence.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from synthgen.prompts.mentions import mentioned_classes
from synthgen.prompts.notes import Notes, web_ui_mark
from synthgen.registry import near_miss
from synthgen.storage.untrusted import MAX_QUOTE, quote
from synthgen.types import Prompt

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
CAPTION_KEYS = ("prompts", "caption", "captions", "text")
"""Keys of a text: ours and Dataset Diffusion's, then those of captions, where none of ours is."""

IMAGE_KEYS = ("image", "file_name", "filename", "image_path")
"""Keys of an image's name, where a list is about images: ours, those of others."""

RESERVED = ("background", "ignore")
"""Names that ids 0 and 255 have in every dataset."""

_OF_TWO_WORDS = frozenset(
    (
        *("potted plant", "dining table", "tv monitor", "traffic light", "fire hydrant"),
        *("stop sign", "parking meter", "sports ball", "baseball bat", "baseball glove"),
        *("tennis racket", "wine glass", "hot dog", "cell phone", "teddy bear", "hair drier"),
    )
)
"""Classes of VOC and COCO, for lists that write several classes as one text."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A checked entry.

    Args:
        where: Its place in the file, such as ``voc.jsonl:12``.
        id: None: to be derived.
        text: What is drawn.
        class_names: As they stand there, repeats included; None: it does not speak of classes.
        image: Name of the image that the text is about; empty: it does not say.
    """

    where: str
    id: str | None
    text: str
    class_names: tuple[str, ...] | None
    image: str = ""


def parse_entry(raw: Any, where: str, class_table: Collection[str] | None = None) -> Entry:
    """The entry in a JSON object ``{id?, prompt, classes?}``; other keys are ignored.

    Args:
        raw: The object. Its text may also stand under another of ``CAPTION_KEYS``, its classes
            as one text under ``class_prompt`` (Dataset Diffusion).
        where: Its place.
        class_table: Names that a ``class_prompt`` may be made of.

    Raises:
        ValueError: If a key is missing or a value has the wrong type, length or characters.

    >>> parse_entry({"prompt": "a red ball", "classes": ["ball"]}, "x:1").class_names
    ('ball',)
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: must be an object {{id?, prompt, classes}}. Got {_got(raw)}.")
    text = raw[text_key(list(raw), where)]
    entry = make_entry(raw.get("id"), text, _names(raw, where, class_table), where)
    named = next((raw[key] for key in IMAGE_KEYS if isinstance(raw.get(key), str)), "")
    return replace(entry, image=named) if named else entry


def text_key(keys: list[str], where: str) -> str:
    """The key, or the column, that holds the texts.

    Raises:
        ValueError: If there is none, or more than one.

    >>> text_key(["id", "caption"], "x:1")
    'caption'
    """
    for group in (TEXT_KEYS, CAPTION_KEYS):
        found = [key for key in keys if key in group]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{where}: must have one of {' and '.join(found)}. Got both.")
    got = ", ".join(repr(key)[:40] for key in keys[:8]) or "no key"
    hint = next((hint for key in keys if (hint := near_miss(key, [*TEXT_KEYS]))), "")
    raise ValueError(
        f"{where}: must have the key 'prompt'. Got {got}."
        + (hint or f" Captions may also be called {', '.join(CAPTION_KEYS)}.")
    )


def make_entry(raw_id: Any, text: Any, names: list[Any] | None, where: str) -> Entry:
    """An entry from its three values, each checked."""
    if names is not None and len(names) > MAX_CLASSES:
        raise ValueError(f"{where}: classes must be at most {MAX_CLASSES}. Got {len(names)}.")
    text = _string(text, "prompt", MAX_TEXT, where)
    checked = None
    if names is not None:
        checked = tuple(_string(name, "a class name", MAX_NAME, where) for name in names)
    return Entry(where, _identifier(raw_id, where), text, checked)


def image_entry(image: str, text: Any, names: list[Any] | None, where: str) -> Entry:
    """An entry about an image, which may have no text.

    >>> image_entry("cat.jpg", "", None, "x:1").text
    ''
    """
    checked = make_entry(None, text or "-", names, where)
    return replace(checked, text=checked.text if text else "", image=image)


def to_prompts(
    entries: Iterable[Entry], class_table: Collection[str] | None, notes: Notes
) -> Iterator[Prompt]:
    """Prompts of a whole file, one by one: ids derived or unique, classes known and told apart.

    Raises:
        ValueError: If two entries share an id or a class is not in ``class_table``.
    """
    first: dict[str, str] = {}
    copies: Counter[str] = Counter()
    for entry in entries:
        names = _classes(entry, class_table, notes)
        if mark := web_ui_mark(entry.text):
            notes.add("marks", entry.where, repr(mark))
        name = entry.id
        if name is None:
            derived = derive_id(entry.text, names)
            copies[derived] += 1
            name = derived if copies[derived] == 1 else f"{derived}-{copies[derived]}"
        if name in first:
            raise ValueError(
                f"{entry.where}: ids must be unique. Got {name!r} again, first at {first[name]}."
            )
        first[name] = entry.where
        yield Prompt(name, entry.text, names)


def derive_id(text: str, class_names: tuple[str, ...]) -> str:
    """Identifier of a prompt without one: a hash of its content, so that no other line matters.

    >>> derive_id("a red ball", ("ball",)) == derive_id("a red ball", ("cup",))
    False
    """
    content = json.dumps([text, *class_names], ensure_ascii=True)
    return "p" + hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def split_names(text: str, class_table: Collection[str] | None = None) -> list[str]:
    """The class names in a text of nothing else, the longest known ones first.

    >>> split_names("tv monitor dining table dog")
    ['tv monitor', 'dining table', 'dog']
    """
    known = {name.lower() for name in class_table or ()} | _OF_TWO_WORDS
    words, names = text.replace(",", " ").split(), []
    while words:
        sizes = range(min(4, len(words)), 1, -1)
        size = next((n for n in sizes if " ".join(words[:n]).lower() in known), 1)
        names.append(" ".join(words[:size]))
        words = words[size:]
    return names


def _names(raw: dict[str, Any], where: str, class_table: Collection[str] | None) -> Any:
    """What an object says of classes; None where it says nothing."""
    if "classes" in raw:
        if not isinstance(raw["classes"], list):
            got = _got(raw["classes"])
            raise ValueError(f"{where}: classes must be a list of names. Got {got}.")
        return raw["classes"]
    if isinstance(joined := raw.get("class_prompt"), str):
        return split_names(joined, class_table)
    for key, value in raw.items():  # a slip would cost the labels, and nobody would be told why
        if isinstance(value, list | str) and (hint := near_miss(key, ["classes"])):
            raise ValueError(f"{where}: must have the key 'classes'. Got {repr(key)[:40]}.{hint}")
    return None


def _classes(entry: Entry, class_table: Collection[str] | None, notes: Notes) -> tuple[str, ...]:
    """The classes of an entry: each once, none of those that every dataset has, all known."""
    if entry.class_names is None:
        if class_table is None:
            notes.add("unclassed", f"at {entry.where}")
        return mentioned_classes(entry.text, tuple(class_table or ()))
    names = tuple(dict.fromkeys(entry.class_names))
    if len(names) < len(entry.class_names):
        repeated = next(n for n, count in Counter(entry.class_names).items() if count > 1)
        notes.add("repeat", entry.where, repr(repeated))
    if reserved := [name for name in names if name.lower() in RESERVED]:
        notes.add("background", f"at {entry.where}", repr(reserved[0]))
        names = tuple(name for name in names if name not in reserved)
    for name in names if class_table is not None else ():
        if name not in (class_table or ()):
            hint = near_miss(name, list(class_table or ()))
            raise ValueError(
                f"{entry.where}: classes must be in the class table. Got {name!r}.{hint}"
            )
    return names


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
    if not text.isascii() or not text.isprintable():
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


def _got(raw: Any) -> str:
    """A value as JSON, shortened; nested and long ones as Python has them."""
    if isinstance(raw, dict | list) or (isinstance(raw, str) and len(raw) > MAX_QUOTE):
        return quote(raw, 60)
    text = json.dumps(raw, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."
