"""An audit of a finished dataset: shard by shard, resumable, beside others, ``data`` untouched.

A shard's table is a pure function of its tar, the auditor and the settings, so audits that are
killed end in the same bytes. What an auditor saw is kept in the table; another audit with the
same auditor and other thresholds uses it again and looks at no image with a model.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from synthgen.auditing.annotations import packed_records, to_records
from synthgen.auditing.auditor import Auditor
from synthgen.auditing.judge import judge, metric_names, mismatch, score
from synthgen.auditing.label_agreement import known_classes, label_agreement, label_metric
from synthgen.auditing.loading import annotate, load_auditor
from synthgen.config import AuditConfig, SegmentationConfig, digest
from synthgen.dataset.audits import (
    AUDIT_SCHEMA_VERSION,
    AUDITS,
    AuditMarker,
    AuditRow,
    audit_ids,
    audit_marker_bytes,
    audit_marker_name,
    parse_table,
    read_audit_marker,
    summarize,
    table_bytes,
    table_name,
)
from synthgen.dataset.labels import class_ids, class_names
from synthgen.dataset.manifest import read_manifest
from synthgen.dataset.masks import ShardSamples, segmentation_settings, stride
from synthgen.jobs.job import Done, SideJob
from synthgen.progress import Progress, report
from synthgen.segmentation.packed import PackedMasks
from synthgen.storage.redaction import redact_tree
from synthgen.storage.seal import sha256_of

AUDIT_VERSION = 2  # images of more than 2^20 pixels are compared at every n-th
"""Raised whenever a change of ours changes the metrics."""

_BYTES_PER_SAMPLE = 100_000  # 100 masks of a few hundred bytes each, generously

Records = Sequence[Mapping[str, Any]]


def audit(
    out: str | Path,
    settings: AuditConfig | None = None,
    audit_id: str | None = None,
    auditor: Auditor | None = None,
    num: int | None = None,
    progress: Progress = report,
) -> dict[str, Any]:
    """Audit a finished dataset, or finish an audit that was cut off.

    Args:
        out: The dataset's folder or URL.
        settings: Auditor, comparison, thresholds; None: the defaults.
        audit_id: Name of the audit; None: the auditor's name and a hash of all settings.
        auditor: A loaded auditor in place of the one that the settings name.
        num: Audit whole shards until this many samples; None: all.
        progress: Told about samples and shards; may raise, to stop.

    Returns:
        The content of ``summary.json``.

    Raises:
        ValueError: In one line, if there is no finished dataset, a shard is not the listed one,
            the auditor is unknown or answers wrongly, or the id belongs to another audit.
    """
    return AuditJob(out, settings, audit_id, num, auditor).run(progress)


class AuditJob(SideJob[AuditMarker]):
    """Audits a finished dataset; see ``audit``."""

    name, folder, schema_version = "audit", AUDITS, AUDIT_SCHEMA_VERSION

    def __init__(
        self,
        out: str | Path,
        settings: AuditConfig | None = None,
        audit_id: str | None = None,
        num: int | None = None,
        auditor: Auditor | None = None,
    ) -> None:
        super().__init__(out, num)
        self.settings = settings or AuditConfig()
        name = self.settings.auditor.name
        if auditor is not None:
            self.auditor, name = auditor, str(auditor.identity.get("name"))
        self.content = self._content()
        self.result_id = audit_id or AUDITS.id_for(name, digest(self.content))
        if audit_id is not None:
            AUDITS.check_id(audit_id)

    @cached_property
    def auditor(self) -> Auditor:
        """The auditor, loaded once per process."""
        return load_auditor(self.settings.auditor)

    @cached_property
    def segmentation(self) -> SegmentationConfig:
        """How the dataset was segmented."""
        return segmentation_settings(self.storage)

    @cached_property
    def class_ids(self) -> dict[str, int]:
        """Ids of classes.json by name."""
        return class_ids(class_names(self.storage))

    @cached_property
    def known(self) -> dict[str, frozenset[str]]:
        """The dataset's classes that the auditor knows, and what it calls them."""
        return known_classes([*self.class_ids], tuple(getattr(self.auditor, "class_names", ())))

    def _content(self) -> dict[str, Any]:
        """All that determines the tables but the tars."""
        compared = {"color_baseline", "color_baseline_resolution", "shuffled_masks"}
        content = {
            "annotations": {
                "auditor": dict(self.auditor.identity),
                "batch": self.settings.auditor.batch_size,
            },
            "comparison": {
                **self.settings.model_dump(mode="json", include=compared),
                "segmentation": self.segmentation.model_dump(mode="json"),
                "version": AUDIT_VERSION,
            },
            "verdict": self.settings.verdict.model_dump(mode="json"),
        }
        return dict(redact_tree(json.loads(json.dumps(content))))

    def needs(self, shard: str) -> tuple[int, int, str]:
        """Samples, bytes and name of a shard's audit."""
        samples = self.listed[shard].samples
        return samples, _BYTES_PER_SAMPLE * samples, f"the audit of {shard}"

    def make(self, shard: str, progress: Progress) -> AuditMarker:
        """Audit a shard, publish its table, then the marker, which makes it count."""
        if "auditor" not in vars(self):  # another process than the one that began
            AUDITS.check_same(self.result_id, self.content, self._content())
        source, seen = self._seen_before(shard)
        seconds: defaultdict[str, float] = defaultdict(float)
        with self.storage.open(self.listed[shard].name) as stream:
            samples = ShardSamples(stream, self.listed[shard], self.settings.shuffled_masks + 1)
            rows = list(self._rows(samples, seen, seconds, progress))
        table = table_bytes(rows, metric_names(self.segmentation.clusters.ks, self.known))
        self.storage.publish_bytes(table, table_name(self.result_id, shard))
        reasons = Counter(row.verdict.reason for row in rows if not row.verdict.keep)
        marker = AuditMarker(
            name=shard,
            digest=self.digest,
            annotations_digest=digest(self.content["annotations"]),
            settings=self.content,
            tar_sha256=self.listed[shard].sha256,
            sha256=sha256_of(table),
            bytes=len(table),
            samples=len(rows),
            reasons=dict(sorted(reasons.items())),
            annotations_from=source,
            seconds={name: round(value, 3) for name, value in seconds.items()},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        name = audit_marker_name(self.result_id, shard)
        self.storage.publish_bytes(audit_marker_bytes(marker), name)
        return marker

    def _seen_before(self, shard: str) -> tuple[str, dict[str, Records] | None]:
        """What the same auditor saw in the same tar in another audit here, and its id."""
        wanted = digest(self.content["annotations"])
        for audit_id in audit_ids(self.storage):
            marker = read_audit_marker(self.storage, audit_id, shard)
            if marker is None or marker.annotations_digest != wanted:
                continue
            table = self.storage.read(table_name(audit_id, shard)) or b""
            intact = sha256_of(table) == marker.sha256
            if intact and marker.tar_sha256 == self.listed[shard].sha256:
                return audit_id, {row.key: row.annotations for row in parse_table(table)}
        return "", None

    def _rows(
        self,
        samples: ShardSamples,
        seen: Mapping[str, Records] | None,
        seconds: defaultdict[str, float],
        progress: Progress,
    ) -> Iterator[AuditRow]:
        size = self.settings.auditor.batch_size
        for start in range(0, len(samples), size):
            batch = range(start, min(start + size, len(samples)))
            images, sizes = zip(*(_reduced(samples.image(index)) for index in batch), strict=True)
            keys = [samples.keys[index] for index in batch]
            started = time.perf_counter()
            if seen is None:
                found = zip(annotate(self.auditor, keys, images), sizes, strict=True)
                records = [to_records(item, whole) for item, whole in found]
            else:
                records = [[dict(record) for record in seen[key]] for key in keys]
            judged = time.perf_counter()
            seconds["annotate"] += judged - started
            for index, image, whole, own in zip(batch, images, sizes, records, strict=True):
                yield self._judge(samples, index, image, whole, own)
            seconds["judge"] += time.perf_counter() - judged
            progress("samples", count=len(batch))

    def _judge(
        self,
        samples: ShardSamples,
        index: int,
        image: UInt8[np.ndarray, "height width 3"],
        size: tuple[int, int],
        records: Records,
    ) -> AuditRow:
        from synthgen.auditing.color_baseline import color_baseline_masks  # torch

        settings, step = self.settings, stride(*size)
        ks, key = self.segmentation.clusters.ks, samples.keys[index]
        own = samples.packed(index, size)
        if own is None:
            return AuditRow(key, mismatch(ks, self.known), records)
        baseline = None
        if settings.color_baseline:
            found = color_baseline_masks(
                image, self.segmentation, settings.color_baseline_resolution
            )
            baseline = PackedMasks.of(found.masks, *image.shape[:2])
        steps = range(1, min(settings.shuffled_masks, len(samples) - 1) + 1)
        near = [samples.packed((index + step) % len(samples), size) for step in steps]
        shuffled = [other[0].bits for other in near if other is not None]
        seen = packed_records(records, *size)
        metrics = score(*own, seen, ks, baseline, shuffled)
        metrics |= dict.fromkeys(map(label_metric, self.known), math.nan)
        labels = samples.labels(index) if self.known else None
        if labels is not None and labels[0].shape == size:
            semantic = labels[0][::step, ::step]
            names = [str(record.get("label", "")) for record in records]
            metrics |= label_agreement(
                semantic, self.class_ids, labels[1], seen, names, self.known
            )
        return AuditRow(key, judge(metrics, settings.verdict), records)

    def row(self, done: Done[AuditMarker]) -> dict[str, Any]:
        """What a table says of a shard."""
        return {"samples": done.marker.samples, "rejected": done.marker.rejected}

    def summarize(self, markers: Sequence[AuditMarker]) -> dict[str, Any]:
        """The totals of the audit."""
        manifest = read_manifest(self.storage)
        dataset = manifest["config"] if manifest else ""
        return summarize(self.storage, self.result_id, markers, dataset)


def _reduced(
    image: UInt8[np.ndarray, "height width 3"],
) -> tuple[UInt8[np.ndarray, "small_height small_width 3"], tuple[int, int]]:
    """An image as an audit looks at it, and the size that it has."""
    size = (image.shape[0], image.shape[1])
    step = stride(*size)
    return image if step == 1 else np.array(Image.fromarray(image).reduce(step)), size
