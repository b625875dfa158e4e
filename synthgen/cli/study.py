"""``synthgen study``: the paper's parameter studies, for any backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.display import JsonLogs, show_progress
from synthgen.cli.options import refuse_unused
from synthgen.config import AuditorConfig, Config, load, load_audit

DECIDED = (
    *("capture.layers", "capture.grids"),
    *("segmentation.features.components", "segmentation.features.reweight"),
    "segmentation.clusters.resolution",
)
"""Settings that the rows of a study decide."""

Name = StrEnum("Name", ["layers", "components", "resolutions", "mid", "upsampling", "refinement"])
Images = StrEnum("Images", ["generated", "rendered"])


def study(
    names: Annotated[
        list[Name],
        typer.Argument(
            metavar="NAME...",
            help="layers (table 2), mid (8), resolutions (6), components (7), upsampling (6 "
            "against 7), refinement (ours: borders per grid and per k); several share captures "
            "and scores.",
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
    out: Annotated[Path, typer.Option(help="Folder of the tables; run again to go on.")] = Path(
        "synthgen-study"
    ),
    scratch_gb: Annotated[
        float, typer.Option(min=0.0, help="Most that captures in OUT/scratch may take, in GB.")
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
    NAME.parquet, all metrics of every row on every image. OUT/scratch may be deleted.

    Examples:

      synthgen study layers

      synthgen study layers mid --num 100 --images rendered --auditor truth --out study

      synthgen study components --backbone sd21-base --prompts voc --auditor sam \
        --checkpoint sam_vit_l_0b3195.pth
    """
    refuse_unused({"--prompts": prompts}, images is Images.rendered, "with --images rendered")
    for key in (assignment.partition("=")[0].strip() for assignment in overrides or []):
        if any(name == key or name.startswith(f"{key}.") for name in DECIDED):
            raise ValueError(f"--set {key} must be left out: the rows of a study decide it.")
    given = {"model.card": backbone, "prompts": prompts or "scenes", "num": num}
    given |= {"auditor.name": auditor} | ({"auditor.checkpoint": checkpoint} if checkpoint else {})
    config, judge = read_settings(given, overrides or [])

    from synthgen.lab.study.study import Study

    wanted: list[Any] = [name.value for name in names]
    source: Any = images.value
    chosen = Study(wanted, config, judge, out, source, scratch_gb)
    num, rows = len(chosen.images), len(chosen.settings)
    with show_progress(num, len(chosen.batches), json_logs, ("images", "batches")):
        chosen.capture()
    with show_progress(num * rows, num, json_logs, ("rows", "images")):
        chosen.score()
    for path in chosen.finalize():
        typer.echo(path)


def read_settings(
    given: Mapping[str, object], overrides: Sequence[str]
) -> tuple[Config, AuditorConfig]:
    """The two trees that ``--set`` may change: a dataset's configuration, and the auditor.

    Args:
        given: Values by key; an auditor's begin with ``auditor.``.
        overrides: Assignments ``key=value`` that win over them.

    Raises:
        ValueError: In one line, for an unknown key or a bad value.
    """
    every = [*(f"{key}={json.dumps(value)}" for key, value in given.items()), *overrides]
    of_auditor = [text for text in every if text.strip().startswith("auditor.")]
    config = load(overrides=[text for text in every if text not in of_auditor])
    return config, load_audit(of_auditor).auditor
