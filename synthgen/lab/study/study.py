"""Studies from their settings to their tables; every step finds what is there and does the rest.

OUT/NAME.parquet       one row per setting and image
OUT/NAME.md            the table, and what it says
OUT/scratch/<digest>/  captures, annotations and scores of one identity (see `captures`)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synthgen.auditing.annotations import from_records, to_records
from synthgen.auditing.judge import score
from synthgen.auditing.loading import annotate, load_auditor
from synthgen.config import ALGORITHM_VERSION, AuditorConfig, Config, SegmentationConfig, digest
from synthgen.diffusion.backbones import load_backbone
from synthgen.diffusion.selection import attention_layers, select_layers
from synthgen.jobs.audit import AUDIT_VERSION
from synthgen.lab.study.captures import (
    Captures,
    Metrics,
    Scores,
    capture_bytes,
    check_scratch,
    local_storage,
)
from synthgen.lab.study.images import (
    STUDY_VERSION,
    Batch,
    Source,
    image_size,
    images_identity,
    make_images,
    plan_images,
    truth_annotations,
    truth_scores,
)
from synthgen.lab.study.markdown import study_markdown
from synthgen.lab.study.results import Results, results_bytes
from synthgen.lab.study.settings import (
    Setting,
    StudyName,
    model_layout,
    needed_layers,
    study_rows,
)
from synthgen.lab.world.render import Scene, render
from synthgen.progress import Progress, report
from synthgen.segmentation.packed import PackedMasks
from synthgen.storage.redaction import redact_tree
from synthgen.types import Annotations, Failure, Sample

TRUTH = "truth"
"""Name of the auditor that knows the rendered scenes."""

SCRATCH_GB = 20.0
SD21 = ("sd21-base", "sd21")
SD21_UNET = "1238522277c4"  # sha256 of the original float32 weights, see cards.yaml


class Study:
    """Studies that share captures and scores: `capture`, `score`, then `finalize`.

    Args:
        names: Which studies.
        config: Backbone, prompts, number of images, everything that the rows leave open.
        auditor: Who judges the masks; ``truth`` for the rendered scenes' own.
        out: Folder of the tables.
        source: Generated images, or rendered scenes through image-to-image.
        scratch_gb: Most that the captures may take, in 10^9 bytes.

    Attributes:
        batches: The images, in the batches that they are made in.
        rows: Study to its rows.
        settings: The settings of all studies, each once.
        captures: Where captures are kept.
        scores: Where scores are kept.

    Raises:
        ValueError: In one line, for settings that cannot be satisfied.
    """

    def __init__(
        self,
        names: Sequence[StudyName],
        config: Config,
        auditor: AuditorConfig,
        out: Path,
        source: Source = "generated",
        scratch_gb: float = SCRATCH_GB,
    ) -> None:
        if auditor.name == TRUTH and source != "rendered":
            raise ValueError(
                "--auditor truth must be used with --images rendered: nobody knows the truth of "
                "a generated image. Got --images generated."
            )
        self.config, self.source, self.out, self.auditor_name = config, source, out, auditor.name
        self.batches = plan_images(config, source)
        self.images = tuple(planned for batch in self.batches for planned in batch)
        self.auditor = None if auditor.name == TRUTH else load_auditor(auditor)
        self.backbone = load_backbone(config.model)
        size = image_size(self.backbone, config, source)
        layers = attention_layers(self.backbone.pipeline.unet, self.backbone.latent_size(*size))
        layout = model_layout(layers, size)
        ks = config.segmentation.clusters.ks
        self.rows = {name: study_rows(name, layout, ks) for name in dict.fromkeys(names)}
        every = (row.setting for rows in self.rows.values() for row in rows)
        self.settings = tuple(dict.fromkeys(every))
        kept = {"grids": None, "device": "cpu"}
        wanted = {"layers": needed_layers(self.settings), **kept}
        self.capture_config = config.capture.model_copy(update=wanted)
        chosen = select_layers(layers, self.capture_config.layers, self.capture_config.grids)

        identity = images_identity(config, source)
        storage = local_storage(out / "scratch" / digest(identity)[:16])
        sees = {"name": TRUTH} if self.auditor is None else dict(self.auditor.identity)
        judged = {"auditor": sees, **_judged(config, source)}
        self.annotations = f"annotations-{_digest(sees)}"
        self.captures = Captures(storage, frozenset(layer.name for layer in chosen))
        self.scores = Scores(storage, f"scores-{_digest(judged)}")
        missing = [key for key in self._unscored() if not self.captures.has(key)]
        check_scratch(capture_bytes(chosen, self.capture_config), len(missing), scratch_gb)
        for name, content in {"identity": identity, self.scores.folder: judged}.items():
            described = json.dumps(redact_tree(content), indent=1) + "\n"
            storage.publish_bytes(described.encode(), f"{name}.json")

    def _unscored(self) -> list[str]:
        """Keys of the images that some row is not scored on."""
        return [x.key for x in self.images if self.scores.missing(x.key, self.settings)]

    def capture(self, progress: Progress = report) -> None:
        """Capture the images that some row is not scored on; ``progress`` may raise, to stop."""

        def make(batch: Batch) -> list[Sample | Failure]:
            return make_images(self.backbone, batch, self.config, self.capture_config, self.source)

        self.captures.fill(self.batches, self._unscored(), make, progress)

    def score(self, progress: Progress = report) -> None:
        """Score every row on every captured image; ``progress`` may raise, to stop."""
        for planned in self.images:
            missing = self.scores.missing(planned.key, self.settings)
            if missing and self.captures.failure(planned.key) is None:
                sample = self.captures.load(planned, self.backbone.device)
                scene = render(planned.seed) if self.source == "rendered" else None
                seen = self._annotations(planned.key, sample, scene)
                done = self.scores.read(planned.key)
                for setting in missing:
                    done[setting.name] = score_row(
                        sample, setting, self.config.segmentation, seen, scene
                    )
                    self.scores.write(planned.key, done)
                    progress("samples", count=1)
            existing = len(self.settings) - len(missing)
            progress("shard", name=planned.key, planned=existing, reused=True)

    def _annotations(self, key: str, sample: Sample, scene: Scene | None) -> Annotations:
        """What the auditor sees in an image; looked at once."""
        if self.auditor is None:
            assert scene is not None, "the truth is known of scenes only"
            return truth_annotations(scene)
        storage, name = self.captures.storage, f"{self.annotations}/{key}.json"
        existing = storage.read(name)
        if existing is not None:
            return from_records(json.loads(existing), *sample.image.shape[:2])
        (found,) = annotate(self.auditor, [key], [sample.image])
        storage.publish_bytes(json.dumps(to_records(found)).encode(), name)
        return found

    def finalize(self) -> list[Path]:
        """Write the tables of every study; returns the Markdown files.

        Raises:
            RuntimeError: If rows are missing, or not a single image could be made.
        """
        if missing := [key for key in self._unscored() if not self.captures.failure(key)]:
            raise RuntimeError(
                f"Every row must be scored before tables are written. Got {len(missing)} images "
                f"with missing rows, from {missing[0]} on. Run the same command again."
            )
        storage, written = local_storage(self.out), []
        for name in self.rows:
            results = self.results(name)
            storage.publish_bytes(results_bytes(results), f"{name}.parquet")
            storage.publish_bytes(study_markdown(results).encode(), f"{name}.md")
            written.append(self.out / f"{name}.md")
        return written

    def results(self, name: StudyName) -> Results:
        """The scores of a study as they are now."""
        reasons = {planned: self.captures.failure(planned.key) for planned in self.images}
        failures = Counter(reason for reason in reasons.values() if reason is not None)
        known = {x: self.scores.read(x.key) for x, reason in reasons.items() if reason is None}
        if not known:
            raise RuntimeError(
                f"A study must have at least one image. Got {dict(failures)}: look at the prompts "
                "and the backbone."
            )
        rows = [[by_row[row.setting.name] for by_row in known.values()] for row in self.rows[name]]
        hashes = map(str, self.backbone.identity["sha256"].values())
        return Results(
            study=name,
            rows=self.rows[name],
            images=tuple(known),
            metrics={
                metric: np.array([[scores.get(metric, np.nan) for scores in row] for row in rows])
                for metric in rows[0][0]  # of all k; a row of one k lacks those of the others
            },
            failures=failures,
            about=self._about(),
            is_sd21=self.backbone.card.name in SD21
            or any(sha.startswith(SD21_UNET) for sha in hashes),
            family=_family(self.auditor_name),
        )

    def _about(self) -> dict[str, str]:
        """What is run, for people; names of files, not where they lie."""
        prompts = Path(self.config.prompts).name
        images = {
            "generated": f"drawn from the prompts '{prompts}', seed {self.config.seed}",
            "rendered": "rendered scenes with known truth, through image-to-image",
        }
        return {
            "backbone": self.backbone.card.name,
            "images": images[self.source],
            "k": ", ".join(str(k) for k in self.config.segmentation.clusters.ks),
            "auditor": self.auditor_name,
        }


def score_row(
    sample: Sample,
    setting: Setting,
    base: SegmentationConfig,
    seen: Annotations,
    scene: Scene | None = None,
) -> Metrics:
    """The metrics of one image under one setting, truth included where the scene is known."""
    segmentation = setting.segment(sample, base)
    ours, size = segmentation.mask_set, sample.image.shape[:2]
    masks, theirs = (PackedMasks.of(x.masks, *size) for x in (ours, seen))
    found = score(masks, ours.members, theirs, segmentation.ks)
    metrics = {
        k: v for k, v in found.items() if not k.startswith(("color_baseline_", "shuffled_masks_"))
    }
    return metrics if scene is None else {**metrics, **truth_scores(scene, segmentation)}


def _judged(config: Config, source: Source) -> dict[str, Any]:
    """All that determines scores but the images and the auditor."""
    decided = {"features": {"components", "reweight", "normalization"}, "clusters": {"resolution"}}
    return {
        "segmentation": config.segmentation.model_dump(mode="json", exclude=decided),
        "truth": source == "rendered",
        "versions": [STUDY_VERSION, ALGORITHM_VERSION, AUDIT_VERSION],
    }


def _digest(content: Mapping[str, Any]) -> str:
    return digest(json.loads(json.dumps(content)))[:12]


def _family(auditor: str) -> str:
    """What the paper would call an auditor in the head of its columns.

    >>> _family("scenes-sam"), _family("mask2former"), _family("truth")
    ('SAM', 'M2F', 'Truth')
    """
    name = auditor.lower()
    if "mask2former" in name or "m2f" in name:
        return "M2F"
    return "SAM" if "sam" in name else name.rsplit(":", 1)[0].capitalize()
