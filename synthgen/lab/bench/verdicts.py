"""Do verdicts tell a good dataset from a broken one? Both are made here and audited alike.

Good: what the embedded model draws and `segment` finds. Broken: the same images, each with the
masks of another one, as an index that slipped by one would leave them. The shares that an audit
rejects of each are what thresholds are set on; quantiles of what they are about are printed too.

Labels are judged where the truth is known, on rendered tuning scenes: see `label_thresholds`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synthgen import jobs
from synthgen.auditing.label_agreement import known_classes, label_agreement
from synthgen.auditing.loading import annotate, load_auditor
from synthgen.config import (
    AuditConfig,
    AuditorConfig,
    Config,
    LabelConfig,
    ModelConfig,
    VerdictConfig,
    load,
    load_audit,
)
from synthgen.dataset.audits import parse_table, table_name
from synthgen.dataset.manifest import (
    build_manifest,
    marker_bytes,
    marker_name,
    publish_manifest,
    read_markers,
    tar_name,
)
from synthgen.dataset.shards import read_span, scan, spans, whole_tar
from synthgen.diffusion.backbones import load_backbone
from synthgen.embedded.vocabulary import TUNING_SEEDS
from synthgen.jobs.audit import audit
from synthgen.lab.downstream.labeled_images import SCENE_CLASSES
from synthgen.lab.downstream.labels import labeled, recorded
from synthgen.lab.world.render import render
from synthgen.segmentation.packed import PackedMasks
from synthgen.storage.publish import Storage, open_storage, sha256_file
from synthgen.types import Verdict

SEED = 11
QUANTILES = (5, 50, 95)
LABEL_THRESHOLDS = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75)
RIGHT = 0.5
"""IoU of the worst class with the truth from which labels of a scene count as right."""

_SWAPPED = ("segments", "num_segments")

Members = dict[str, bytes]


def bench_verdicts(num: int = 64, auditor: str = "scenes-sam") -> dict[str, Any]:
    """What an audit with default thresholds says of a good and of a broken dataset.

    Args:
        num: Samples of each.
        auditor: Row of AUDITORS.

    Returns:
        For each dataset the kept share, reasons, mean Top-n of our masks, of the color
        baseline and of shuffled masks, and quantiles of what the thresholds are about; under
        ``labels`` those of `label_thresholds`.
    """
    settings = load_audit([f"auditor.name={auditor}"])
    with tempfile.TemporaryDirectory() as folder:
        good, broken = Path(folder, "good"), Path(folder, "broken")
        jobs.generate(
            load(overrides=[f"num={num}", "dataset.shard_size=32", f"seed={SEED}"]), good
        )
        break_dataset(good, broken)
        result: dict[str, Any] = {"num": num, "auditor": auditor}
        for name, out in {"good": good, "broken": broken}.items():
            print(f"verdicts: auditing the {name} dataset", file=sys.stderr, flush=True)
            result[name] = audited(out, settings)
    result["labels"] = label_thresholds(num)
    return result


def label_thresholds(num: int = 64, auditor: str = "scenes-m2f") -> dict[str, Any]:
    """What each value of ``min_label_iou`` keeps of right labels and of wrong ones.

    Of a scene's labels the worst class counts, as in an audit. Looked at are the true maps, what
    the labeler `clusters` finds (right or wrong by the truth), and the true maps of scenes of
    several classes whose names went round by one.

    Args:
        num: Rendered tuning scenes.
        auditor: Row of AUDITORS that names classes.

    Returns:
        Per kind of labels their number and the share that each threshold keeps.
    """
    seer, backbone = load_auditor(AuditorConfig(name=auditor)), load_backbone(ModelConfig())
    settings, found = LabelConfig(method="clusters"), dict[str, list[float]]()
    known = known_classes(SCENE_CLASSES[1:], tuple(getattr(seer, "class_names", ())))
    ids = {name: number for number, name in enumerate(SCENE_CLASSES)}
    for seed in TUNING_SEEDS[:num]:
        scene = render(seed)
        (seen,) = annotate(seer, [str(seed)], [scene.image])
        masks = PackedMasks.of(seen.masks, *scene.image.shape[:2])
        (sample,) = recorded(backbone, [scene], settings)
        names = sample.prompt.class_names
        made = labeled(sample, Config(labeling=settings), [settings.method], [settings.refiner])
        (labels,) = made.values()
        own = [ids[name] for name in names]
        exact = [
            float(((labels == i) & (scene.semantic == i)).sum())
            / int(((labels == i) | (scene.semantic == i)).sum())
            for i in own
        ]
        maps = {"true": scene.semantic, "right" if min(exact) >= RIGHT else "wrong": labels}
        if len(own) > 1:
            table = np.arange(256, dtype=np.uint8)
            table[own] = np.roll(own, 1)
            maps["exchanged"] = table[scene.semantic]
        for kind, semantic in maps.items():
            metrics = label_agreement(semantic, ids, names, masks, seen.labels, known)
            found.setdefault(kind, []).append(metrics.get("label_least_iou", np.nan))
    return {
        kind: {"num": len(values)}
        | {f"kept at {t}": float(np.mean(~(np.array(values) < t))) for t in LABEL_THRESHOLDS}
        for kind, values in sorted(found.items())
    }


def audited(out: Path, settings: AuditConfig) -> dict[str, Any]:
    """Audit a dataset and sum up its verdicts."""
    summary = audit(out, settings)
    storage, totals, means = open_storage(out), summary["totals"], summary["means"]
    tables = (storage.read(table_name(summary["id"], x["name"])) for x in summary["shards"])
    rows = [row for table in tables for row in parse_table(table or b"", annotations=False)]
    top = f"top_{settings.verdict.top}"
    return {
        "kept": totals["kept"] / totals["samples"],
        "reasons": totals["reasons"],
        top: means.get(top),
        f"color_baseline_{top}": means.get(f"color_baseline_{top}"),
        f"shuffled_masks_{top}": means.get(f"shuffled_masks_{top}"),
        "hungarian": means.get("hungarian"),
        "color_baseline_hungarian": means.get("color_baseline_hungarian"),
        "quantiles": quantiles([row.verdict for row in rows], settings.verdict),
    }


def quantiles(
    verdicts: Sequence[Verdict], settings: VerdictConfig
) -> Mapping[str, Mapping[str, float]]:
    """Quantiles of the metrics that thresholds are about, by the threshold's name."""
    top = f"top_{settings.top}"
    metrics = [verdict.metrics for verdict in verdicts]
    measured = {
        "min_top_n": [m[top] for m in metrics],
        "min_over_shuffled_masks": [m[top] - m[f"shuffled_masks_{top}"] for m in metrics],
        "min_boundary_f": [m["boundary_f"] for m in metrics],
        "min_over_color_baseline": [m[top] - m[f"color_baseline_{top}"] for m in metrics],
        "min_coverage": [m["coverage"] for m in metrics],
    }
    return {
        name: {f"{q} %": float(np.nanpercentile(values, q)) for q in QUANTILES}
        for name, values in measured.items()
    }


