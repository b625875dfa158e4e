"""What a study found: a matrix of metrics, and the Parquet file that holds it."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from synthgen.lab.study.settings import STUDIES, Row, StudyName
from synthgen.lab.study.sweep import Metrics
from synthgen.types import PlannedSample

_KINDS: Mapping[str, Any] = {
    "key": pa.string(),
    "prompt_id": pa.string(),
    "seed": pa.int64(),
    "paper_rows": pa.string(),
    "layers": pa.string(),
    "mid": pa.bool_(),
    "grids": pa.list_(pa.int32()),
    "components": pa.int32(),
    "reweight": pa.bool_(),
    "resolution": pa.int32(),
}


@dataclass(frozen=True, slots=True)
class Results:
    """Every row of a study on every image that could be made.

    Args:
        study: Its name.
        rows: Its rows in the order of the table.
        images: Images that every row was scored on.
        metrics: Per row, per image.
        failures: Reason to the number of images that could not be made.
        about: What was run, for people: backbone, images, auditor, ks.
        is_sd21: Whether the backbone is the paper's.
        family: Which of the paper's columns the auditor stands beside.
    """

    study: StudyName
    rows: tuple[Row, ...]
    images: tuple[PlannedSample, ...]
    metrics: tuple[tuple[Metrics, ...], ...]
    failures: Counter[str]
    about: Mapping[str, str]
    is_sd21: bool
    family: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return tuple(self.metrics[0][0])

    @property
    def reference(self) -> int:
        """Position of the row that the others are compared with."""
        wanted = STUDIES[self.study].reference
        found = (i for i, row in enumerate(self.rows) if wanted in row.papers)
        return next(found, 0)

    def values(self, metric: str) -> Float[np.ndarray, "row image"]:
        """One metric, NaN where it has no meaning."""
        rows = [[metrics[metric] for metrics in images] for images in self.metrics]
        return np.array(rows, dtype=np.float64)

    def mean(self, metric: str) -> Float[np.ndarray, " row"]:
        """Mean of a metric over the images that have it; NaN where none has."""
        values = self.values(metric)
        known = np.isfinite(values)
        total = np.where(known, values, 0.0).sum(1)
        mean: Float[np.ndarray, " row"] = np.where(
            known.any(1), total / np.maximum(known.sum(1), 1), np.nan
        )
        return mean

    def published(self, row: Row, n: int) -> float | None:
        """The paper's Top-n of a row by the kind of auditor that was used here, if it has one.

        Of several rows that are one setting here, the first in the paper's order.
        """
        tables = [paper.m2f if self.family == "M2F" else paper.sam for paper in row.papers]
        return next((figures[n] for figures in tables if n in figures), None)


def results_bytes(results: Results) -> bytes:
    """One row per setting and image: the setting, all metrics; null where one has no meaning."""
    columns: dict[str, list[Any]] = {name: [] for name in (*_KINDS, *results.names)}
    for row, scores in zip(results.rows, results.metrics, strict=True):
        for planned, metrics in zip(results.images, scores, strict=True):
            for name, value in {**_described(row, planned), **metrics}.items():
                columns[name].append(None if value != value else value)
    schema = pa.schema(
        [(name, _KINDS.get(name, pa.float64())) for name in columns],
        metadata={"synthgen.lab.study": json.dumps({"name": results.study, **results.about})},
    )
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def paper_ids(row: Row) -> str:
    """The paper's rows that a row stands for, as table:ID.

    >>> from synthgen.lab.study.settings import Setting
    >>> from synthgen.lab.study.paper import paper_row
    >>> up = Setting("up", False, (16, 32, 64), 3, False, 64)
    >>> paper_ids(Row(up, (paper_row(2, 7),)))
    '2:7'
    """
    return " ".join(f"{paper.table}:{paper.id}" for paper in row.papers if paper.table)


def _described(row: Row, planned: PlannedSample) -> dict[str, Any]:
    setting = row.setting
    return {
        "key": planned.key,
        "prompt_id": planned.prompt.id,
        "seed": planned.seed,
        "paper_rows": paper_ids(row),
        "layers": setting.layers,
        "mid": setting.mid,
        "grids": list(setting.grids),
        "components": setting.components,
        "reweight": setting.reweight,
        "resolution": setting.resolution,
    }
