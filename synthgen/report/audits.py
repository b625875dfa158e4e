"""What an audit left in ``audit/<id>/``, as far as a page needs it.

Metrics and verdicts are read for all samples, the auditor's masks only for those that are shown.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from synthgen.dataset.publish import Storage
from synthgen.dataset.rle import decode_masks
from synthgen.segmentation.masks import pairwise_iou

AUDIT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
TOP_NS = (1, 3, 5, 10, 15)  # BL table 7
_NO_METRICS = {"key", "keep", "reason", "annotations"}


@dataclass(frozen=True, slots=True)
class Audit:
    """Verdicts and metrics of every audited sample.

    Args:
        id: Name of its folder.
        keys: Samples, in order.
        keep: Whether each is kept.
        reasons: Why not; empty where kept.
        metrics: Values by name; NaN where a metric has no meaning.
        summary: Content of its summary.json, empty without.
    """

    id: str
    keys: tuple[str, ...]
    keep: Bool[np.ndarray, " sample"]
    reasons: tuple[str, ...]
    metrics: Mapping[str, Float[np.ndarray, " sample"]]
    summary: Mapping[str, Any]

    def of(self, name: str) -> Mapping[str, float]:
        """One metric by key; samples without it are left out."""
        values = self.metrics.get(name, np.full(len(self.keys), np.nan))
        return {
            key: float(value)
            for key, value in zip(self.keys, values, strict=True)
            if np.isfinite(value)
        }

    def mean(self, name: str) -> float | None:
        """Mean of a metric over the samples that have it, None if none has."""
        values = list(self.of(name).values())
        return float(np.mean(values)) if values else None

    @property
    def rejected(self) -> Counter[str]:
        """Samples not kept, per reason."""
        pairs = zip(self.keep.tolist(), self.reasons, strict=True)
        return Counter(reason for keep, reason in pairs if not keep)


def audit_ids(storage: Storage) -> list[str]:
    """Audits that have results, by name."""
    try:
        found = storage.fs.ls(storage.path("audit"), detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)
    return [name for name in names if AUDIT_ID.fullmatch(name) and _tables(storage, name)]


def pick_audit(storage: Storage, audit_id: str | None) -> Audit | None:
    """The audit asked for; without an id the only one, or the first, or none.

    Raises:
        ValueError: If the one asked for does not exist; those that do are named.
    """
    known = audit_ids(storage)
    if audit_id is None:
        return read_audit(storage, known[0]) if known else None
    if audit_id not in known:
        have = f"It has {', '.join(known)}." if known else "It has none: see 'synthgen audit'."
        raise ValueError(
            f"audit must be one of the dataset's audits. Got {audit_id!r:.60}. {have}"
        )
    return read_audit(storage, audit_id)


def read_audit(storage: Storage, audit_id: str) -> Audit:
    """All verdicts and metrics of an audit.

    Raises:
        ValueError: If one of its tables cannot be read.
    """
    rows = [row for name in _tables(storage, audit_id) for row in _rows(storage, name)]
    names = sorted({name for row in rows for name, v in row.items() if isinstance(v, int | float)})
    return Audit(
        id=audit_id,
        keys=tuple(str(row["key"]) for row in rows),
        keep=np.array([bool(row["keep"]) for row in rows], dtype=bool),
        reasons=tuple(str(row.get("reason") or "") for row in rows),
        metrics={
            name: np.array([_number(row.get(name)) for row in rows], dtype=np.float64)
            for name in names
            if name not in _NO_METRICS
        },
        summary=_summary(storage, audit_id),
    )


def auditor_ious(
    storage: Storage, audit_id: str, shard: str, segments: Mapping[str, list[Mapping[str, Any]]]
) -> dict[str, list[float]]:
    """Best IoU of each of our masks with any mask of the auditor.

    Args:
        storage: The dataset.
        audit_id: The audit.
        shard: Stem of the shard.
        segments: Our segments (with their ``rle``) by key.

    Returns:
        By key one number per segment, for the samples whose annotations are there.
    """
    name = f"audit/{audit_id}/{shard}.parquet"
    if storage.size(name) is None or not segments:
        return {}
    found = {}
    for row in _rows(storage, name, wanted=segments.keys()):
        seen, ours = _annotation_rles(row.get("annotations")), segments[str(row["key"])]
        if seen and ours:
            height, width = ours[0]["rle"]["size"]
            theirs = decode_masks(seen, height, width)
            masks = decode_masks([segment["rle"] for segment in ours], height, width)
            found[str(row["key"])] = pairwise_iou(masks, theirs).max(1).tolist()
    return found


def _annotation_rles(value: Any) -> list[Mapping[str, Any]]:
    """Run-length encodings of SA-1B records, given as JSON or as structs."""
    records = json.loads(value) if isinstance(value, str) else value or []
    return [record.get("segmentation", record.get("rle")) for record in records]


def _tables(storage: Storage, audit_id: str) -> list[str]:
    names = storage.names(f"audit/{audit_id}")
    return [name for name in names if re.search(r"/train-[0-9]{6}\.parquet$", name)]


def _rows(
    storage: Storage, name: str, wanted: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Rows of a table: without annotations, or those of the wanted keys with them."""
    try:
        file = pq.ParquetFile(io.BytesIO(storage.read(name) or b""))
        columns = [c for c in file.schema_arrow.names if wanted is not None or c != "annotations"]
        if not {"key", "keep"} <= set(columns):
            raise ValueError(f"columns {columns}")
        table = file.read(columns=columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"{name} must be a table of an audit. Got {message:.200}.") from None
    if wanted is not None:
        table = table.filter(pc.is_in(table["key"], pa.array(sorted(wanted))))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _summary(storage: Storage, audit_id: str) -> dict[str, Any]:
    try:
        tree = json.loads(storage.read(f"audit/{audit_id}/summary.json") or b"{}")
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
