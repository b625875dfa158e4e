"""A study from its settings to its tables; every step finds what stands and does the rest.

OUT/NAME.parquet   one row per setting and image
OUT/NAME.md        the table, and what it says
SCRATCH/<digest>/  captures, annotations and scores of one identity (see `captures`, `sweep`)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen.auditing.loading import load_auditor
from synthgen.auditing.plan import AUDIT_VERSION
from synthgen.config import ALGORITHM_VERSION, AuditorConfig, CaptureConfig, Config, digest
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.diffusion.selection import Layer, attention_layers, select_layers
from synthgen.lab.study.captures import (
    Captures,
    capture_bytes,
    capture_images,
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
)
from synthgen.lab.study.markdown import study_markdown
from synthgen.lab.study.results import Results, results_bytes
from synthgen.lab.study.settings import (
    Row,
    Setting,
    StudyName,
    model_layout,
    needed_layers,
    study_rows,
)
from synthgen.lab.study.sweep import Judge, Scores, sweep
from synthgen.progress import Progress, report
from synthgen.storage.publish import Storage
from synthgen.storage.redaction import redact_tree
from synthgen.types import PlannedSample

TRUTH = "truth"
"""Name of the auditor that knows the rendered scenes."""

SCRATCH_GB = 20.0
SD21 = ("sd21-base", "sd21")
SD21_UNET = "1238522277c4"  # sha256 of the original float32 weights, see cards.yaml


@dataclass(frozen=True, slots=True)
class Prepared:
    """Studies that are ready to run.

    Args:
        config: Backbone, prompts, number of images, everything that rows leave open.
        source: Where the images come from.
        out: Folder of the tables.
        batches: The images, in the batches that they are made in.
        rows: Study to its rows.
        capture: What is captured of every image.
        captures: Where captures are kept.
        scores: Where scores are kept.
        judge: The auditor.
        about: What is run, for people.
    """

    config: Config
    source: Source
    out: Path
    batches: tuple[Batch, ...]
    rows: Mapping[StudyName, tuple[Row, ...]]
    capture: CaptureConfig
    captures: Captures
    scores: Scores
    judge: Judge
    about: Mapping[str, str]

    @property
    def images(self) -> tuple[PlannedSample, ...]:
        """All images, in order."""
        return tuple(planned for batch in self.batches for planned in batch)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings of all studies, each once."""
        return tuple(dict.fromkeys(row.setting for rows in self.rows.values() for row in rows))


def prepare(
    names: Sequence[StudyName],
    config: Config,
    auditor: AuditorConfig,
    out: Path,
    source: Source = "generated",
    scratch: Path | None = None,
    scratch_gb: float = SCRATCH_GB,
) -> Prepared:
    """Settle everything before the first image is made.

    Args:
        names: Which studies; they share captures and scores.
        config: Backbone, prompts, number of images, everything that the rows leave open.
        auditor: Who judges the masks; ``truth`` for the rendered scenes' own.
        out: Folder of the tables.
        source: Generated images, or rendered scenes through image-to-image.
        scratch: Folder of captures and scores; None: ``scratch`` in ``out``.
        scratch_gb: Most that the captures may take, in 10^9 bytes.

    Raises:
        ValueError: In one line, for settings that cannot be satisfied.
    """
    _check_truth(auditor, source)
    groups = plan_images(config, source)
    loaded = None if auditor.name == TRUTH else load_auditor(auditor)
    backbone = load_backbone(config.model)
    rows, settings, chosen = _plan_rows(names, backbone, config, source)
    identity = images_identity(config, source)
    storage = local_storage((scratch or out / "scratch") / digest(identity)[:16])
    sees = {"name": TRUTH} if loaded is None else dict(loaded.identity)
    judged = {"auditor": sees, **_judged(config, source)}
    prepared = Prepared(
        config=config,
        source=source,
        out=out,
        batches=groups,
        rows=rows,
        capture=settings,
        captures=Captures(storage, frozenset(layer.name for layer in chosen)),
        scores=Scores(storage, f"scores-{_digest(judged)}"),
        judge=Judge(storage, f"annotations-{_digest(sees)}", loaded, source == "rendered"),
        about=_about(backbone, config, auditor, source),
    )
    missing = [key for key in _unscored(prepared) if not prepared.captures.stands(key)]
    check_scratch(capture_bytes(chosen, settings), len(missing), scratch_gb)
    _describe(storage, {"identity": identity, prepared.scores.folder: judged})
    return prepared


def capture(prepared: Prepared, progress: Progress = report) -> None:
    """Make and capture the images that some row is not scored on yet.

    Args:
        prepared: From `prepare`.
        progress: Told about every image; may raise, to stop.
    """
    backbone = load_backbone(prepared.config.model)

    def make(batch: Batch) -> Sequence[Any]:
        config, source = prepared.config, prepared.source
        return make_images(backbone, batch, config, prepared.capture, source)

    wanted = _unscored(prepared)
    capture_images(prepared.captures, prepared.batches, wanted, make, progress)


def score(prepared: Prepared, progress: Progress = report) -> None:
    """Score every row on every captured image; ``progress`` is told and may raise, to stop."""
    sweep(
        prepared.captures,
        prepared.scores,
        prepared.judge,
        prepared.images,
        prepared.settings,
        prepared.config.segmentation,
        progress,
        load_backbone(prepared.config.model).device,
    )


