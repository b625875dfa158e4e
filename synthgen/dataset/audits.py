"""How audits stand in a dataset: ``audit/<id>/``, beside ``data`` and never in it.

    audit.json             what the audit is: auditor, settings, digest; written first
    train-000000.parquet   one row per sample: key, keep, reason, metrics, annotations
    train-000000.json      commit marker of that table
    summary.json           totals and means over all shards; written last

The table of a shard is done if and only if its marker carries the audit's digest and the tar's
hash, and the table has the marker's size (`beside`).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthgen.dataset.parquet_limits import read_parquet_schema
from synthgen.dataset.sidecars import SideFolder, read_side_marker
from synthgen.storage.publish import Storage
from synthgen.storage.seal import check_vouched, sealed_json, sha256_of
from synthgen.storage.untrusted import one_line
from synthgen.types import Verdict

AUDIT_SCHEMA_VERSION = 2
_FIXED = ("key", "keep", "reason", "annotations")

RECORD = pa.struct(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("id", pa.int64()),
            ("area", pa.int64()),
            ("bbox", pa.list_(pa.float64())),
            (
                "segmentation",
                pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())]),
            ),
            ("predicted_iou", pa.float64()),
            ("stability_score", pa.float64()),
            ("point_coords", pa.list_(pa.list_(pa.float64()))),
            ("crop_box", pa.list_(pa.float64())),
            ("label", pa.string()),
        )
    ]
)
"""One annotation by SA-1B's names (bbox and crop_box are xywh in pixels), and its label."""


AUDITS = SideFolder("audit", "audit.json", ".parquet", "An audit's id")
check_audit_id = AUDITS.check_id
description_name, summary_name = AUDITS.description_name, AUDITS.summary_name
table_name, audit_marker_name = AUDITS.file_name, AUDITS.marker_name
audit_ids, is_audited = AUDITS.ids, AUDITS.is_done


@dataclass(frozen=True, slots=True)
class AuditMarker:
    """The commit marker of a shard's table.

    Args:
        name: File stem of the shard.
        digest: Of everything that determines the table but the tar.
        annotations_digest: Of what determines its annotations alone; equal ones are used again.
        settings: What the digests cover: the auditor with every parameter, the thresholds.
        tar_sha256: Hash of the tar that was audited.
        sha256: Hash of the table.
        bytes: Size of the table.
        samples: Rows of the table.
        reasons: Rejected samples per reason.
        annotations_from: Id of the audit whose annotations were used again, or empty.
        seconds: Wall time per stage.
        created: Time of completion, ISO 8601, UTC.
    """

    name: str
    digest: str
    annotations_digest: str
    settings: Mapping[str, Any]
    tar_sha256: str
    sha256: str
    bytes: int
    samples: int
    reasons: Mapping[str, int]
    annotations_from: str
    seconds: Mapping[str, float]
    created: str
    schema_version: int = AUDIT_SCHEMA_VERSION

    @property
    def rejected(self) -> int:
        """Samples that are not kept."""
        return sum(self.reasons.values())


def audit_marker_bytes(marker: AuditMarker) -> bytes:
    """The marker as it stands in the audit's folder."""
    return sealed_json({name: getattr(marker, name) for name in AuditMarker.__slots__})


def read_audit_marker(storage: Storage, audit_id: str, shard: str) -> AuditMarker | None:
    """The marker of a shard's table, None where there is none or it cannot be read."""
    name = audit_marker_name(audit_id, shard)
    marker: AuditMarker | None = read_side_marker(AuditMarker, storage, name, shard)
    return marker


@dataclass(frozen=True, slots=True)
class AuditRow:
    """What an audit says of one sample.

    Args:
        key: Its key.
        verdict: Kept or not, why not, and the metrics.
        annotations: The auditor's masks as SA-1B-shaped records (`RECORD`).
    """

    key: str
    verdict: Verdict
    annotations: Sequence[Mapping[str, Any]]


def table_bytes(rows: Iterable[AuditRow], metric_names: Sequence[str]) -> bytes:
    """The rows as a parquet file; equal rows give equal bytes."""
    kinds = [("key", pa.string()), ("keep", pa.bool_()), ("reason", pa.string())]
    kinds += [(name, pa.float64()) for name in metric_names]
    kinds += [("annotations", pa.list_(RECORD))]
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds])
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
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(content, schema=schema), stream, compression="zstd")
    return stream.getvalue()


def parse_table(
    content: bytes, annotations: bool = True, keys: Sequence[str] | None = None
) -> list[AuditRow]:
    """The rows of a table.

    Args:
        content: The parquet file.
        annotations: Also read the annotations, which are most of it.
        keys: Only these samples; None: all.

    Raises:
        ValueError: If it is no such file.
    """
    try:
        names = read_parquet_schema(content).names
        wanted = [name for name in names if annotations or name != "annotations"]
        table = pq.read_table(io.BytesIO(content), columns=wanted)
        if keys is not None:
            table = table.filter(pc.is_in(table["key"], pa.array(keys, pa.string())))
        return [_row(row) for row in table.to_pylist()]
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise ValueError(
            f"An audit's table must be a parquet file of ours. Got {one_line(error)}."
        ) from None


def read_verdicts(
    storage: Storage, audit_id: str, shards: Mapping[str, str]
) -> dict[str, dict[str, Verdict]]:
    """The verdicts of an audit by shard and key.

    Args:
        storage: The dataset.
        audit_id: The audit.
        shards: File stem to tar hash of every shard that must have been audited.

    Raises:
        ValueError: If there is no such audit, or it is not about every one of these shards.
    """
    standing = audit_ids(storage)
    if check_audit_id(audit_id) not in standing:
        there = ", ".join(standing) or "no audits"
        raise ValueError(
            f"audited must be the id of an audit of {storage.root}. Got {audit_id!r}; "
            f"there: {there}."
        )
    verdicts = {}
    for shard, tar_sha256 in shards.items():
        marker = read_audit_marker(storage, audit_id, shard)
        content = storage.read(table_name(audit_id, shard))
        done = is_audited(storage, audit_id, marker, tar_sha256)
        if content is None or marker is None or not done:
            raise ValueError(
                f"The audit {audit_id} must be about every shard. Got none of {shard} as it "
                f"stands; run 'synthgen audit' with the same settings to finish it."
            )
        check_vouched(table_name(audit_id, shard), sha256_of(content), marker.sha256, "its marker")
        rows = parse_table(content, annotations=False)
        verdicts[shard] = {row.key: row.verdict for row in rows}
    return verdicts


def _row(row: Mapping[str, Any]) -> AuditRow:
    metrics = {name: float(value) for name, value in row.items() if name not in _FIXED}
    verdict = Verdict(bool(row["keep"]), str(row["reason"]), metrics)
    return AuditRow(str(row["key"]), verdict, row.get("annotations") or [])
