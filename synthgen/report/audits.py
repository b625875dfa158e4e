"""What the audits of a dataset say, as far as a page needs it.

A dataset may have several audits; without a wish the page shows the one that was finished last.
Metrics and verdicts are read for all samples, the auditor's masks only for those shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from statistics import fmean
from typing import Any

from synthgen.dataset.audits import (
    audit_ids,
    audit_marker_name,
    is_audited,
    parse_table,
    read_audit_marker,
    read_verdicts,
    summary_name,
    table_name,
)
from synthgen.dataset.rle import mask_ious
from synthgen.dataset.sidecars import read_sealed
from synthgen.storage.publish import Storage
from synthgen.storage.seal import check_vouched, sha256_of
from synthgen.types import Verdict

_RENAMED = {"chance_": "color_baseline_", "others_": "shuffled_masks_"}
"""How metrics of two baselines began in tables of before 2026-11-29, and how they do now."""


@dataclass(frozen=True)
class Audit:
    """An audit of a dataset as it is now."""

    storage: Storage
    id: str
    shards: Mapping[str, str]  # file stem to tar hash of those that it is about
    total: int  # shards with samples in the dataset
    created: str  # when its last table was done, ISO 8601, UTC
    summary: Mapping[str, Any]  # content of its summary.json; empty while it is unfinished

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

    @cached_property
    def verdicts(self) -> Mapping[str, Verdict]:
        """Verdict of every audited sample by key, in order.

        Raises:
            ValueError: If one of its tables cannot be read.
        """
        found = read_verdicts(self.storage, self.id, self.shards)
        return {key: verdict for rows in found.values() for key, verdict in rows.items()}

    @cached_property
    def metrics(self) -> Mapping[str, Mapping[str, float]]:
        """Values of every metric by key; samples for which one has no meaning are left out."""
        found: dict[str, dict[str, float]] = {}
        for key, verdict in self.verdicts.items():
            for name, value in verdict.metrics.items():
                for old, new in _RENAMED.items():
                    name = name.replace(old, new, 1) if name.startswith(old) else name
                values = found.setdefault(name, {})
                if isfinite(value):
                    values[key] = value
        return found

    def mean(self, name: str) -> float | None:
        """Mean of a metric over the samples that have it, None if none has."""
        values = self.metrics.get(name)
        return fmean(values.values()) if values else None

    @property
    def rejected(self) -> Counter[str]:
        """Samples not kept, per reason."""
        return Counter(v.reason for v in self.verdicts.values() if not v.keep)

    def ious(
        self, shard: str, segments: Mapping[str, list[Mapping[str, Any]]]
    ) -> dict[str, list[float]]:
        """Best IoU of each of our masks with any mask of the auditor.

        Args:
            shard: Stem of the shard.
            segments: Our segments (with their ``rle``) by key.

        Returns:
            By key one number per segment, for the samples whose annotations are there.
        """
        if shard not in self.shards or not segments:
            return {}
        name, marker = table_name(self.id, shard), read_audit_marker(self.storage, self.id, shard)
        content, expected = self.storage.read(name) or b"", marker.sha256 if marker else ""
        check_vouched(name, sha256_of(content), expected, audit_marker_name(self.id, shard))
        found = {}
        for row in parse_table(content, keys=list(segments)):
            ours = segments[row.key]
            if row.annotations and ours:
                height, width = ours[0]["rle"]["size"]
                seen = [record["segmentation"] for record in row.annotations]
                rles = [segment["rle"] for segment in ours]
                found[row.key] = mask_ious(rles, seen, height, width).max(1).tolist()
        return found


def existing_audits(storage: Storage, tars: Mapping[str, str]) -> list[Audit]:
    """The audits that are about at least one shard: the one finished last first.

    Unfinished ones (no summary) follow; of equal times the first name comes first.

    Args:
        storage: The dataset.
        tars: File stem to tar hash of its shards with samples.
    """
    found = []
    for audit_id in audit_ids(storage):
        markers = [read_audit_marker(storage, audit_id, shard) for shard in tars]
        done = [
            marker
            for marker, sha256 in zip(markers, tars.values(), strict=True)
            if marker is not None and is_audited(storage, audit_id, marker, sha256)
        ]
        if done:
            shards = {marker.name: tars[marker.name] for marker in done}
            created = max(str(marker.created) for marker in done)
            summary = read_sealed(storage, summary_name(audit_id)) or {}
            found.append(Audit(storage, audit_id, shards, len(tars), created, summary))
    return sorted(found, key=lambda a: (bool(a.summary), a.created), reverse=True)  # stable


def pick_audit(audits: Sequence[Audit], audit_id: str | None) -> Audit | None:
    """The audit asked for; without an id the first one, or none.

    Raises:
        ValueError: If the one asked for does not exist; those that do are named.
    """
    if audit_id is None:
        return audits[0] if audits else None
    for audit in audits:
        if audit.id == audit_id:
            return audit
    names = ", ".join(audit.id for audit in audits)
    have = f"It has {names}." if names else "It has none: see 'synthgen audit'."
    raise ValueError(f"audit must be one of the dataset's audits. Got {audit_id!r:.60}. {have}")
