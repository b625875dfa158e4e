"""``synthgen export`` and ``synthgen push``: datasets for other tools and other places."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthgen.cli.command import Result, run_job
from synthgen.cli.options import Finished, Labels
from synthgen.config import load_section
from synthgen.storage.urls import scheme_of


def export(
    directory: Finished,
    out: Annotated[str, typer.Argument(metavar="OUT", help="New or empty folder, or URL.")],
    format: Annotated[
        str,
        typer.Option(
            help="coco, coco-panoptic, voc, fiftyone, yolo-seg, hf-parquet, ade, or "
            "'module:attribute'."
        ),
    ] = "coco",
    split: Annotated[
        str, typer.Option(help="Shares of train, val and test by prompt: 0.9/0.1.")
    ] = "1",
    audited: Annotated[
        str | None, typer.Option(help="Id of an audit; leaves out what it rejects.")
    ] = None,
    labels: Labels = None,
    masks: Annotated[
        str,
        typer.Option(help="labeled: objects by class (without labels: masks); all: every mask."),
    ] = "labeled",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Change one of min_label_score (less sure objects: pixels to ignore), min_area "
            "(pixels, or a share of the image; smaller objects join what they border on), "
            "segmentation (of COCO: polygon, rle, rle-list), keep_only (false: rejected samples "
            "stay); repeatable.",
        ),
    ] = None,
) -> Result:
    """Write a finished dataset in a format that other tools read.

    Run again to go on after an interruption; images of one prompt are never in two splits.

    Examples:

      synthgen export data/scenes data/coco --format coco --split 0.9/0.1

      synthgen export data/voc data/yolo --format yolo-seg --audited sam-1a2b3c4d

      synthgen export data/scenes data/masks --masks all --set segmentation=rle
    """
    from synthgen.export.source import ExportSettings
    from synthgen.jobs import ExportJob

    if scheme_of(out) is None and Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"OUT must be a new or empty folder. Got the file {out!r}.")
    given = {"format": format, "split": split, "audited": audited, "labels": labels}
    settings = load_section(ExportSettings, overrides or [], masks=masks, **given)
    done, _ = run_job(lambda: ExportJob(directory, out, settings))
    counts = done["counts"]["splits"]
    splits = ", ".join(f"{name} {count}" for name, count in counts.items())
    lines = [
        f"{sum(counts.values())} images ({splits}) as {format} in {out}",
        f"How to load it: {out}/README.md",
    ]
    return Result(done, lines)


def push(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A finished dataset or export.")],
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="s3://bucket/folder, hf://datasets/owner/name or file:///folder."
        ),
    ],
) -> Result:
    """Send a finished dataset or export to a hub repository, an object store or a folder.

    What is there already is skipped; the manifest goes last. Run again to go on.

    Examples:

      synthgen push data/scenes hf://datasets/me/scenes

      synthgen push data/coco s3://bucket/coco
    """
    from synthgen.export.push import push as run

    done = run(directory, url)
    line = f"{done.sent} files sent ({done.num_bytes / 1e6:.1f} MB), {done.skipped} there"
    return Result({"sent": done.sent, "skipped": done.skipped, "bytes": done.num_bytes}, [line])
