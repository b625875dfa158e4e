"""Class names as the command line takes them: with commas between, or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synthgen.prompts.reading import MAX_BYTES, decode, is_file, parse_json, read_bytes
from synthgen.storage.untrusted import one_line, quote


def read_classes(text: str) -> list[str] | dict[str, int]:
    """Names in the order of their ids, or ids by name; `Config.classes` checks them.

    A file holds one name a line, synonyms with commas between ("door, double door"), lines of
    ``#`` aside; or JSON: a list of names, ids by name, names by id (as classes.json of a dataset
    has them), or the ``categories`` of a COCO file, whose ids are then kept.

    Raises:
        ValueError: In one line, if there is no such file, or it is none of these.

    >>> read_classes("cat, traffic light")
    ['cat', 'traffic light']
    """
    path = Path(text)
    if is_file(path):
        return _parse(decode(read_bytes(path, MAX_BYTES), one_line(text)), one_line(text))
    if path.suffix.lower() in (".txt", ".json", ".names", ".csv") or "/" in text:
        raise ValueError(
            f"--classes must be names with commas between, or an existing file. Got "
            f"{quote(text)}, and there is no such file."
        )
    return [name.strip() for name in text.split(",") if name.strip()]


def _parse(content: str, name: str) -> list[str] | dict[str, int]:
    if content.lstrip()[:1] not in ("[", "{"):
        lines = (line.strip() for line in content.splitlines())
        return [line for line in lines if line and not line.startswith("#")]
    tree: Any = parse_json(content, name)
    try:
        if isinstance(tree, list):
            return [str(item) for item in tree]
        if isinstance(tree.get("categories"), list):
            return {str(row["name"]): int(row["id"]) for row in tree["categories"]}
        if all(isinstance(value, int) for value in tree.values()):
            return dict(tree)
        named = {str(value): int(key) for key, value in tree.items()}
    except (KeyError, TypeError, ValueError):
        named = {}
    if not named or len(named) < len(tree):
        raise ValueError(
            f"{name}: must be a list of names, or a table of different names and ids. Got "
            f"{quote(tree, 60)}."
        )
    return named
