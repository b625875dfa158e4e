"""``synthgen label``: class labels beside a finished dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.display import JsonLogs, show_progress
from synthgen.cli.engine import Engine, flow_server
from synthgen.cli.generate import Workers
from synthgen.cli.options import say
from synthgen.config import LabelConfig, load

METHODS = "clusters, propagate, dataset-diffusion, vote, argmax"


def label(
    out: Annotated[str, typer.Argument(metavar="DIR", help="A finished dataset.")],
    method: Annotated[str, typer.Option(help=f"{METHODS}, or 'module:attribute'.")] = "clusters",
    ks: Annotated[
        str | None, typer.Option(help="Other numbers of clusters than the dataset's: 2,5,10.")
    ] = None,
    label_id: Annotated[
        str | None, typer.Option("--id", help="Name in labels/; default: method and a hash.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="Change one setting: labeling.margin=0.05 (repeatable)."),
    ] = None,
    num: Annotated[
        int | None, typer.Option(min=1, help="Whole shards until this many samples.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="Prefect flow, or in-process.")] = Engine.flow,
    workers: Workers = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="The summary as one JSON object on standard output.")
    ] = False,
    json_logs: JsonLogs = False,
) -> None:
    """Put class labels on a finished dataset, beside those that it has.

    Samples are made again from their seeds, so this takes as long as making them; data/ is not
    touched. Labels stand in DIR/labels; open_dataset(DIR, labels=ID) reads them. Run again to go
    on; neither --engine nor --workers changes a byte. To label while making a dataset:
    synthgen generate --set labeling.method=clusters.

    Examples:

      synthgen label data/scenes

      synthgen label data/scenes --method vote --ks 4,7,10 --id authors

      synthgen label data/voc --set labeling.text=classes --set labeling.margin=0.1
    """
    settings, chosen = read_settings(method, ks, overrides or [])
    summary = run_label(out, settings, chosen, label_id, num, engine, workers, json_logs)
    if as_json:
        print(json.dumps(summary), flush=True)
    else:
        show_summary(summary, out)


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
    json_logs: bool = False,
) -> dict[str, Any]:
    """Label behind a progress display; returns the summary."""
    with flow_server(engine) as run_flow:
        from synthgen.jobs.label import begin, conclude, label_shard

        plan = begin(out, settings, ks, label_id, num)  # a mistake is one line, before any flow
        with show_progress(sum(plan.samples), len(plan.shards), json_logs):
            if engine is Engine.flow:
                from synthgen.flows.label import label as flow

                chosen = (str(out), settings, ks, plan.label_id, num)
                summary: dict[str, Any] = run_flow(flow, *chosen, workers=workers)
                return summary
            for shard in plan.shards:
                label_shard(plan, shard)
        return conclude(plan)


def show_summary(summary: dict[str, Any], out: str | Path) -> None:
    """Print the statistics of labels, class by class."""
    statistics = summary["statistics"]
    classes = statistics["classes"]
    counted = sum(row["pixels"] for row in classes.values())
    total = max(1, counted + statistics["background"] + statistics["undecided"])
    say(f"Labels {summary['id']} of {statistics['images']} samples")
    say(f"  {'class':<20}{'images':>8}{'pixels':>9}{'score':>7}{'not found':>11}")
    for name, row in classes.items():
        say(
            f"  {name:<20}{row['images']:>8}{row['pixels'] / total:>9.2%}{row['score']:>7.2f}"
            f"{row['not_found']:>11}"
        )
    say(f"  {'background':<28}{statistics['background'] / total:>9.2%}")
    say(f"  {'undecided':<28}{statistics['undecided'] / total:>9.2%}")
    say(f"  look at them  synthgen report {out} --labels {summary['id']}")
    say(f"  in Python     synthgen.open_dataset({str(out)!r}, labels={summary['id']!r})")
