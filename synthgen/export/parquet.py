"""Parquet for Hugging Face: one file per shard and split, images and maps as image columns.

Nothing is lost: beside the semantic map stand all masks, overlaps included, with their labels
and run-length encodings.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from synthgen.dataset.records import encode_image
from synthgen.export.format import ExportContext, Exporter, ExportSample, File, Row, Tables

_ROW_GROUP = 100  # what the hub's viewer reads at once


class ParquetExporter(Exporter):
    """Rows of a Hugging Face dataset."""

    def __init__(self, context: ExportContext) -> None:
        self.context = context

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        """A file for each split that has samples of the shard."""
        rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for sample in samples:
            rows[sample.split].append(self._row(sample))
        for split in self.context.splits:
            if rows[split]:
                name = f"data/{split}-{stem.removeprefix('train-')}.parquet"
                yield File(name, self._parquet(rows[split]))

    def finish(self, tables: Tables) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Nothing over all shards."""
        return iter(())

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

    def _row(self, sample: ExportSample) -> dict[str, Any]:
        height, width = sample.size
        row: dict[str, Any] = {
            "key": sample.key,
            "image": _file(sample.file_name, sample.image),
            "mask": _file(f"{sample.key}.mask.png", encode_image(sample.id_map, "png")),
            "height": height,
            "width": width,
            "prompt": sample.prompt,
            "prompt_id": sample.prompt_id,
            "segments": [_segment(segment) for segment in sample.segments],
        }
        if sample.semantic is not None:
            png = encode_image(sample.semantic, "png")
            row["semantic"] = _file(f"{sample.key}.sem.png", png)
        if sample.verdict is not None:
            row |= {"keep": sample.verdict.keep, "reason": sample.verdict.reason}
        return row

    def _parquet(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        import pyarrow as pa

        columns = features(set(rows[0]))
        table = pa.Table.from_pylist(list(rows), schema=columns.arrow_schema)
        stream = io.BytesIO()
        pq.write_table(table, stream, compression="zstd", row_group_size=_ROW_GROUP)
        return stream.getvalue()


def features(columns: set[str]) -> Any:
    """The ``datasets.Features`` of the given columns; they travel in the files themselves."""
    from datasets import Features, Image, List, Value  # loading it takes seconds

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


def _segment(segment: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "area", "parent", "bbox_xywh", "label", "label_score")
    return {**{name: segment[name] for name in names}, "rle": dict(segment["rle"])}