def conclude(prepared: Prepared) -> list[Path]:
    """Write the tables of every study; returns the Markdown files.

    Raises:
        RuntimeError: If rows are missing, or not a single image could be made.
    """
    if missing := [key for key in _unscored(prepared) if not prepared.captures.failure(key)]:
        raise RuntimeError(
            f"Every row must be scored before a study is concluded. Got {len(missing)} images "
            f"with missing rows, from {missing[0]} on. Run the same command again."
        )
    storage, written = local_storage(prepared.out), []
    for name in prepared.rows:
        results = collect(prepared, name)
        storage.publish_bytes(results_bytes(results), f"{name}.parquet")
        storage.publish_bytes(study_markdown(results).encode(), f"{name}.md")
        written.append(prepared.out / f"{name}.md")
    return written


def collect(prepared: Prepared, name: StudyName) -> Results:
    """The scores of a study as they stand."""
    rows, known = prepared.rows[name], {}
    failures: Counter[str] = Counter()
    for planned in prepared.images:
        reason = prepared.captures.failure(planned.key)
        if reason is None:
            known[planned] = prepared.scores.read(planned.key)
        else:
            failures[reason] += 1
    if not known:
        raise RuntimeError(
            f"A study must have at least one image. Got {dict(failures)}: look at the prompts "
            "and the backbone."
        )
    return Results(
        study=name,
        rows=rows,
        images=tuple(known),
        metrics=tuple(
            tuple(scores[row.setting.name] for scores in known.values()) for row in rows
        ),
        failures=failures,
        about=prepared.about,
        is_sd21=_is_sd21(load_backbone(prepared.config.model)),
        family=_family(prepared.about["auditor"]),
    )


def _check_truth(auditor: AuditorConfig, source: Source) -> None:
    if auditor.name == TRUTH and source != "rendered":
        raise ValueError(
            "--auditor truth must be used with --images rendered: nobody knows the truth of a "
            "generated image. Got --images generated."
        )


def _plan_rows(
    names: Sequence[StudyName], backbone: Backbone, config: Config, source: Source
) -> tuple[Mapping[StudyName, tuple[Row, ...]], CaptureConfig, Sequence[Layer]]:
    """The rows of each study, what they need captured, and the layers that it comes from."""
    size = image_size(backbone, config, source)
    layers = attention_layers(backbone.pipeline.unet, backbone.latent_size(*size))
    layout = model_layout(layers, size)
    rows = {name: study_rows(name, layout) for name in dict.fromkeys(names)}
    settings = _capture_settings(config, rows)
    return rows, settings, select_layers(layers, settings)


def _capture_settings(config: Config, rows: Mapping[StudyName, tuple[Row, ...]]) -> CaptureConfig:
    """What must be captured of every image so that every row can be made from it."""
    wanted = needed_layers(row for own in rows.values() for row in own)
    kept = {"layers": wanted, "grids": None, "heatmaps": "none", "device": "cpu"}
    return config.capture.model_copy(update=kept)


def _describe(storage: Storage, contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Write down what the digests in the names of folders stand for."""
    for name, content in contents.items():
        described = json.dumps(redact_tree(content), indent=1) + "\n"
        storage.publish_bytes(described.encode(), f"{name}.json")


def _unscored(prepared: Prepared) -> list[str]:
    settings, scores = prepared.settings, prepared.scores
    return [image.key for image in prepared.images if scores.missing(image.key, settings)]


def _judged(config: Config, source: Source) -> dict[str, Any]:
    """All that determines scores but the images and the auditor."""
    decided = {"features": {"components", "reweight"}, "clusters": {"resolution"}}
    return {
        "segmentation": config.segmentation.model_dump(mode="json", exclude=decided),
        "truth": source == "rendered",
        "versions": [STUDY_VERSION, ALGORITHM_VERSION, AUDIT_VERSION],
    }


def _digest(content: Mapping[str, Any]) -> str:
    return digest(json.loads(json.dumps(content)))[:12]


def _about(
    backbone: Backbone, config: Config, auditor: AuditorConfig, source: Source
) -> dict[str, str]:
    """What is run, for people; names of files, not where they lie."""
    images = {
        "generated": f"drawn from the prompts '{Path(config.prompts).name}', seed {config.seed}",
        "rendered": "rendered scenes with known truth, through image-to-image",
    }
    return {
        "backbone": backbone.card.name,
        "images": images[source],
        "k": ", ".join(str(k) for k in config.segmentation.clusters.ks),
        "auditor": auditor.name,
    }


def _family(auditor: str) -> str:
    """What the paper would call an auditor in the head of its columns.

    >>> _family("scenes-sam"), _family("mask2former"), _family("truth")
    ('SAM', 'M2F', 'Truth')
    """
    name = auditor.lower()
    if "mask2former" in name or "m2f" in name:
        return "M2F"
    return "SAM" if "sam" in name else name.rsplit(":", 1)[0].capitalize()


def _is_sd21(backbone: Backbone) -> bool:
    hashes = backbone.identity["sha256"].values()
    return backbone.card.name in SD21 or any(str(sha).startswith(SD21_UNET) for sha in hashes)
