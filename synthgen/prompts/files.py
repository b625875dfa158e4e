"""Prompt files: from a packaged name, a file or a COCO pair to a list of checked prompts.

    scenes, voc                        packaged with the project
    x.jsonl                            one object {id?, prompt, classes} per line
    x.json                             one list of {id, prompt_sd, classes}, as published
    x.txt                              one prompt per line, no classes
    captions.json+instances.json       a COCO pair, see `coco`

Every problem is one line that names file and line. See ``prompts/README.md``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from synthgen.prompts.coco import load_coco
from synthgen.prompts.entries import Entry, make_entry, parse_entry, to_prompts
from synthgen.prompts.mentions import mentioned_classes
from synthgen.prompts.reading import MAX_BYTES, decode, parse_json, read_bytes
from synthgen.registry import near_miss
from synthgen.types import Prompt

PACKAGED = ("scenes", "voc")
"""Prompt files that come with the project, by name."""

_PAIR = ".json+"


def load_prompts(
    source: str | Path,
    class_table: Collection[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> list[Prompt]:
    """The prompts of a packaged name or a file, in file order, with unique ids.

    A prompt without an id gets one from its content, so that inserting a line changes no other
    id; the n-th exact copy of it gets the suffix ``-n``.

    Args:
        source: ``scenes``, ``voc``, a ``.jsonl``, ``.json`` or ``.txt`` file, or a COCO pair
            ``captions.json+instances.json``.
        class_table: Names that classes must come from; None accepts all. Lines of a ``.txt``
            file get the classes of this table that they mention.
        max_bytes: Largest file that is read.

    Raises:
        ValueError: In one line, for the first thing that is wrong.
    """
    name = str(source)
    if name in PACKAGED:
        entries = _read_jsonl(decode(_packaged(name), f"{name}.jsonl"), f"{name}.jsonl")
        return to_prompts(entries, class_table)
    path = Path(source)
    if _PAIR in name and not path.exists():
        captions, _, instances = name.partition(_PAIR)
        return load_coco(f"{captions}.json", instances, class_table, max_bytes)
    prompts = to_prompts(_read_entries(path, class_table, max_bytes), class_table)
    if not prompts:
        raise ValueError(f"{path}: must hold at least one prompt. Got an empty file.")
    return prompts


def _packaged(name: str) -> bytes:
    """Content of a packaged file: of the installed wheel, otherwise of the checkout."""
    packaged = resources.files("synthgen") / "data" / "prompts" / f"{name}.jsonl"
    if packaged.is_file():
        return packaged.read_bytes()
    checkout = Path(__file__).parents[2] / "prompts" / f"{name}.jsonl"
    return read_bytes(checkout, MAX_BYTES)


def _read_entries(
    path: Path, class_table: Collection[str] | None, max_bytes: int
) -> Iterator[Entry]:
    suffix = path.suffix.lower()
    if not path.exists() and not suffix:
        raise ValueError(
            f"prompts must be a packaged name ({', '.join(PACKAGED)}) or an existing file. "
            f"Got {str(path)!r}.{near_miss(str(path), list(PACKAGED))}"
        )
    if suffix not in (".jsonl", ".json", ".txt"):
        raise ValueError(f"{path}: prompts must be .jsonl, .json or .txt. Got {suffix!r}.")
    text = decode(read_bytes(path, max_bytes), str(path))
    if suffix == ".jsonl":
        return _read_jsonl(text, str(path))
    if suffix == ".json":
        return _read_list(text, str(path))
    return _read_lines(text, str(path), class_table)


def _numbered_lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Place and content of every line that is not empty; only a line feed ends a line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name}:{number}", line


def _read_jsonl(text: str, name: str) -> Iterator[Entry]:
    for where, line in _numbered_lines(text, name):
        yield parse_entry(parse_json(line, where), where)


def _read_list(text: str, name: str) -> Iterator[Entry]:
    content: Any = parse_json(text, name) if text.strip() else []
    if isinstance(content, dict) and "annotations" in content:
        raise ValueError(
            f"{name}: a COCO file needs its partner. Got one file; name the pair as "
            "captions.json+instances.json."
        )
    if not isinstance(content, list):
        got = json.dumps(content)[:40]
        raise ValueError(f"{name}: must be a list of {{id, prompt_sd, classes}}. Got {got}.")
    for number, raw in enumerate(content, start=1):
        where = f"{name}: entry {number}"
        yield parse_entry(raw, where)


def _read_lines(text: str, name: str, class_table: Collection[str] | None) -> Iterator[Entry]:
    for where, line in _numbered_lines(text, name):
        found = mentioned_classes(line, tuple(class_table or ()))
        yield make_entry(None, line, list(found), where)
