"""What the audits of a dataset say, as far as a page needs it.

Several audits may stand in a dataset; without a wish the page shows the one that was finished
last. Metrics and verdicts are read for all samples, the auditor's masks only for those shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from synthgen.dataset.audits import (
    AuditRow,
    audit_ids,
    audit_marker_name,
    is_audited,
    parse_table,
    read_audit_marker,
    summary_name,
    table_name,
)
from synthgen.dataset.rle import mask_ious
from synthgen.dataset.sidecars import read_sealed
from synthgen.storage.publish import Storage
from synthgen.storage.seal import check_vouched, sha256_of


@dataclass(frozen=True, slots=True)
class Standing:
    """An audit as it stands in a dataset.

    Args:
        id: Name of its folder.
        shards: File stems of the shards that it is about, as they are now.
        total: Shards with samples in the dataset.
        created: When its last table was done, ISO 8601, UTC.
        summary: Content of its summary.json; empty while it is unfinished.
    """

    id: str
    shards: tuple[str, ...]
    total: int
    created: str
    summary: Mapping[str, Any]

    @property
    def state(self) -> str:
        """How far it is, in words: ``finished 2026-11-21 07:29 UTC, 3 of 4 shards``."""
        time = self.created[:16].replace("T", " ")
        done = f"finished {time} UTC" if self.summary else "unfinished"
        part = f", {len(self.shards)} of {self.total} shards"
        return done + part * (len(self.shards) < self.total)

    @property
    def auditor(self) -> str:
        """The auditor's name, empty where the summary does not say."""
        tree: Any = self.summary
        for name in ("settings", "annotations", "auditor", "name"):
            tree = tree.get(name) if isinstance(tree, Mapping) else None
        return str(tree or "")


@dataclass(frozen=True, slots=True)
class Audit:
    """Verdicts and metrics of every audited sample.

    Args:
        standing: Which audit it is.
        keys: Samples, in order.
        keep: Whether each is kept.
        reasons: Why not; empty where kept.
        metrics: Values by name; NaN where a metric has no meaning.
    """

    standing: Standing
    keys: tuple[str, ...]
    keep: Bool[np.ndarray, " sample"]
    reasons: tuple[str, ...]
    metrics: Mapping[str, Float[np.ndarray, " sample"]]

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


def standing_audits(storage: Storage, tars: Mapping[str, str]) -> list[Standing]:
    """The audits that are about at least one shard: the one finished last first.

    Unfinished ones (no summary) follow; of equal times the first name comes first.

    Args:
        storage: The dataset.
        tars: File stem to tar hash of its shards with samples.
    """
    found = [_stand(storage, audit_id, tars) for audit_id in audit_ids(storage)]
    some = [standing for standing in found if standing.shards]
    return sorted(some, key=lambda s: (bool(s.summary), s.created), reverse=True)  # stable


def pick_audit(standing: Sequence[Standing], audit_id: str | None) -> Standing | None:
    """The audit asked for; without an id the first one, or none.

    Raises:
        ValueError: If the one asked for does not exist; those that do are named.
    """
    if audit_id is None:
        return standing[0] if standing else None
    for item in standing:
        if item.id == audit_id:
            return item
    names = ", ".join(item.id for item in standing)
    have = f"It has {names}." if names else "It has none: see 'synthgen audit'."
    raise ValueError(f"audit must be one of the dataset's audits. Got {audit_id!r:.60}. {have}")


def read_audit(storage: Storage, standing: Standing) -> Audit:
    """All verdicts and metrics of an audit.

    Raises:
        ValueError: If one of its tables cannot be read.
    """
    parts = [_rows(storage, standing.id, shard) for shard in standing.shards]
    names = sorted({name for rows in parts for row in rows[:1] for name in row.verdict.metrics})
    rows = [row for part in parts for row in part]
    return Audit(
        standing=standing,
        keys=tuple(row.key for row in rows),
        keep=np.array([row.verdict.keep for row in rows], dtype=bool),
        reasons=tuple(row.verdict.reason for row in rows),
        metrics={
            name: np.array([row.verdict.metrics.get(name, np.nan) for row in rows])
            for name in names
        },
    )


def auditor_ious(
    storage: Storage, audit: Audit, shard: str, segments: Mapping[str, list[Mapping[str, Any]]]
) -> dict[str, list[float]]:
    """Best IoU of each of our masks with any mask of the auditor.

    Args:
        storage: The dataset.
        audit: The audit.
        shard: Stem of the shard.
        segments: Our segments (with their ``rle``) by key.

    Returns:
        By key one number per segment, for the samples whose annotations are there.
    """
    if shard not in audit.standing.shards or not segments:
        return {}
    found = {}
    for row in _rows(storage, audit.standing.id, shard, wanted=list(segments)):
        ours = segments[row.key]
        if row.annotations and ours:
            height, width = ours[0]["rle"]["size"]
            seen = [record["segmentation"] for record in row.annotations]
            ious = mask_ious([segment["rle"] for segment in ours], seen, height, width)
            found[row.key] = ious.max(1).tolist()
    return found


def _stand(storage: Storage, audit_id: str, tars: Mapping[str, str]) -> Standing:
    markers = [
        marker
        for shard, tar_sha256 in tars.items()
        for marker in [read_audit_marker(storage, audit_id, shard)]
        if marker is not None and is_audited(storage, audit_id, marker, tar_sha256)
    ]
    created = max((str(marker.created) for marker in markers), default="")
    names = tuple(marker.name for marker in markers)
    return Standing(audit_id, names, len(tars), created, _summary(storage, audit_id))


def _rows(
    storage: Storage, audit_id: str, shard: str, wanted: Sequence[str] | None = None
) -> list[AuditRow]:
    """Rows of a table: all without annotations, or those of the wanted keys with them."""
    name, marker = table_name(audit_id, shard), read_audit_marker(storage, audit_id, shard)
    content = storage.read(name) or b""
    try:
        expected = marker.sha256 if marker is not None else ""
        check_vouched(name, sha256_of(content), expected, audit_marker_name(audit_id, shard))
        return parse_table(content, wanted is not None, keys=wanted)
    except ValueError as error:
        raise ValueError(f"{name}: {error} Run 'synthgen audit' again.") from None


def _summary(storage: Storage, audit_id: str) -> dict[str, Any]:
    return read_sealed(storage, summary_name(audit_id)) or {}
