"""One row per planned sample, also failed ones: ``metadata/train-000000.parquet``.

The rows say what became of each sample and where it lies in its tar. They are enough to make a
sample again: they hold its prompt, seed and batch, and those of its neighbors in the batch.
Where samples are labeled there is one column more, ``labels``; in a merged dataset ``origin``; of
photos ``photo``.
Datasets that were made before there was the column ``sha256`` are read without it.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from synthgen.dataset.label_statistics import LabelCounts
from synthgen.dataset.manifest import Marker, marker_name, metadata_name
from synthgen.dataset.parquet import columns, parquet_bytes, read_parquet_schema, readable_parquet
from synthgen.storage.publish import Storage
from synthgen.storage.seal import check_vouched, sha256_of
from synthgen.storage.untrusted import quote
from synthgen.types import Photo, Prompt

SCHEMA = pa.schema(
    columns(
        **dict.fromkeys(("key", "status", "reason", "message"), pa.string()),
        prompt_id=pa.string(),
        prompt=pa.string(),
        classes=pa.list_(pa.string()),
        image_index=pa.int64(),
        seed=pa.int64(),
        batch=pa.int32(),
        num_segments=pa.int32(),
        seconds_generate=pa.float64(),
        seconds_segment=pa.float64(),
        byte_offset=pa.int64(),
        byte_size=pa.int64(),
        sha256=pa.string(),
        iterations=pa.int32(),
        converged=pa.bool_(),
    )
)
LABELS = pa.struct(
    columns(
        class_names=pa.list_(pa.string()),
        pixels=pa.list_(pa.int64()),
        scores=pa.list_(pa.float64()),
        not_found=pa.list_(pa.string()),
        background=pa.int64(),
        undecided=pa.int64(),
    )
)
ORIGIN = pa.struct(columns(dataset=pa.string(), key=pa.string()))
PHOTO = pa.struct(columns(name=pa.string(), sha256=pa.string()))


def _schema(labeled: bool, merged: bool, of_photos: bool) -> pa.Schema:
    extra = [pa.field("labels", LABELS)] * labeled + [pa.field("origin", ORIGIN)] * merged
    return pa.schema([*SCHEMA, *extra, *[pa.field("photo", PHOTO)] * of_photos])


_KNOWN = [
    pa.schema([column for column in _schema(*extra) if column.name not in absent])
    for extra in itertools.product((False, True), repeat=3)
    for absent in ((), ("sha256",), ("iterations", "converged"), (*SCHEMA.names[-3:],))
]
"""Schemas that are read; older datasets have not all columns."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a sample of a merged dataset came from."""

    dataset: str  # digest of its dataset; identity.json knows the name
    key: str  # its key there


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a planned sample."""

    key: str  # its key, also where it failed
    status: str  # ``ok`` or ``failed``
    reason: str  # why it failed (types.Failure), empty where it did not
    message: str  # one line about the failure, secrets taken out
    prompt_id: str  # id of its prompt
    prompt: str  # text of its prompt
    classes: tuple[str, ...]  # class names of its prompt
    image_index: int  # it is the n-th image of its prompt
    seed: int
    batch: int  # number of its batch within the shard; a batch is made together
    num_segments: int = 0  # masks, 0 where it failed
    seconds_generate: float = 0.0  # its share of the batch's wall time
    seconds_segment: float = 0.0  # wall time of segmentation
    byte_offset: int = -1  # where it begins in the tar, -1 where it failed
    byte_size: int = 0  # bytes that it takes in the tar, headers and padding included
    sha256: str = ""  # hash of those bytes; empty where it failed, or nobody took it
    iterations: int = 0  # updates that k-means made at the slowest k; 0 where it failed
    converged: bool = True  # whether k-means stood still at every k
    labels: LabelCounts | None = None  # what its semantic map holds; None without labels
    origin: Origin | None = None  # where it came from; None in a dataset that was not merged
    photo: Photo | None = None  # what it is of; None where it was drawn

    @property
    def as_prompt(self) -> Prompt:
        """The prompt that the sample was made from."""
        return Prompt(self.prompt_id, self.prompt, self.classes, self.photo)


def rows_bytes(rows: Sequence[Row]) -> bytes:
    """The rows as a parquet file."""
    labeled = any(row.labels is not None for row in rows)
    merged = any(row.origin is not None for row in rows)
    schema = _schema(labeled, merged, any(row.photo is not None for row in rows))
    return parquet_bytes([asdict(row) for row in rows], schema)


def parse_rows(content: bytes) -> list[Row]:
    """The rows of a parquet file.

    Raises:
        ValueError: If it is not such a file.
    """
    with readable_parquet("Metadata"):
        _check_schema(content)
        table = pq.ParquetFile(io.BytesIO(content)).read()  # read_table would import pandas
        return [_row(row) for row in table.to_pylist()]


class Place(NamedTuple):
    """Where a sample lies in its tar, and the hash of its bytes; see `Row`."""

    key: str
    byte_offset: int
    byte_size: int
    sha256: str


def parse_places(content: bytes) -> list[Place]:
    """The places of the samples of a parquet file of rows; none where it holds no hashes.

    Four columns, in a tenth of the time that all rows take.

    Raises:
        ValueError: If it is not such a file.
    """
    with readable_parquet("Metadata"):
        if "sha256" not in _check_schema(content).names:
            return []
        columns = ["status", *Place._fields]
        table = pq.ParquetFile(io.BytesIO(content)).read(columns=columns, use_threads=False)
        places = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
        return [Place(*place) for status, *place in places if status == "ok"]


def _check_schema(content: bytes) -> pa.Schema:
    schema = read_parquet_schema(content)
    if not any(schema.equals(known) for known in _KNOWN):
        raise ValueError(f"columns {quote(schema.names)}")
    return schema


def read_rows(storage: Storage, shard: str, marker: Marker | None = None) -> list[Row]:
    """The rows of a shard's planned samples.

    Args:
        marker: Its marker, which vouches for them; None: they are taken as they are.

    Raises:
        ValueError: If there are none, they cannot be read, or are others than the marker's.
    """
    content = storage.read(metadata_name(shard))
    if content is None:
        raise ValueError(f"{metadata_name(shard)} must exist. Got none; see 'synthgen verify'.")
    expected = marker.metadata_sha256 if marker is not None else ""
    check_vouched(metadata_name(shard), sha256_of(content), expected, marker_name(shard))
    try:
        return parse_rows(content)
    except ValueError as error:
        raise ValueError(f"{metadata_name(shard)}: {error} See 'synthgen verify'.") from None


def _row(row: dict[str, Any]) -> Row:
    counts = row.pop("labels", None)
    if counts is not None:
        lists = {name: tuple(value) for name, value in counts.items() if isinstance(value, list)}
        counts = LabelCounts(**{**counts, **lists})
    origin, photo = row.pop("origin", None), row.pop("photo", None)
    return Row(
        **{**row, "classes": tuple(row["classes"]), "labels": counts},
        origin=None if origin is None else Origin(**origin),
        photo=None if photo is None else Photo(**photo),
    )
