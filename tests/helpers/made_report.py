"""A small finished dataset with hostile prompts, a failure and an audit, to be reported."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from made_dataset import DIGEST, make_sample, write_dataset
from made_labels import make_labels
from tiny_run import vouch_again

from synthgen.dataset.audits import (
    AuditMarker,
    AuditRow,
    audit_marker_bytes,
    audit_marker_name,
    summary_name,
    table_bytes,
    table_name,
)
from synthgen.dataset.listed import listed_shards
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.metadata import Row
from synthgen.storage.publish import dump_json, open_storage
from synthgen.types import Verdict

SCRIPT = "<script>window.hacked = 1</script><!-- </script> <img src=x onerror='window.hacked=1'>"
RTL = "قطة على سجادة \u202eright to left"
EMOJI = "a 🐈‍⬛ on a \U0001f9f6, \"quoted\" & 'so on'"
PROMPTS = (SCRIPT, RTL, EMOJI, "without a preview", "an ordinary cat")
SIZE = (48, 64)
FAILURE = Row(
    *("0000010099", "failed", "black_image", f"{SCRIPT} is black", "bad", SCRIPT, (), 0, 1, 0)
)


def write_made(root: Path) -> Path:
    """Five samples in two shards; the fourth has no preview."""
    samples = [make_sample(i, prompt, SIZE, preview=i != 3) for i, prompt in enumerate(PROMPTS)]
    write_dataset(root, samples, len(samples), shard_size=3, failures=[FAILURE])
    return root


CLASS_IDS = {"cat": 1, SCRIPT: 2, "never": 9}


def write_labeled(root: Path) -> Path:
    """Four labeled samples in two shards; the last has no preview; "never" is never found."""
    samples = [make_sample(i, PROMPTS[i], SIZE, preview=i != 3) for i in range(4)]
    labeled = []
    for index, sample in enumerate(samples):
        names = ("cat", SCRIPT, "never")
        prompt = replace(sample.record.prompt, class_names=names)
        record = replace(sample.record, prompt=prompt, class_ids=CLASS_IDS)
        record = replace(record, labels=make_labels(record, names, seed=index))
        labeled.append(replace(sample, record=record))
    write_dataset(root, labeled, len(labeled), shard_size=3)
    table = {0: "background", 255: "ignore"} | {i: name for name, i in CLASS_IDS.items()}
    (root / "classes.json").write_text(json.dumps(table))
    vouch_again(root)
    return root


def verdict(index: int) -> Verdict:
    """Of the n-th sample: Top-5 rises, the second is rejected, the third has no boundary F."""
    metrics = {
        "top_1": 0.9,
        "top_5": 0.2 * index + 0.05,
        "color_baseline_top_5": 0.1,
        "boundary_f": math.nan if index == 2 else 0.5,
    }
    return Verdict(index != 1, "low_agreement" if index == 1 else "", metrics)


def write_made_audit(root: Path, audit_id: str = "made-audit", hour: int = 12) -> None:
    """An audit whose auditor sees every third of our masks; its summary is hostile."""
    finished = f"2026-11-21T{hour:02d}:00:00+00:00"
    write_audit(root, audit_id, verdict, finished)
    summary = {"id": audit_id, "note": SCRIPT}
    (root / "audit" / audit_id / "summary.json").write_text(json.dumps(summary))


def write_audit(
    root: Path, audit_id: str, judged: Callable[[int], Verdict], finished: str
) -> None:
    """Add a finished audit whose auditor sees every third of our own masks.

    Args:
        root: A finished dataset.
        audit_id: Name of the audit.
        judged: Verdict of the n-th sample; all must have the same metrics.
        finished: When its tables were done, ISO 8601.
    """
    storage = open_storage(root)
    rows: dict[str, list[AuditRow]] = {}
    for number, sample in enumerate(open_dataset(root, masks=False)):
        height, width = map(float, sample["mask"].shape)
        seen = [
            {
                "id": position,
                "area": segment["area"],
                "bbox": [float(side) for side in segment["bbox_xywh"]],
                "segmentation": segment["rle"],
                "predicted_iou": 0.9,
                "stability_score": 0.95,
                "point_coords": [],
                "crop_box": [0.0, 0.0, width, height],
                "label": "",
            }
            for position, segment in enumerate(sample["json"]["segments"][::3], start=1)
        ]
        row = AuditRow(sample["key"], judged(number), seen)
        rows.setdefault(f"train-{sample['key'][:6]}", []).append(row)
    for shard in listed_shards(storage):
        verdicts = [row.verdict for row in rows[shard.stem]]
        table = table_bytes(rows[shard.stem], list(verdicts[0].metrics))
        storage.publish_bytes(table, table_name(audit_id, shard.stem))
        marker = AuditMarker(
            name=shard.stem,
            digest=DIGEST,
            annotations_digest=DIGEST,
            settings={"annotations": {"auditor": {"name": "made"}}},
            tar_sha256=shard.sha256,
            sha256=hashlib.sha256(table).hexdigest(),
            bytes=len(table),
            samples=len(verdicts),
            reasons=dict(Counter(verdict.reason for verdict in verdicts if not verdict.keep)),
            annotations_from="",
            seconds={},
            created=finished,
        )
        storage.publish_bytes(audit_marker_bytes(marker), audit_marker_name(audit_id, shard.stem))
    storage.publish_bytes(dump_json({"id": audit_id}), summary_name(audit_id))
