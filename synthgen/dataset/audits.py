"""How audits stand in a dataset: ``audit/<id>/``, beside ``data`` and never in it.

    audit.json             what the audit is: auditor, settings, digest; written first
    train-000000.parquet   one row per sample: key, keep, reason, metrics, annotations
    train-000000.json      commit marker of that table
    summary.json           totals and means over all shards; written last

The table of a shard is done if and only if its marker carries the audit's digest and the tar's
hash, and the table has the marker's size (`sidecars`).
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthgen.dataset.parquet import columns, parquet_bytes, read_parquet_schema, readable_parquet
from synthgen.dataset.sidecars import SideFolder, SideMarker
from synthgen.storage.publish import Storage
from synthgen.storage.seal import check_vouched, sealed_record, sha256_of
from synthgen.types import Verdict

AUDIT_SCHEMA_VERSION = 2
_FIXED = ("key", "keep", "reason", "annotations")

RECORD = pa.struct(
    columns(
        id=pa.int64(),
        area=pa.int64(),
        bbox=pa.list_(pa.float64()),
        segmentation=pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())]),
        predicted_iou=pa.float64(),
        stability_score=pa.float64(),
        point_coords=pa.list_(pa.list_(pa.float64())),
        crop_box=pa.list_(pa.float64()),
        label=pa.string(),
    )
)
"""One annotation by SA-1B's names (bbox and crop_box are xywh in pixels), and its label."""


@dataclass(frozen=True, slots=True)
class AuditMarker(SideMarker):
    """The commit marker of a shard's table."""

    annotations_digest: str  # of what determines its annotations alone; equal ones are used again
    # what the digests cover: the auditor with every parameter, the thresholds
    settings: Mapping[str, Any]
    reasons: Mapping[str, int]  # rejected samples per reason
    annotations_from: str  # id of the audit whose annotations were used again, or empty
    seconds: Mapping[str, float]  # wall time per stage
    created: str  # time of completion, ISO 8601, UTC

    @property
    def rejected(self) -> int:
        """Samples that are not kept."""
        return sum(self.reasons.values())


AUDITS = SideFolder("audit", "audit", ".parquet", AuditMarker, "An audit's id")
check_audit_id, audit_ids, is_audited = AUDITS.check_id, AUDITS.ids, AUDITS.is_done
description_name, summary_name = AUDITS.description_name, AUDITS.summary_name
table_name, audit_marker_name = AUDITS.file_name, AUDITS.marker_name
read_audit_marker, audit_marker_bytes = AUDITS.read_marker, sealed_record


@dataclass(frozen=True, slots=True)
class AuditRow:
    """What an audit says of one sample."""

    key: str
    verdict: Verdict  # kept or not, why not, and the metrics
    # the auditor's masks as SA-1B-shaped records (`RECORD`)
    annotations: Sequence[Mapping[str, Any]]


def table_bytes(rows: Iterable[AuditRow], metric_names: Sequence[str]) -> bytes:
    """The rows as a parquet file; equal rows give equal bytes."""
    metrics = dict.fromkeys(metric_names, pa.float64())
    fixed = {"key": pa.string(), "keep": pa.bool_(), "reason": pa.string()}
    schema = pa.schema(columns(**fixed, **metrics, annotations=pa.list_(RECORD)))
    content = [
        {
            "key": row.key,
            "keep": row.verdict.keep,
            "reason": row.verdict.reason,
            **{name: row.verdict.metrics[name] for name in metric_names},
            "annotations": list(row.annotations),
        }
        for row in rows
    ]
    return parquet_bytes(content, schema)


def parse_table(
    content: bytes, annotations: bool = True, keys: Sequence[str] | None = None
) -> list[AuditRow]:
    """The rows of a table.

    Args:
        annotations: Also read the annotations, which are most of it.
        keys: Only these samples; None: all.

    Raises:
        ValueError: If it is no such file.
    """
    with readable_parquet("An audit's table"):
        names = read_parquet_schema(content).names
        wanted = [name for name in names if annotations or name != "annotations"]
        table = pq.ParquetFile(io.BytesIO(content)).read(columns=wanted)
        if keys is not None:
            table = table.filter(pc.is_in(table["key"], pa.array(keys, pa.string())))
        return [_row(row) for row in table.to_pylist()]


def read_verdicts(
    storage: Storage, audit_id: str, shards: Mapping[str, str]
) -> dict[str, dict[str, Verdict]]:
    """The verdicts of an audit by shard and key.

    Args:
        shards: File stem to tar hash of every shard that must have been audited.

    Raises:
        ValueError: If there is no such audit, or it is not about every one of these shards.
    """
    verdicts = {}
    for shard, marker in AUDITS.read_done(storage, audit_id, shards).items():
        name = table_name(audit_id, shard)
        content = storage.read(name) or b""
        check_vouched(name, sha256_of(content), marker.sha256, "its marker")
        rows = parse_table(content, annotations=False)
        verdicts[shard] = {row.key: row.verdict for row in rows}
    return verdicts


def summarize(
    storage: Storage, audit_id: str, markers: Sequence[AuditMarker], dataset: str
) -> dict[str, Any]:
    """The content of summary.json, a function of the tables alone: no times.

    Args:
        markers: Of all its tables, in order.
        dataset: The dataset's digest.

    Returns:
        Totals, means over the samples that have a metric, and the tables' hashes.
    """
    values: defaultdict[str, list[float]] = defaultdict(list)
    for marker in markers:
        content = storage.read(table_name(audit_id, marker.name)) or b""
        for row in parse_table(content, annotations=False):
            for name, value in row.verdict.metrics.items():
                values[name] += [] if np.isnan(value) else [value]
    samples = sum(marker.samples for marker in markers)
    rejected = sum(marker.rejected for marker in markers)
    reasons = sum((Counter(marker.reasons) for marker in markers), Counter[str]())
    listed = ("name", "tar_sha256", "sha256", "samples", "rejected")
    return {
        "schema_version": AUDIT_SCHEMA_VERSION,
        "id": audit_id,
        "digest": markers[0].digest,
        "settings": dict(markers[0].settings),
        "dataset": dataset,
        "totals": {
            "shards": len(markers),
            "samples": samples,
            "kept": samples - rejected,
            "rejected": rejected,
            "reasons": dict(sorted(reasons.items())),
        },
        "means": {name: float(np.mean(found)) for name, found in values.items() if found},
        "shards": [{name: getattr(marker, name) for name in listed} for marker in markers],
    }


def _row(row: Mapping[str, Any]) -> AuditRow:
    metrics = {name: float(value) for name, value in row.items() if name not in _FIXED}
    verdict = Verdict(bool(row["keep"]), str(row["reason"]), metrics)
    return AuditRow(str(row["key"]), verdict, row.get("annotations") or [])
