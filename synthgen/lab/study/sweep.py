"""Scoring every row on every captured image; what stands is not made again.

    annotations-<digest>/KEY.json   what the auditor saw, as SA-1B records
    scores-<digest>/KEY.json        row name to metrics; written again after every row

A row's name says its whole setting, so studies that share rows share their scores.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from synthgen.auditing.annotations import from_records, to_records
from synthgen.auditing.auditor import Auditor
from synthgen.auditing.judge import score
from synthgen.auditing.loading import annotate
from synthgen.config import SegmentationConfig
from synthgen.lab.study.captures import Captures
from synthgen.lab.study.images import truth_annotations, truth_scores
from synthgen.lab.study.settings import Setting
from synthgen.lab.world.render import Scene, render
from synthgen.progress import Progress, report
from synthgen.segmentation.segment import segment
from synthgen.storage.publish import Storage
from synthgen.types import Annotations, PlannedSample, Sample

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of rows by image, in a folder.

    Args:
        storage: The local folder.
        folder: Name of the scores' folder in it.
    """

    storage: Storage
    folder: str

    def read(self, key: str) -> dict[str, Metrics]:
        """Row name to metrics of an image; nothing where the file is missing or damaged."""
        try:
            tree = json.loads(self.storage.read(self._name(key)) or b"{}")
            return {
                name: {k: math.nan if v is None else float(v) for k, v in metrics.items()}
                for name, metrics in tree.items()
            }
        except (ValueError, AttributeError, TypeError):
            return {}

    def write(self, key: str, rows: Mapping[str, Metrics]) -> None:
        """Store all rows of an image; NaN is null."""
        tree = {
            name: {k: None if math.isnan(v) else v for k, v in metrics.items()}
            for name, metrics in sorted(rows.items())
        }
        self.storage.publish_bytes(json.dumps(tree).encode(), self._name(key))

    def missing(self, key: str, settings: Sequence[Setting]) -> list[Setting]:
        """Settings that are not scored on an image."""
        known = self.read(key)
        return [setting for setting in settings if setting.name not in known]

    def _name(self, key: str) -> str:
        return f"{self.folder}/{key}.json"


@dataclass(frozen=True, slots=True)
class Judge:
    """Who says what is in an image.

    Args:
        storage: The local folder that its annotations are kept in.
        folder: Name of their folder.
        auditor: A loaded segmenter; None: the truth of the rendered scenes.
        has_truth: Whether the images are rendered scenes.
    """

    storage: Storage
    folder: str
    auditor: Auditor | None
    has_truth: bool

    def scene(self, planned: PlannedSample) -> Scene | None:
        """The scene that an image shows, where that is known."""
        return render(planned.seed) if self.has_truth else None

    def annotations(self, key: str, sample: Sample, scene: Scene | None) -> Annotations:
        """What the auditor sees in an image; looked at once."""
        if self.auditor is None:
            assert scene is not None, "the truth is known of scenes only"
            return truth_annotations(scene)
        name, (height, width) = f"{self.folder}/{key}.json", sample.image.shape[:2]
        standing = self.storage.read(name)
        if standing is not None:
            return from_records(json.loads(standing), height, width)
        (found,) = annotate(self.auditor, [key], [sample.image])
        self.storage.publish_bytes(json.dumps(to_records(found)).encode(), name)
        return found


def sweep(
    captures: Captures,
    scores: Scores,
    judge: Judge,
    images: Sequence[PlannedSample],
    settings: Sequence[Setting],
    base: SegmentationConfig,
    progress: Progress = report,
    device: torch.device | None = None,
) -> None:
    """Score every setting on every image that was captured.

    Args:
        captures: The images.
        scores: Where the scores are kept.
        judge: Auditor and truth.
        images: Which images.
        settings: The rows.
        base: Whatever the rows leave open.
        progress: Told about rows and images; may raise, to stop.
        device: Where features are clustered; None: the CPU.
    """
    for planned in images:
        missing = scores.missing(planned.key, settings)
        if missing and captures.failure(planned.key) is None:
            sample, scene = captures.load(planned, device), judge.scene(planned)
            seen = judge.annotations(planned.key, sample, scene)
            done = scores.read(planned.key)
            for setting in missing:
                done[setting.name] = score_row(sample, setting, base, seen, scene)
                scores.write(planned.key, done)
                progress("samples", count=1)
        standing = len(settings) - len(missing)
        progress("shard", name=planned.key, planned=standing, reused=True)


def score_row(
    sample: Sample,
    setting: Setting,
    base: SegmentationConfig,
    seen: Annotations,
    scene: Scene | None = None,
) -> Metrics:
    """The metrics of one image under one setting, truth included where the scene is known."""
    chosen = replace(sample, features=setting.select(sample.features))
    with warnings.catch_warnings():  # said once, for all rows
        warnings.filterwarnings("ignore", "features.components must be at most")
        segmentation = segment(chosen, setting.segmentation(base))
    found = score(segmentation.mask_set, seen, segmentation.ks)
    metrics = {k: v for k, v in found.items() if not k.startswith(("chance_", "others_"))}
    return metrics if scene is None else {**metrics, **truth_scores(scene, segmentation)}
