"""Small parquet files of one shard: written alike, and measured before a row is read.

A few kilobytes of parquet can stand for gigabytes: a column of equal values is one value and a
count. Rows and sizes stand in the file's footer; a footer that lies is found while reading.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthgen.storage.untrusted import one_line

MAX_ROWS = 10_000
"""Samples of a shard: `DatasetConfig.shard_size` allows no more."""

MAX_BYTES = 2**31
"""Uncompressed; annotations of 10,000 samples with 200 masks each take about 1.5 GB."""


def columns(**kinds: pa.DataType) -> list[pa.Field]:
    """Columns, or fields of a struct, in which every value is there."""
    return [pa.field(name, kind, nullable=False) for name, kind in kinds.items()]


def parquet_bytes(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    """Rows as a parquet file; equal rows give equal bytes."""
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), stream, compression="zstd")
    return stream.getvalue()


def read_parquet_schema(content: bytes) -> pa.Schema:
    """The columns of a parquet file of one shard.

    Raises:
        ValueError: If it says that it is larger than a shard's can be.
        pa.ArrowException: If it is no parquet file.
    """
    footer = pq.read_metadata(io.BytesIO(content))
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    size = sum(group.total_byte_size for group in groups)
    rows = max(footer.num_rows, sum(group.num_rows for group in groups))
    if rows > MAX_ROWS or size > MAX_BYTES:
        raise ValueError(f"{rows:,} rows of {size:,} bytes, at most {MAX_ROWS:,} of {MAX_BYTES:,}")
    schema: pa.Schema = footer.schema.to_arrow_schema()
    return schema


@contextmanager
def readable_parquet(what: str) -> Iterator[None]:
    """Turn whatever pyarrow raises on a damaged file into one line."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise ValueError(
            f"{what} must be a parquet file of ours. Got {one_line(error)}."
        ) from None
