"""Prompt files: from a packaged name, a file or a COCO pair to a list of checked prompts.

    scenes, voc                        packaged with the project
    x.jsonl                            one object {id?, prompt, classes} per line
    x.json                             one list of {id, prompt_sd, classes}, as published
    x.txt                              one prompt per line, no classes
    captions.json+instances.json       a COCO pair, see `coco`

Every problem is one line that names file and line. See ``prompts/README.md``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from synthgen.prompts.coco import load_coco
from synthgen.prompts.entries import Entry, make_entry, parse_entry, to_prompts
from synthgen.prompts.mentions import mentioned_classes
from synthgen.prompts.reading import MAX_BYTES, decode, is_file, parse_json, read_bytes
from synthgen.registry import near_miss
from synthgen.types import Prompt
from synthgen.untrusted import one_line, quote
from synthgen.urls import read_url

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
        source: ``scenes``, ``voc``, a ``.jsonl``, ``.json`` or ``.txt`` file or its URL, or a
            COCO pair ``captions.json+instances.json`` of local files.
        class_table: Names that classes must come from; None accepts all. Lines of a ``.txt``
            file get the classes of this table that they mention.
        max_bytes: Largest file that is read.

    Raises:
        ValueError: In one line, for the first thing that is wrong.
        OSError: In one line, if the store of a URL cannot be reached.
    """
    name = str(source)
    if name in PACKAGED:
        entries = _read_jsonl(decode(_packaged(name), f"{name}.jsonl"), f"{name}.jsonl")
        return to_prompts(entries, class_table)
    if _PAIR in name and not is_file(Path(source)):
        captions, _, instances = name.partition(_PAIR)
        return load_coco(f"{captions}.json", instances, class_table, max_bytes)
    prompts = to_prompts(_read_entries(name, class_table, max_bytes), class_table)
    if not prompts:
        raise ValueError(f"{one_line(name)}: must hold at least one prompt. Got an empty file.")
    return prompts


def _packaged(name: str) -> bytes:
    """Content of a packaged file: of the installed wheel, otherwise of the checkout."""
    packaged = resources.files("synthgen") / "data" / "prompts" / f"{name}.jsonl"
    if packaged.is_file():
        return packaged.read_bytes()
    checkout = Path(__file__).parents[2] / "prompts" / f"{name}.jsonl"
    return read_bytes(checkout, MAX_BYTES)


def _read_entries(
    source: str, class_table: Collection[str] | None, max_bytes: int
) -> Iterator[Entry]:
    path, remote = Path(source), "://" in source
    suffix = path.suffix.lower()
    if not remote and not is_file(path) and not suffix:
        raise ValueError(
            f"prompts must be a packaged name ({', '.join(PACKAGED)}) or an existing file. "
            f"Got {quote(source)}.{near_miss(source, list(PACKAGED))}"
        )
    if suffix not in (".jsonl", ".json", ".txt"):
        raise ValueError(
            f"{one_line(source)}: prompts must be .jsonl, .json or .txt. Got {quote(suffix, 20)}."
        )
    content = read_url(source, max_bytes) if remote else read_bytes(path, max_bytes)
    shown = one_line(source)
    text = decode(content, shown)
    if suffix == ".jsonl":
        return _read_jsonl(text, shown)
    if suffix == ".json":
        return _read_list(text, shown)
    return _read_lines(text, shown, class_table)


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
        got = quote(content, 40)
        raise ValueError(f"{name}: must be a list of {{id, prompt_sd, classes}}. Got {got}.")
    for number, raw in enumerate(content, start=1):
        where = f"{name}: entry {number}"
        yield parse_entry(raw, where)


def _read_lines(text: str, name: str, class_table: Collection[str] | None) -> Iterator[Entry]:
    for where, line in _numbered_lines(text, name):
        found = mentioned_classes(line, tuple(class_table or ()))
        yield make_entry(None, line, list(found), where)