def break_dataset(good: Path, broken: Path) -> None:
    """Copy a finished dataset; every sample gets the masks of the next one of its shard.

    Args:
        good: A finished dataset whose images have one size.
        broken: New folder.
    """
    shutil.copytree(good, broken, ignore=shutil.ignore_patterns("manifest*", "audit", "report"))
    storage = open_storage(broken)
    markers = [
        dataclasses.replace(marker, **_break_shard(storage, marker.name))
        for marker in read_markers(storage)
    ]
    for marker in markers:
        storage.publish_bytes(marker_bytes(marker), marker_name(marker.name))
    publish_manifest(storage, build_manifest(markers, markers[0].config, [], {}))


def _break_shard(storage: Storage, shard: str) -> dict[str, Any]:
    """Rewrite a shard's tar; returns what changes in its marker."""
    with storage.open(tar_name(shard)) as stream:
        samples = [(span.key, read_span(stream, span)) for span in spans(scan(stream))]
    others = deque(members for _, members in samples)
    others.rotate(-1)
    with storage.staging() as folder:
        with whole_tar(folder / "shard.tar") as writer:
            for (key, members), other in zip(samples, others, strict=True):
                writer.write(key, with_masks_of(members, other))
        with (folder / "shard.tar").open("rb") as stream:
            changed = {"sha256": sha256_file(stream), "bytes": stream.tell()}
        storage.publish(folder / "shard.tar", tar_name(shard))
    return changed


def with_masks_of(members: Members, other: Members) -> Members:
    """A sample's members with the masks of another one."""
    own, its = json.loads(members["json"]), json.loads(other["json"])
    content = {**own, **{name: its[name] for name in _SWAPPED}}
    return {**members, "mask.png": other["mask.png"], "json": json.dumps(content).encode()}
