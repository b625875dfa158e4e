"""What is lost of a shard is made again from what is left of it, without drawing anything.

The tar is the truth where the manifest or the marker has its hash: the rows follow from its
samples, those of failed samples from the plan, the marker from all of them. What only drawing
gives back is not restored: tars, previews, the reasons where samples failed for several.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from synthgen.config import Config
from synthgen.dataset.label_statistics import LabelCounts
from synthgen.dataset.labels import class_ids, class_names
from synthgen.dataset.manifest import (
    Marker,
    ShardRow,
    marker_bytes,
    marker_name,
    metadata_name,
    preview_name,
    read_manifest,
    read_marker,
    tar_name,
)
from synthgen.dataset.metadata import Row, read_rows, rows_bytes
from synthgen.dataset.previews import has_preview, preview_keys
from synthgen.dataset.records import decode_image, parse_sample
from synthgen.dataset.shards import read_span, scan, span_sha256, spans
from synthgen.dataset.split import photo_of
from synthgen.jobs.identity import check_plan
from synthgen.storage.publish import Storage, sha256_file
from synthgen.storage.seal import hash_file, sha256_of
from synthgen.types import BACKGROUND, IGNORE, PlannedSample

_LOST = "its row was lost, and made again from the tar"

logger = logging.getLogger(__name__)


def restore_shard(
    storage: Storage,
    shard: str,
    config: Config,
    digest: str,
    plan: Sequence[PlannedSample] | None = None,
) -> Marker | None:
    """Publish the rows and the marker of a shard again, where its tar is known to be whole.

    Mean scores of labels are those of instances, which may differ in the last digit.

    Args:
        storage: The dataset.
        shard: File stem of the shard.
        config: The dataset's configuration.
        digest: What the marker must carry.
        plan: Samples of the shard, from who can draw them: then previews must be there, too.
            None: only what needs no plan is restored.

    Returns:
        The marker; None where something is lost for good, or only drawing gives it back.
    """
    if storage.size(tar_name(shard)) is None:  # as of every new shard
        return None
    before = storage.read(marker_name(shard))
    try:
        with storage.open(tar_name(shard)) as stream:
            sha256, num_bytes = sha256_file(stream), stream.tell()
            known = _vouched(storage, shard, digest, sha256, plan)
            if known is None:
                return None
            planned, reasons, unconverged = known
            made, provenance = _read_tar(storage, stream)
        existing = _existing_rows(storage, shard, made, planned)
        if existing is None and provenance["config"] != digest:
            return None  # merged: only its sources know where the samples came from
        batch_size = int(provenance["batch_size"])
        rows = existing or _rows(made, planned, reasons, plan, batch_size)
        lost = plan is not None and preview_keys(storage, shard) != [
            key for key in made if has_preview(key, config.dataset)
        ]
        if rows is None or lost:
            return None
        content = storage.read(metadata_name(shard)) if existing else rows_bytes(rows)
        failed = Counter(row.reason for row in rows if row.status != "ok")
        marker = Marker(
            name=shard,
            config=digest,
            planned=planned,
            counts={"ok": len(made), "failed": planned - len(made)},
            reasons=dict(sorted(failed.items())),
            bytes=num_bytes,
            sha256=sha256,
            skipped=False,
            batch_size=batch_size,
            seconds={
                "generate": round(sum(row.seconds_generate for row in rows), 3),
                "segment": round(sum(row.seconds_segment for row in rows), 3),
            },
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            environment={name: provenance[name] for name in ("device", "dtype", "versions")},
            metadata_sha256=sha256_of(content or b""),
            previews_sha256=hash_file(storage, preview_name(shard)) or "",
            unconverged=max(unconverged, sum(not row.converged for row in rows)),
        )
    except (FileNotFoundError, ValueError, KeyError):  # nothing there, or nothing to rely on
        return None
    with storage.publishing():
        check_plan(storage, config)
        if storage.read(marker_name(shard)) != before:  # somebody was faster
            return None
        if existing is None:
            storage.publish_bytes(content or b"", metadata_name(shard))
        storage.publish_bytes(marker_bytes(marker), marker_name(shard))
    logger.warning(
        "%s: rebuilt what its tar tells (marker%s)", shard, "" if existing else ", rows"
    )
    return marker


def _vouched(
    storage: Storage,
    shard: str,
    digest: str,
    sha256: str,
    plan: Sequence[PlannedSample] | None,
) -> tuple[int, Mapping[str, int], int] | None:
    """Planned samples, why samples fail, and how many k-means did not settle, as they say that
    know this hash of the tar."""
    marker, manifest = read_marker(storage, shard), read_manifest(storage)
    found = []
    if marker is not None and (marker.config, marker.sha256) == (digest, sha256):
        found.append((marker.planned, marker.reasons, marker.unconverged))
    if manifest is not None and manifest["config"] == digest:
        rows = [row for row in manifest["shards"] if row["name"] == tar_name(shard)]
        if any(row.get("previews") for row in rows) and not storage.size(preview_name(shard)):
            return None
        reasons = manifest["totals"]["reasons"]
        found += [
            (row["planned"], row.get("reasons", reasons), row.get("unconverged", 0))
            for row in rows
            if row["sha256"] == sha256
        ]
    return next((item for item in found if plan is None or item[0] == len(plan)), None)


def _read_tar(storage: Storage, stream: Any) -> tuple[dict[str, Row], dict[str, Any]]:
    """Rows by key as far as a tar tells them, and the provenance of its samples."""
    ids, rows, provenance = class_ids(class_names(storage)), {}, {}
    for span in spans(scan(stream)):
        members = read_span(stream, span)
        info = parse_sample(members["json"])
        provenance = info["provenance"]
        rows[span.key] = Row(
            key=span.key,
            status="ok",
            reason="",
            message="",
            prompt_id=info["prompt_id"],
            prompt=info["prompt"],
            classes=tuple(info["classes"]),
            image_index=info["image_index"],
            seed=info["seed"],
            batch=provenance["batch"],
            num_segments=info["num_segments"],
            byte_offset=span.offset,
            byte_size=span.size,
            sha256=span_sha256(stream, span),
            labels=_counts(info, members["sem.png"], ids) if "sem.png" in members else None,
            photo=photo_of(info),
        )
    return rows, provenance


def _existing_rows(
    storage: Storage, shard: str, made: Mapping[str, Row], planned: int
) -> list[Row] | None:
    """The rows that stand there, if they tell of this tar."""
    try:
        rows = read_rows(storage, shard)
    except ValueError:
        return None
    blank: dict[str, Any] = {"seconds_generate": 0.0, "seconds_segment": 0.0, "origin": None}
    blank |= {"iterations": 0, "converged": True}  # the tar tells none of them
    told = [replace(row, labels=None, **blank) for row in rows if row.status == "ok"]
    hashed = {row.key for row in told if row.sha256}  # older ones are not
    same = told == [
        replace(row, labels=None, sha256=row.sha256 if row.key in hashed else "")
        for row in made.values()
    ]
    return rows if same and len(rows) == planned else None


def _rows(
    made: Mapping[str, Row],
    planned: int,
    reasons: Mapping[str, int],
    plan: Sequence[PlannedSample] | None,
    batch_size: int,
) -> list[Row] | None:
    """Rows of a tar's samples, and of those that failed; None where nobody knows these."""
    if planned == len(made):
        return list(made.values())
    if plan is None or len(reasons) != 1:
        return None
    return [
        made.get(sample.key)
        or Row(
            key=sample.key,
            status="failed",
            reason=next(iter(reasons)),
            message=_LOST,
            prompt_id=sample.prompt.id,
            prompt=sample.prompt.text,
            classes=sample.prompt.class_names,
            image_index=sample.image_index,
            seed=sample.seed,
            batch=index // batch_size,
            photo=sample.prompt.photo,
        )
        for index, sample in enumerate(plan)
    ]


def _counts(info: Mapping[str, Any], sem_png: bytes, ids: Mapping[str, int]) -> LabelCounts:
    """What a semantic map holds, as `count_labels` says while it is made; the score of a class
    that has no instance, but specks alone, is lost and 0.
    """
    semantic = decode_image(sem_png, "L")
    pixels = {name: int((semantic == ids[name]).sum()) for name in info["classes"]}
    shown = tuple(name for name in info["classes"] if pixels[name])
    scores = []
    for name in shown:
        found = [item for item in info["instances"] if item["label"] == name]
        area = sum(item["area"] for item in found)
        total = sum(item["area"] * item["label_score"] for item in found)
        scores.append(round(total / area, 4) if area else 0.0)
    return LabelCounts(
        class_names=shown,
        pixels=tuple(pixels[name] for name in shown),
        scores=tuple(scores),
        not_found=tuple(info["not_found"]),
        background=int((semantic == BACKGROUND).sum()),
        undecided=int((semantic == IGNORE).sum()),
    )


def contradicts(listed: Mapping[str, Any], found: ShardRow) -> bool:
    """Whether the manifest says something else of the same plan's tar."""
    same_plan = listed["planned"] == found["planned"]
    return same_plan and bool(listed["sha256"] != found["sha256"])
