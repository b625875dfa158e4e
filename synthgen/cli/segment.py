"""``synthgen evaluate segment`` and ``language``: masks and classes against annotated images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.display import show_progress

Data = Annotated[
    str,
    typer.Option(
        help="scenes, scenes-tuning, voc, context, ade, cityscapes(-27), coco, cocostuff(-171), "
        "bsds, folder."
    ),
]
Root = Annotated[Path | None, typer.Option(help="Folder of the data set, as it was published.")]
Num = Annotated[int, typer.Option(min=1, help="Images, the first so many.")]
Out = Annotated[Path, typer.Option(help="Output folder; run again to go on.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def evaluate(
    data: Data = "scenes",
    root: Root = None,
    num: Num = 200,
    out: Out = Path("synthgen-segment"),
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Change methods (\\[per-head,ncut]), refiners, split (val), captions (true), "
            "timestep (100), batch_size, or model.card and the like (repeatable).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    r"""Masks of several segmenters against annotated images: IoU by class, object, one to one.

    A segmenter of yours is a method: 'module:attribute'. OUT holds segment.md, segment.png,
    segment.json and rows.parquet; what was measured is kept, and methods that are new are added.

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


def language(
    data: Data = "scenes",
    root: Root = None,
    num: Num = 200,
    methods: Annotated[
        str | None,
        typer.Option(help="Comma-separated: GEM, AggGEM, HeadClust, GTClust, AggSD, GEMW, …"),
    ] = None,
    out: Out = Path("synthgen-language"),
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Change clip (folder), template, side, blocks, temperature, background (texts), "
            "rest, opening, joint, start (middle), timestep, split (val), or model.card and the "
            "like (repeatable).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    r"""Classes by their names against annotated images: GEM, self-attention, named clusters.

    The methods of Le, *Language-based segmentation*: mIoU at 320 x 320, precision and recall of
    the classes of images. OUT holds language.md, language.png, language.json and rows.parquet;
    images that were measured are kept.

    Examples:

      synthgen evaluate language --num 50

      synthgen evaluate language --data voc --root VOCdevkit/VOC2012 -s model.card=sd15 \
        -s clip=weights/metaclip-b16-400m

      synthgen evaluate language --methods GEM,GEMW,clusters:ward
    """
    from synthgen.config import load_section
    from synthgen.lab.language.evaluate import LanguageSettings, evaluate_language
    from synthgen.lab.language.scores import language_table

    given: dict[str, Any] = {"data": data, "root": root, "num": num}
    if methods is not None:
        given["methods"] = tuple(name.strip() for name in methods.split(","))
    settings = load_section(LanguageSettings, overrides or [], **given)
    with show_progress(num, 1, words=("images", "tables")):
        result = evaluate_language(out, settings)
    typer.echo(json.dumps(result) if as_json else language_table(result))
