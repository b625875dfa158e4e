"""``synthgen evaluate segment``: masks against annotated images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from synthgen.cli.display import show_progress


def evaluate(
    data: Annotated[
        str,
        typer.Option(help="scenes, scenes-tuning, voc, ade, cityscapes, coco, folder."),
    ] = "scenes",
    root: Annotated[
        Path | None, typer.Option(help="Folder of the data set, as it was published.")
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Images, the first so many.")] = 200,
    out: Annotated[Path, typer.Option(help="Output folder; run again to go on.")] = Path(
        "synthgen-segment"
    ),
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Change methods (\\[per-head,ncut]), refiners, split (val), captions (true), "
            "timestep (100), batch_size, or model.card and the like (repeatable).",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output.")
    ] = False,
) -> None:
    r"""Masks of several segmenters against annotated images: IoU by class, object, one to one.

    A segmenter of yours is a method: 'module:attribute'. OUT holds segment.md, segment.png,
    segment.json and rows.parquet; images that were measured are kept.

    Examples:

      synthgen evaluate segment --num 50

      synthgen evaluate segment --data voc --root VOCdevkit/VOC2012 -s model.card=sd21-base

      synthgen evaluate segment --data folder --root mine \
        -s methods=\[per-head,my.module:mine]
    """
    from synthgen.config import load_section
    from synthgen.lab.segment.evaluate import SegmentSettings, evaluate_segment, segment_table

    given = {"data": data, "root": root, "num": num}
    settings = load_section(SegmentSettings, overrides or [], **given)
    with show_progress(num, 1, words=("images", "tables")):
        result = evaluate_segment(out, settings)
    typer.echo(json.dumps(result) if as_json else segment_table(result))
