"""Tables of prompts: a header names the columns, as in the keys of JSON lines."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthgen.prompts.entries import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    MAX_TEXT,
    TEXT_KEYS,
    Entry,
    parse_entry,
    text_key,
)
from synthgen.storage.untrusted import one_line

MAX_ROWS = 100_000_000
_BATCH = 1024
_COLUMNS = ("id", "classes", "class_prompt", *IMAGE_KEYS)


def read_csv(text: str, name: str, class_table: Collection[str] | None) -> Iterator[Entry]:
    """Entries of lines with commas, or semicolons; quoted cells may hold them and line breaks.

    Raises:
        ValueError: In one line with the row's last line, for bad quotes or a missing column.
    """
    header = text[: text.find("\n") + 1] or text
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = ((f"{name}:{reader.line_num}", row) for row in reader)
        yield from _entries(rows, name, class_table)
    except csv.Error as error:
        raise ValueError(
            f"{name}:{reader.line_num}: must be comma-separated cells. Got {one_line(error, 80)}."
        ) from None


def read_tsv(text: str, name: str, class_table: Collection[str] | None) -> Iterator[Entry]:
    """Entries of tab-separated lines; a cell in quotes stands for what is between them."""
    rows = (
        (f"{name}:{number}", [_unquoted(cell) for cell in line.rstrip("\r").split("\t")])
        for number, line in enumerate(text.split("\n"), start=1)
    )
    yield from _entries(rows, name, class_table)


def read_parquet(data: bytes, name: str, class_table: Collection[str] | None) -> Iterator[Entry]:
    """Entries of a parquet file's rows; columns of no use here are not read.

    Raises:
        ValueError: In one line, for another kind of file, or a value of impossible size.
    """
    try:
        table = pq.ParquetFile(io.BytesIO(data))
        if table.metadata.num_rows > MAX_ROWS:
            raise ValueError(f"{name}: must have at most {MAX_ROWS:,} rows. Got more.")
        names = table.schema_arrow.names
        key = text_key(names, name)
        leaves = [table.schema.column(i).path for i in range(len(table.schema))]
        of_images = (c for c in names if c in IMAGE_KEYS)  # which may hold the images themselves
        pixels = {c for c in of_images if not pa.types.is_string(table.schema_arrow.field(c).type)}
        wanted = [c for c in names if c in (key, *_COLUMNS) and c not in pixels]
        texts = [leaf for leaf in leaves if leaf.split(".")[0] in (key, "classes")]
        table = pq.ParquetFile(io.BytesIO(data), read_dictionary=texts)  # an equal text, once
        number = 0
        for batch in table.iter_batches(_BATCH, columns=wanted):
            _check_sizes(batch, name)
            for row in batch.to_pylist():
                number += 1
                raw = {k: v for k, v in row.items() if v is not None or k == key}
                yield parse_entry(_spaced(raw, key), f"{name}: row {number}", class_table)
    except (pa.ArrowException, OSError) as error:
        got = one_line(error, 80)
        raise ValueError(f"{name}: must be a parquet file. Got {got}.") from None


def header_of(line: str) -> str | None:
    """The suffix of the table whose header a line is, None for a line of text.

    >>> header_of("Prompts,Category"), header_of("a red ball, a cup"), header_of("prompt")
    ('.csv', None, '.csv')
    """
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        cells = [cell.strip().strip('"').lower() for cell in line.split(separator)]
        named = {*TEXT_KEYS, *CAPTION_KEYS} & {*cells} - ({"text"} if len(cells) == 1 else set())
        if named and all(re.fullmatch(r"\w+( \w+)?", cell) for cell in cells):
            return suffix
    return None


def _entries(
    rows: Iterator[tuple[str, list[str]]], name: str, class_table: Collection[str] | None
) -> Iterator[Entry]:
    where, header = next(rows, (name, []))
    keys = [cell.strip().lower() for cell in header]
    key = text_key(keys, where)
    for where, row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(keys):
            raise ValueError(
                f"{where}: must have {len(keys)} cells, as the header has. Got {len(row)}; put "
                f"cells that hold the separator in quotes."
            )
        raw: dict[str, Any] = dict(zip(keys, row, strict=False))
        raw = {k: v for k, v in raw.items() if v.strip() or k == key}
        if "classes" in keys:
            raw["classes"] = _listed(raw.get("classes", ""), where)
        yield parse_entry(_spaced(raw, key), where, class_table)


def _listed(cell: str, where: str) -> list[Any]:
    """Class names in a cell: a JSON list, or names between |, or between ; or commas."""
    if cell.lstrip().startswith("["):
        try:
            return list(json.loads(cell.replace("'", '"') if '"' not in cell else cell))
        except (ValueError, RecursionError):
            raise ValueError(
                f"{where}: classes must be a JSON list, or names separated by | ; or commas. "
                f"Got {cell[:40]!r}."
            ) from None
    separator = next((mark for mark in "|;," if mark in cell), "|")
    return [name for name in cell.split(separator) if name.strip()]


def _spaced(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """A row whose text has line breaks and runs of spaces as one space, as captions have them."""
    text = raw.get(key)
    return {**raw, key: " ".join(text.split()) if isinstance(text, str) else text}


def _unquoted(cell: str) -> str:
    quoted = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
    return quoted[1].replace('""', '"') if quoted else cell


def _check_sizes(batch: pa.RecordBatch, name: str) -> None:
    """Refuse what would not fit into memory once it is written out: few bytes, many copies."""
    for column in batch.columns:
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            if len(column.values) > 256 * len(batch):
                raise ValueError(f"{name}: classes must be at most 254 a row. Got more.")
            column = column.values
        if pa.types.is_dictionary(column.type):
            column = column.dictionary
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            longest = pc.max(pc.binary_length(column)).as_py() or 0
            if longest > 4 * MAX_TEXT:
                raise ValueError(
                    f"{name}: prompt must have at most {MAX_TEXT} characters. Got more."
                )
