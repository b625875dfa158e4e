"""What a study found: the metrics of every row, and the Parquet file that holds them."""

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
    "refiner": pa.string(),
    "k": pa.int32(),
}


@dataclass(frozen=True, slots=True)
class Results:
    """Every row of a study on every image that could be made.

    Args:
        study: Its name.
        rows: Its rows in the order of the table.
        images: Images that every row was scored on.
        metrics: By name, per row and image; NaN where a metric has no meaning.
        failures: Reason to the number of images that could not be made.
        about: What was run, for people: backbone, images, auditor, ks.
        is_sd21: Whether the backbone is the paper's.
        family: Which of the paper's columns the auditor is compared with.
    """

    study: StudyName
    rows: tuple[Row, ...]
    images: tuple[PlannedSample, ...]
    metrics: Mapping[str, Float[np.ndarray, "row image"]]
    failures: Counter[str]
    about: Mapping[str, str]
    is_sd21: bool
    family: str

    @property
    def reference(self) -> int:
        """Position of the row that the others are compared with."""
        wanted = STUDIES[self.study].reference
        found = (i for i, row in enumerate(self.rows) if wanted in row.papers)
        return next(found, 0)

    def mean(self, metric: str) -> list[float]:
        """Mean of a metric per row over the images that have it; NaN where none has."""
        rows = (values[np.isfinite(values)] for values in self.metrics[metric])
        return [float(known.mean()) if len(known) else np.nan for known in rows]

    def published(self, row: Row, n: int) -> float | None:
        """The paper's Top-n of a row by the kind of auditor that was used here, if it has one.

        Of several rows that are one setting here, the first in the paper's order.
        """
        tables = [paper.m2f if self.family == "M2F" else paper.sam for paper in row.papers]
        return next((figures[n] for figures in tables if n in figures), None)


def results_bytes(results: Results) -> bytes:
    """One row per setting and image: the setting, all metrics; null where one has no meaning."""
    lines = []
    for i, row in enumerate(results.rows):
        ids = " ".join(f"{paper.table}:{paper.id}" for paper in row.papers if paper.table)
        names = ("layers", "mid", "grids", "components", "reweight", "resolution", "refiner", "k")
        setting = {name: getattr(row.setting, name) for name in names}
        for j, planned in enumerate(results.images):
            image = {"key": planned.key, "prompt_id": planned.prompt.id, "seed": planned.seed}
            metrics = {name: float(values[i, j]) for name, values in results.metrics.items()}
            known = {name: None if np.isnan(value) else value for name, value in metrics.items()}
            lines.append({**image, "paper_rows": ids, **setting, **known})
    schema = pa.schema(
        [(name, _KINDS.get(name, pa.float64())) for name in (*_KINDS, *results.metrics)],
        metadata={"synthgen.lab.study": json.dumps({"name": results.study, **results.about})},
    )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines, schema=schema), sink, compression="zstd")
    return sink.getvalue()
