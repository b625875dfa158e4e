"""``synthgen study``: the paper's parameter studies, for any backbone."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.display import JsonLogs, show_progress
from synthgen.cli.options import refuse_unused
from synthgen.config import AuditorConfig, Config, load, load_audit

DECIDED = (
    *("capture.layers", "capture.grids", "capture.heatmaps"),
    *("segmentation.features.components", "segmentation.features.reweight"),
    "segmentation.clusters.resolution",
)
"""Settings that the rows of a study decide."""


class Name(StrEnum):
    """A study."""

    layers = "layers"
    components = "components"
    resolutions = "resolutions"
    mid = "mid"
    upsampling = "upsampling"


class Images(StrEnum):
    """Where the images come from."""

    generated = "generated"
    rendered = "rendered"


def study(
    names: Annotated[
        list[Name],
        typer.Argument(
            metavar="NAME...",
            help="layers (table 2), mid (8), resolutions (6), components (7), upsampling (6 "
            "against 7); several share captures and scores.",
        ),
    ],
    backbone: Annotated[
        str, typer.Option(help="Card, local diffusers folder, or hub id.")
    ] = "scenes",
    prompts: Annotated[
        str | None, typer.Option(help="Packaged name or prompt file.", show_default="scenes")
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Images; BL took 41 to 50.")] = 50,
    images: Annotated[
        Images,
        typer.Option(
            help="generated from prompts; rendered: scenes with known truth through "
            "image-to-image, so that rows are also scored against objects and parts."
        ),
    ] = Images.generated,
    auditor: Annotated[
        str,
        typer.Option(
            help="scenes-sam, sam, mask2former, …, 'module:attribute'; truth: the rendered "
            "scenes' own masks."
        ),
    ] = "scenes-sam",
    checkpoint: Annotated[
        str | None, typer.Option(help="File or folder of the auditor's weights.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="What the checkpoint's hash must be.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the tables; run again to go on.")] = Path(
        "synthgen-study"
    ),
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Folder of captures and scores, to delete later.", show_default="OUT/scratch"
        ),
    ] = None,
    scratch_gb: Annotated[
        float, typer.Option(min=0.0, help="Most that new captures may take, in GB.")
    ] = 20.0,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Change what rows leave open: seed=1, segmentation.clusters.ks=[2,5], "
            "auditor.generator.points_per_side=16 (repeatable).",
        ),
    ] = None,
    json_logs: JsonLogs = False,
) -> None:
    r"""Repeat the paper's parameter studies with a backbone of your choice.

    Every image is captured once and every row is swept over what was captured; run again to go
    on. Each study gives NAME.md, a table with the paper's columns that ends in what it says, and
    NAME.parquet, all metrics of every row on every image.

    Examples:

      synthgen study layers

      synthgen study layers mid --num 100 --images rendered --auditor truth --out study

      synthgen study components --backbone sd21-base --prompts voc --auditor sam \
        --checkpoint sam_vit_l_0b3195.pth
    """
    refuse_unused({"--prompts": prompts}, images is Images.rendered, "with --images rendered")
    config, judge = _settings(backbone, prompts or "scenes", num, overrides or [], auditor)
    given = {"checkpoint": checkpoint, "sha256": sha256}
    judge = judge.model_copy(update={k: v for k, v in given.items() if v is not None})
    written = _run(names, config, judge, out, images, scratch, scratch_gb, json_logs)
    for path in written:
        typer.echo(path)


def _settings(
    backbone: str, prompts: str, num: int, overrides: list[str], auditor: str
) -> tuple[Config, AuditorConfig]:
    """The two trees that ``--set`` may change: a dataset's configuration, and the auditor."""
    keys = [assignment.partition("=")[0].strip() for assignment in overrides]
    for key in keys:
        if any(name == key or name.startswith(f"{key}.") for name in DECIDED):
            raise ValueError(f"--set {key} must be left out: the rows of a study decide it.")
    of_auditor = [text for text in overrides if text.strip().startswith("auditor.")]
    given = {"model.card": backbone, "prompts": prompts, "num": num}
    config = load(
        overrides=[
            *(f"{key}={json.dumps(value)}" for key, value in given.items()),
            *(text for text in overrides if text not in of_auditor),
        ]
    )
    audit = load_audit([f"auditor.name={json.dumps(auditor)}", *of_auditor])
    return config, audit.auditor


def _run(
    names: list[Name],
    config: Config,
    auditor: AuditorConfig,
    out: Path,
    images: Images,
    scratch: Path | None,
    scratch_gb: float,
    json_logs: bool,
) -> list[Path]:
    """Capture, then sweep, each behind a progress display."""
    from synthgen.lab.study import study as library

    chosen: list[Any] = [name.value for name in names]
    prepared = library.prepare(chosen, config, auditor, out, images.value, scratch, scratch_gb)
    num, rows = len(prepared.images), len(prepared.settings)
    with show_progress(num, len(prepared.batches), json_logs, ("images", "batches")):
        library.capture(prepared)
    with show_progress(num * rows, num, json_logs, ("rows", "images")):
        library.score(prepared)
    return library.conclude(prepared)
