"""Parquet for Hugging Face: one file per shard and split, images and maps as image columns.

Nothing is lost: rows hold the semantic map and all masks, overlaps included, with their labels
and run-length encodings.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthgen.dataset.records import encode_image
from synthgen.export.format import Exporter, ExportSample, File, Row

_ROW_GROUP = 100  # what the hub's viewer reads at once


class ParquetExporter(Exporter):
    """Rows of a Hugging Face dataset."""

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """A file for each split that has samples of the shard."""
        rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for sample in samples:
            rows[sample.split].append(_row(sample))
        for split in self.context.splits:
            if rows[split]:
                name = f"data/{split}-{stem.removeprefix('train-')}.parquet"
                yield File(name, _parquet(rows[split]))

    def usage(self) -> str:
        """With datasets."""
        return """```python
from datasets import load_dataset

rows = load_dataset(".", split="train")
rows[0]["image"], rows[0]["mask"], rows[0]["segments"]  # and ["semantic"], with labels
```"""

    def metadata(self, splits: Sequence[str]) -> dict[str, Any]:
        """Which files are which split: other files of the folder are no data."""
        files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
        return {"configs": [{"config_name": "default", "data_files": files}]}


def _row(sample: ExportSample) -> dict[str, Any]:
    height, width = sample.size
    row: dict[str, Any] = {
        "key": sample.key,
        "image": _file(sample.file_name, sample.image),
        "mask": _file(f"{sample.key}.mask.png", encode_image(sample.id_map, "png")),
        "height": height,
        "width": width,
        "prompt": sample.prompt,
        "prompt_id": sample.prompt_id,
        "segments": sample.segments,
    }
    if sample.semantic is not None:
        png = encode_image(sample.semantic, "png")
        row["semantic"] = _file(f"{sample.key}.sem.png", png)
    if sample.verdict is not None:
        row |= {"keep": sample.verdict.keep, "reason": sample.verdict.reason}
    return row


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as a file; of a segment, what the schema does not name (``members``) is left out."""
    table = pa.Table.from_pylist(rows, schema=features(set(rows[0])).arrow_schema)
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd", row_group_size=_ROW_GROUP)
    return stream.getvalue()


def features(columns: set[str]) -> Any:
    """The ``datasets.Features`` of the given columns; they travel in the files themselves."""
    try:
        from datasets import Features, Image, List, Value  # loading it takes seconds
    except ImportError as error:
        raise ValueError(
            f"--format hf-parquet needs the package datasets. Got {error}; install it by "
            "pip install 'synthgen[parquet]'."
        ) from None

    rle = {"size": List(Value("int64")), "counts": Value("string")}
    segment = {
        **{name: Value("int64") for name in ("id", "area", "parent")},
        "bbox_xywh": List(Value("int64")),
        "label": Value("string"),
        "label_score": Value("float64"),
        "rle": rle,
    }
    known = {
        "key": Value("string"),
        "image": Image(),
        "mask": Image(),
        "semantic": Image(),
        "height": Value("int64"),
        "width": Value("int64"),
        "prompt": Value("string"),
        "prompt_id": Value("string"),
        "keep": Value("bool"),
        "reason": Value("string"),
        "segments": List(segment),
    }
    return Features({name: kind for name, kind in known.items() if name in columns})


def _file(name: str, content: bytes) -> dict[str, Any]:
    return {"bytes": content, "path": name}
