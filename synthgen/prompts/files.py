"""Prompt files: from a packaged name, a file or a COCO pair to a list of checked prompts.

    demo, scenes, voc                  packaged with the project
    x.jsonl                            one object {id?, prompt, classes?} per line
    x.json                             one list of such objects, or of Dataset Diffusion's
    x.csv, x.tsv, x.parquet            a table whose columns are named like those keys
    x.txt                              one prompt per line, no classes
    captions.json+instances.json       a COCO pair, see `coco`
    -                                  standard input, of whichever of these forms

Any of them may be packed (x.csv.gz). Every problem is one line that names file and line. See
``prompts/README.md``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from synthgen.prompts.coco import coco_entries
from synthgen.prompts.entries import Entry, make_entry, parse_entry, to_prompts
from synthgen.prompts.notes import Notes, say
from synthgen.prompts.reading import (
    MAX_BYTES,
    STDIN,
    decode,
    is_file,
    parse_json,
    read_bytes,
    read_source,
)
from synthgen.prompts.tables import header_of, read_csv, read_parquet, read_tsv
from synthgen.registry import near_miss
from synthgen.storage.untrusted import one_line, quote
from synthgen.types import Prompt

PACKAGED = ("demo", "scenes", "voc")
"""Prompt files that come with the project, by name."""

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")

_PAIR = ".json+"


def load_prompts(
    source: str | Path,
    class_table: Collection[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> list[Prompt]:
    """The prompts of a packaged name or a file, in file order, with unique ids.

    A prompt without an id gets one from its content, so that inserting a line changes no other
    id; the n-th exact copy of it gets the suffix ``-n``. What is said of a list is said once.

    Args:
        source: See the module; a path or a URL.
        class_table: Names that classes must come from; None accepts all. Prompts whose list does
            not speak of classes get those of this table that they mention.
        max_bytes: Largest file that is read.

    Raises:
        ValueError: In one line, for the first thing that is wrong.
        OSError: In one line, if the store of a URL cannot be reached.
    """
    notes = Notes()
    prompts = list(read_prompts(str(source), class_table, max_bytes, notes))
    say(notes.sentences)
    return prompts


def read_prompts(
    source: str, class_table: Collection[str] | None, max_bytes: int, notes: Notes
) -> Iterator[Prompt]:
    """The prompts of a source one by one, as `load_prompts` has them; notes are taken.

    Raises:
        ValueError: In one line, for the first thing that is wrong.
        OSError: In one line, if the store of a URL cannot be reached.
    """
    empty = True
    for prompt in to_prompts(
        read_entries(source, class_table, max_bytes, notes), class_table, notes
    ):
        empty = False
        yield prompt
    if empty:
        raise ValueError(f"{one_line(source)}: must hold at least one prompt. Got none.")


def parts_of(source: str) -> tuple[str, ...]:
    """The files that a source is read from; none for a packaged one.

    >>> parts_of("a.json+b.json"), parts_of("scenes"), parts_of("x.txt")
    (('a.json', 'b.json'), (), ('x.txt',))
    """
    if source in PACKAGED:
        return ()
    if _PAIR in source and "://" not in source and not is_file(Path(source)):
        captions, _, instances = source.partition(_PAIR)
        return f"{captions}.json", instances
    return (source,)


def _packaged(name: str) -> bytes:
    """Content of a packaged file: of the installed wheel, otherwise of the checkout."""
    packaged = resources.files("synthgen") / "data" / "prompts" / f"{name}.jsonl"
    if packaged.is_file():
        return packaged.read_bytes()
    checkout = Path(__file__).parents[2] / "prompts" / f"{name}.jsonl"
    return read_bytes(checkout, MAX_BYTES)


def read_entries(
    source: str, class_table: Collection[str] | None, max_bytes: int, notes: Notes
) -> Iterator[Entry]:
    """The entries of a source as they stand there; see `read_prompts`."""
    if source in PACKAGED:
        return _read_jsonl(decode(_packaged(source), f"{source}.jsonl"), f"{source}.jsonl", None)
    if len(parts := parts_of(source)) == 2:
        return coco_entries(Path(parts[0]), Path(parts[1]), max_bytes)
    shown, form = one_line(source), _form(source)
    data = read_source(source, max_bytes)
    form = form or _sniffed(data)
    if form == ".parquet":
        return read_parquet(data, shown, class_table)
    text = decode(data, shown)
    if form == ".txt":
        return _read_lines(text, shown, notes)
    readers = {".jsonl": _read_jsonl, ".json": _read_list, ".csv": read_csv, ".tsv": read_tsv}
    return readers[form](text, shown, class_table)


def _form(source: str) -> str | None:
    """The suffix that says how a source is written; None for standard input, which has none.

    Raises:
        ValueError: For another suffix.
    """
    if source == STDIN:
        return None
    path = Path(source.removesuffix(".gz"))
    suffix = path.suffix.lower()
    if "://" not in source and not suffix and not is_file(Path(source)):
        raise ValueError(
            f"prompts must be a packaged name ({', '.join(PACKAGED)}) or an existing file. "
            f"Got {quote(source)}.{near_miss(source, list(PACKAGED))}"
        )
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{one_line(source)}: prompts must be {', '.join(SUFFIXES[:-1])} or .txt, with or "
            f"without .gz. Got {quote(suffix, 20)}."
        )
    return suffix


def _sniffed(data: bytes) -> str:
    """The suffix that content of no name would have.

    >>> _sniffed(b'{"prompt": "a"}'), _sniffed(b"[ {"), _sniffed(b"prompt,id"), _sniffed(b"[a]")
    ('.jsonl', '.json', '.csv', '.txt')
    """
    begin = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if begin[:4] == b"PAR1":
        return ".parquet"
    if begin[:1] == b"{":
        return ".jsonl"
    if begin[:1] == b"[" and begin[1:].lstrip()[:1] in (b"{", b"]"):
        return ".json"
    return header_of(begin.split(b"\n")[0].decode("utf-8", "replace")) or ".txt"


def _numbered_lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Place and content of every line that is not empty; only a line feed ends a line."""
    start = number = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        number += 1
        if not text[start:end].isspace() and end > start:
            yield f"{name}:{number}", text[start:end]
        start = end + 1


def _read_jsonl(text: str, name: str, class_table: Collection[str] | None) -> Iterator[Entry]:
    for where, line in _numbered_lines(text, name):
        yield parse_entry(parse_json(line, where), where, class_table)


def _read_list(text: str, name: str, class_table: Collection[str] | None) -> Iterator[Entry]:
    content: Any = parse_json(text, name) if text.strip() else []
    if isinstance(content, dict) and "annotations" in content:
        raise ValueError(
            f"{name}: a COCO file needs its partner. Got one file; name the pair as "
            "captions.json+instances.json."
        )
    if not isinstance(content, list):
        got = quote(content, 40)
        raise ValueError(f"{name}: must be a list of {{id, prompt, classes}}. Got {got}.")
    for number, raw in enumerate(content, start=1):
        yield parse_entry(raw, f"{name}: entry {number}", class_table)


def _read_lines(text: str, name: str, notes: Notes) -> Iterator[Entry]:
    first = True
    for where, line in _numbered_lines(text, name):
        if line.lstrip().startswith("#"):
            notes.add("comment", f"at {where}")
            continue
        if first and (suffix := header_of(line)):
            raise ValueError(
                f"{where}: must be a prompt. Got the header of a table; rename the file to "
                f"{suffix}, or leave out this line."
            )
        first = False
        yield make_entry(None, line, None, where)
