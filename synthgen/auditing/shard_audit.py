"""The audit of one shard: what the auditor sees, metrics, verdicts, table, marker."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.auditing.annotations import from_records, to_records
from synthgen.auditing.auditor import Auditor
from synthgen.auditing.color_baseline import chance_masks
from synthgen.auditing.judge import judge, metric_names, mismatch, score
from synthgen.auditing.label_agreement import known_classes, label_agreement, label_metric
from synthgen.auditing.loading import annotate
from synthgen.auditing.plan import AuditPlan
from synthgen.config import SegmentationConfig, digest
from synthgen.dataset.audits import (
    AuditMarker,
    AuditRow,
    audit_ids,
    audit_marker_bytes,
    audit_marker_name,
    parse_table,
    read_audit_marker,
    table_bytes,
    table_name,
)
from synthgen.dataset.labels import class_ids, class_names
from synthgen.dataset.listed import ListedShard
from synthgen.dataset.masks import ShardSamples, segmentation_settings
from synthgen.progress import Progress
from synthgen.storage.publish import Storage
from synthgen.types import Annotations

Records = Sequence[Mapping[str, Any]]


class ShardAudit:
    """The audit of one shard, from its tar to its marker."""

    def __init__(
        self,
        storage: Storage,
        plan: AuditPlan,
        listed: ListedShard,
        auditor: Auditor,
        content: Mapping[str, Any],
    ) -> None:
        self.storage, self.plan, self.listed = storage, plan, listed
        self.auditor, self.content = auditor, content
        self.segmentation: SegmentationConfig = segmentation_settings(storage)
        self.ks = self.segmentation.clusters.ks
        self.ids = class_ids(class_names(storage))
        self.known = known_classes([*self.ids], tuple(getattr(auditor, "class_names", ())))
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def run(self, progress: Progress) -> AuditMarker:
        """Audit, publish the table, then the marker, which makes it count."""
        source, known = self._known_annotations()
        with self.storage.open(self.listed.name) as stream:
            rows = list(self._rows(ShardSamples(stream, self.listed), known, progress))
        table = table_bytes(rows, metric_names(self.ks, self.known))
        self.storage.publish_bytes(table, table_name(self.plan.audit_id, self.listed.stem))
        marker = self._marker(rows, table, source)
        name = audit_marker_name(self.plan.audit_id, self.listed.stem)
        self.storage.publish_bytes(audit_marker_bytes(marker), name)
        return marker

    def _known_annotations(self) -> tuple[str, dict[str, Records] | None]:
        """What the same auditor saw in the same tar in an audit that stands here, and its id."""
        wanted, stem = digest(self.content["annotations"]), self.listed.stem
        for audit_id in audit_ids(self.storage):
            marker = read_audit_marker(self.storage, audit_id, stem)
            if marker is None or marker.annotations_digest != wanted:
                continue
            table = self.storage.read(table_name(audit_id, stem)) or b""
            intact = hashlib.sha256(table).hexdigest() == marker.sha256
            if intact and marker.tar_sha256 == self.listed.sha256:
                return audit_id, {row.key: row.annotations for row in parse_table(table)}
        return "", None

    def _rows(
        self,
        samples: ShardSamples,
        known: Mapping[str, Records] | None,
        progress: Progress,
    ) -> Iterator[AuditRow]:
        size = self.plan.settings.auditor.batch_size
        for start in range(0, len(samples), size):
            batch = range(start, min(start + size, len(samples)))
            images = [samples.image(index) for index in batch]
            keys = [samples.keys[index] for index in batch]
            with self._timed("annotate"):
                seen = self._see(keys, images, known)
            with self._timed("judge"):
                for index, image, (records, found) in zip(batch, images, seen, strict=True):
                    yield self._judge(samples, index, image, records, found)
            progress("samples", count=len(batch))

    def _see(
        self,
        keys: Sequence[str],
        images: Sequence[UInt8[np.ndarray, "_height _width 3"]],
        known: Mapping[str, Records] | None,
    ) -> list[tuple[Records, Annotations]]:
        """Records and masks of a batch: as they stand, or from the auditor."""
        if known is not None:
            return [
                (known[key], from_records(known[key], image.shape[0], image.shape[1]))
                for key, image in zip(keys, images, strict=True)
            ]
        found = annotate(self.auditor, keys, images)
        return [(to_records(item), item) for item in found]

    def _judge(
        self,
        samples: ShardSamples,
        index: int,
        image: UInt8[np.ndarray, "height width 3"],
        records: Records,
        found: Annotations,
    ) -> AuditRow:
        settings, size = self.plan.settings, (image.shape[0], image.shape[1])
        mask_set = samples.mask_set(index, size)
        if mask_set is None:
            return AuditRow(samples.keys[index], mismatch(self.ks, self.known), records)
        chance = None
        if settings.chance:
            chance = chance_masks(image, self.segmentation, settings.chance_resolution)
        steps = range(1, min(settings.others, len(samples) - 1) + 1)
        near = [samples.packed((index + step) % len(samples), size) for step in steps]
        others = [packed for packed in near if packed is not None]
        metrics = score(mask_set, found, self.ks, chance, others)
        metrics |= dict.fromkeys(map(label_metric, self.known), math.nan)
        labels = samples.labels(index) if self.known else None
        if labels is not None and labels[0].shape == size:
            metrics |= label_agreement(labels[0], self.ids, labels[1], found, self.known)
        return AuditRow(samples.keys[index], judge(metrics, settings.verdict), records)

    def _marker(self, rows: Sequence[AuditRow], table: bytes, source: str) -> AuditMarker:
        reasons = Counter(row.verdict.reason for row in rows if not row.verdict.keep)
        return AuditMarker(
            name=self.listed.stem,
            digest=digest(self.content),
            annotations_digest=digest(self.content["annotations"]),
            settings=self.content,
            tar_sha256=self.listed.sha256,
            sha256=hashlib.sha256(table).hexdigest(),
            bytes=len(table),
            samples=len(rows),
            reasons=dict(sorted(reasons.items())),
            annotations_from=source,
            seconds={name: round(value, 3) for name, value in self.seconds.items()},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started
