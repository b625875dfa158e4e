"""``synthgen label``: class labels beside a finished dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.command import Result, run_job
from synthgen.cli.options import Engine, EngineOption, Finished, FirstNum, Set, Workers
from synthgen.config import LabelConfig, load
from synthgen.registry import LABELERS


def label(
    out: Finished,
    method: Annotated[
        str, typer.Option(help=f"{', '.join(LABELERS)}, or 'module:attribute'.")
    ] = "clusters",
    ks: Annotated[
        str | None, typer.Option(help="Other numbers of clusters than the dataset's: 2,5,10.")
    ] = None,
    label_id: Annotated[
        str | None, typer.Option("--id", help="Name in labels/; default: method and a hash.")
    ] = None,
    overrides: Set = None,
    num: FirstNum = None,
    engine: EngineOption = Engine.flow,
    workers: Workers = 1,
) -> Result:
    """Put class labels on a finished dataset, beside those that it has.

    Samples are made again from their seeds, so this takes as long as making them; data/ is not
    touched. Labels are in DIR/labels; open_dataset(DIR, labels=ID) reads them. Run again to go
    on; neither --engine nor --workers changes a byte. To label while making a dataset:
    synthgen generate --set labeling.method=clusters.

    Examples:

      synthgen label data/scenes

      synthgen label data/scenes --method vote --ks 4,7,10 --id authors

      synthgen label data/voc --set labeling.text=classes --set labeling.margin=0.1
    """
    settings, chosen = read_settings(method, ks, overrides or [])
    summary = run_label(out, settings, chosen, label_id, num, engine, workers)
    return Result(summary, _lines(summary, out))


def read_settings(
    method: str, ks: str | None, overrides: list[str]
) -> tuple[LabelConfig, tuple[int, ...] | None]:
    """The labels' settings, and other ks where they are asked for.

    Raises:
        ValueError: In one line, for a key outside of ``labeling`` or a bad value.
    """
    for assignment in overrides:
        if not assignment.startswith("labeling."):
            raise ValueError(
                f"--set must change a setting of labeling here, such as labeling.margin=0.05. "
                f"Got {assignment!r:.60}."
            )
    given = [f"labeling.method={json.dumps(method)}", *overrides]
    if ks is not None:
        given.append(f"segmentation.clusters.ks=[{ks}]")
    config = load(overrides=given)
    return config.labeling, None if ks is None else config.segmentation.clusters.ks


def run_label(
    out: str | Path,
    settings: LabelConfig,
    ks: tuple[int, ...] | None = None,
    label_id: str | None = None,
    num: int | None = None,
    engine: Engine = Engine.inline,
    workers: int = 1,
) -> dict[str, Any]:
    """Label behind a progress display; returns the summary."""

    def job() -> Any:
        from synthgen.jobs import LabelJob

        return LabelJob(out, settings, ks, label_id, num)

    given = {"out": str(out), "settings": settings, "ks": ks, "num": num, "workers": workers}
    return run_job(job, engine, lambda made: {**given, "label_id": made.result_id})[0]


def _lines(summary: dict[str, Any], out: str | Path) -> list[str]:
    """The statistics of labels, class by class."""
    statistics = summary["statistics"]
    classes = statistics["classes"]
    counted = sum(row["pixels"] for row in classes.values())
    total = max(1, counted + statistics["background"] + statistics["undecided"])
    return [
        f"Labels {summary['id']} of {statistics['images']} samples",
        f"  {'class':<20}{'images':>8}{'pixels':>9}{'score':>7}{'not found':>11}",
        *(
            f"  {name:<20}{row['images']:>8}{row['pixels'] / total:>9.2%}{row['score']:>7.2f}"
            f"{row['not_found']:>11}"
            for name, row in classes.items()
        ),
        f"  {'background':<28}{statistics['background'] / total:>9.2%}",
        f"  {'undecided':<28}{statistics['undecided'] / total:>9.2%}",
        f"  look at them  synthgen report {out} --labels {summary['id']}",
        f"  in Python     synthgen.open_dataset({str(out)!r}, labels={summary['id']!r})",
    ]
