"""How large an untrusted parquet file may become in memory, asked before a row is read.

A few kilobytes of parquet can stand for gigabytes: a column of equal values is one value and a
count. Rows and sizes stand in the file's footer; a footer that lies is found while reading.
"""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

MAX_ROWS = 10_000
"""Samples of a shard: `DatasetConfig.shard_size` allows no more."""

MAX_BYTES = 2**31
"""Uncompressed; annotations of 10,000 samples with 200 masks each take about 1.5 GB."""


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
