"""Photos in archives: tars as WebDataset has them, and data sets of Hugging Face on a disk."""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from synthgen.storage.images import MAX_BYTES, SUFFIXES
from synthgen.storage.untrusted import one_line, parse_object

MAX_TEXT_BYTES = 1_000_000
"""Of a member that says something of its image."""


def in_tar(
    open_tar: Callable[[], Any], name: str
) -> Iterator[tuple[str, int, Callable[[], bytes], str, list[Any] | None]]:
    """Name, place, bytes, caption and class names of each image of a tar, in its order.

    Members of one key are one sample, as WebDataset has it: the key ends at the first dot of the
    file's name. Of a sample, the first member whose whole suffix is an image's is the image.

    Args:
        open_tar: Opens the file.
        name: For messages.

    Raises:
        ValueError: In one line, if it is no tar without compression.
    """
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with open_tar() as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                folder, _, last = member.name.rpartition("/")
                key, dot, suffix = last.partition(".")
                if member.isfile() and dot and key:
                    samples.setdefault(f"{folder}/{key}", {}).setdefault(suffix.lower(), member)
            for members in samples.values():
                image = next((s for s in members if f".{s}" in SUFFIXES), None)
                if image is None:
                    continue
                info = members[image]
                read = functools.partial(_read_part, open_tar, info.offset_data, info.size)
                text = _member(stream, members.get("txt")).decode("utf-8", "replace")
                names = _class_names(_member(stream, members.get("json")))
                yield info.name, info.offset_data, read, " ".join(text.split()), names
    except tarfile.TarError as error:
        raise ValueError(
            f"{name}: must be a tar without compression. Got {one_line(error, 80)}."
        ) from None


def _member(stream: Any, info: tarfile.TarInfo | None) -> bytes:
    if info is None or info.size > MAX_TEXT_BYTES:
        return b""
    stream.seek(info.offset_data)
    return bytes(stream.read(info.size))


def _class_names(content: bytes) -> list[Any] | None:
    """``classes`` of a sample's json; None where it does not say."""
    try:
        names = parse_object(content).get("classes") if content else None
    except ValueError:
        return None
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None


def _read_part(open_file: Callable[[], Any], offset: int, size: int) -> bytes:
    with open_file() as stream:
        stream.seek(offset)
        data = bytes(stream.read(min(size, MAX_BYTES + 1)))
    if len(data) < min(size, MAX_BYTES + 1):
        raise ValueError(f"An image must be whole. Got {len(data):,} of {size:,} bytes.")
    return data


def on_disk(folder: Path) -> Iterator[tuple[str, Any, Callable[[], bytes]]]:
    """Name, stamp and bytes of each image of what ``save_to_disk`` of Hugging Face wrote.

    Raises:
        ValueError: In one line, without the package, or without a column of images.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "Data sets of Hugging Face need the package datasets. Got none: pip install "
            "'synthgen[parquet]'."
        ) from None
    loaded = datasets.load_from_disk(str(folder))
    splits = loaded if isinstance(loaded, dict) else {"": loaded}
    for split, rows in splits.items():
        images = [n for n, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        if not images:
            raise ValueError(
                f"{one_line(folder)}: must have a column of images. Got "
                f"{one_line(list(rows.features), 80)}."
            )
        plain = rows.select_columns(images[:1]).cast_column(
            images[0], datasets.Image(decode=False)
        )
        for index in range(len(plain)):
            name = str(PurePosixPath(split) / f"{index:08d}")
            read = functools.partial(_read_row, plain, index, images[0])
            yield name, [plain._fingerprint, index], read


def _read_row(rows: Any, index: int, column: str) -> bytes:
    content = (rows[index][column] or {}).get("bytes")
    if content is None:  # a path from data, which is not opened
        raise ValueError("An image must be in its data set. Got none, or the name of a file.")
    return bytes(content)
