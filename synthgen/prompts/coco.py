"""COCO captions and instances as prompts: one per caption, with the classes of its image; and as
what is known of images: the first caption, the classes of the instances.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthgen.prompts.entries import Entry, image_entry, make_entry
from synthgen.prompts.reading import decode, parse_json, read_bytes
from synthgen.storage.untrusted import one_line, quote


def coco_entries(captions: Path, instances: Path, max_bytes: int) -> Iterator[Entry]:
    """One entry per caption; its classes are the categories annotated in its image.

    Ids are ``coco-<image id>-<annotation id>``; classes stand in the order of category ids; a
    caption of an image without instances has none. Line breaks and runs of spaces inside captions
    become one space.

    Args:
        captions: ``captions_*.json``.
        instances: ``instances_*.json`` of the same images.
        max_bytes: Largest file that is read.

    Raises:
        ValueError: In one line, if a file is not of COCO's form or is too large.
    """
    shown = one_line(captions)
    names = _class_names(_load(instances, max_bytes), one_line(instances))
    rows = _rows(_load(captions, max_bytes), "annotations", shown)
    if not rows:
        raise ValueError(f"{shown}: must hold at least one caption. Got none.")
    return _entries(rows, names, shown)


def coco_images(content: Any, name: str) -> Iterator[Entry]:
    """One entry per image of a COCO file: its name, first caption and annotated categories.

    Classes are None where the file has no categories, a text is empty where it has no captions.

    Args:
        content: Of the file.
        name: Of the file, for messages.

    Raises:
        ValueError: In one line, if it is not of COCO's form.
    """
    images = _rows(content, "images", name)
    rows = content.get("annotations", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name}: 'annotations' must be a list of objects. Got {quote(rows)}.")
    texts: dict[int, Any] = {}
    for i, row in enumerate(rows, start=1):
        if "caption" in row:
            texts.setdefault(_integer(row, "image_id", f"{name}: annotation {i}"), row["caption"])
    placed = {**content, "annotations": [row for row in rows if "category_id" in row]}
    classes = _class_names(placed, name) if "categories" in content else None
    for i, row in enumerate(images, start=1):
        where = f"{name}: image {i}"
        image, file_name, text = _integer(row, "id", where), row.get("file_name"), ""
        if not isinstance(file_name, str) or not file_name:
            raise ValueError(f"{where}: must have a file_name. Got {quote(file_name, 40)}.")
        if image in texts:
            text = texts[image]
            text = " ".join(text.split()) if isinstance(text, str) else text
        found = None if classes is None else classes.get(image, [])
        yield image_entry(file_name, text, found, where)


def _load(path: Path, max_bytes: int) -> Any:
    shown = one_line(path)
    return parse_json(decode(read_bytes(path, max_bytes), shown), shown)


def _rows(content: Any, key: str, name: str) -> list[dict[str, Any]]:
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name}: must be a COCO file with a list {key!r}. Got none.")
    return rows


def _integer(row: dict[str, Any], key: str, where: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: {key} must be an integer. Got {quote(value, 40)}.")
    return value


def _class_names(content: Any, name: str) -> dict[int, list[Any]]:
    """Image id to the names of its categories, in the order of category ids."""
    table: dict[int, Any] = {}
    for i, row in enumerate(_rows(content, "categories", name), start=1):
        table[_integer(row, "id", f"{name}: category {i}")] = row.get("name")
    found: defaultdict[int, set[int]] = defaultdict(set)
    for i, row in enumerate(_rows(content, "annotations", name), start=1):
        where = f"{name}: annotation {i}"
        category = _integer(row, "category_id", where)
        if category not in table:
            raise ValueError(
                f"{where}: category_id must be in categories. Got {quote(category, 40)}."
            )
        found[_integer(row, "image_id", where)].add(category)
    return {image: [table[c] for c in sorted(ids)] for image, ids in found.items()}


def _entries(
    rows: list[dict[str, Any]], names: dict[int, list[Any]], name: str
) -> Iterator[Entry]:
    for i, row in enumerate(rows, start=1):
        where = f"{name}: annotation {i}"
        image = _integer(row, "image_id", where)
        text = row.get("caption")
        if text is None:
            raise ValueError(f"{where}: must have the key 'caption'. Got none; swap the files?")
        text = " ".join(text.split()) if isinstance(text, str) else text
        key = f"coco-{image}-{_integer(row, 'id', where)}"
        yield make_entry(key, text, names.get(image, []), where)
