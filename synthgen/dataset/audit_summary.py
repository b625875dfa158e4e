"""The totals of an audit, a function of its tables alone: no times."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from synthgen.dataset.audits import AUDIT_SCHEMA_VERSION, AuditMarker, parse_table, table_name
from synthgen.storage.publish import Storage


def summarize(
    storage: Storage, audit_id: str, markers: Sequence[AuditMarker], dataset: str
) -> dict[str, Any]:
    """Totals, means over the samples that have a metric, and the tables' hashes.

    Args:
        storage: The dataset.
        audit_id: The audit.
        markers: Of all its tables, in order.
        dataset: The dataset's digest.
    """
    tables = (storage.read(table_name(audit_id, marker.name)) or b"" for marker in markers)
    return {
        "schema_version": AUDIT_SCHEMA_VERSION,
        "id": audit_id,
        "digest": markers[0].digest,
        "settings": dict(markers[0].settings),
        "dataset": dataset,
        "totals": _totals(markers),
        "means": _means(tables),
        "shards": [_listed(marker) for marker in markers],
    }


def _totals(markers: Sequence[AuditMarker]) -> dict[str, Any]:
    samples = sum(marker.samples for marker in markers)
    rejected = sum(marker.rejected for marker in markers)
    reasons = sum((Counter(marker.reasons) for marker in markers), Counter[str]())
    return {
        "shards": len(markers),
        "samples": samples,
        "kept": samples - rejected,
        "rejected": rejected,
        "reasons": dict(sorted(reasons.items())),
    }


def _means(tables: Iterable[bytes]) -> dict[str, float]:
    """Mean of each metric over the samples that have it."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for table in tables:
        for row in parse_table(table, annotations=False):
            for name, value in row.verdict.metrics.items():
                values[name] += [] if np.isnan(value) else [value]
    return {name: float(np.mean(found)) for name, found in values.items() if found}


def _listed(marker: AuditMarker) -> dict[str, Any]:
    """A shard's line: its tar, its table, what was judged."""
    return {
        "name": marker.name,
        "tar_sha256": marker.tar_sha256,
        "sha256": marker.sha256,
        "samples": marker.samples,
        "rejected": marker.rejected,
    }
