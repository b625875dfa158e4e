"""``synthgen bench``: every claim, measured against its rival in the same run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Measure a claim. With --json, one JSON object on standard output.",
    no_args_is_help=True,
)
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Quick = Annotated[bool, typer.Option("--quick", help="Small sizes: does it run, not how fast.")]
Num = Annotated[int, typer.Option(min=3, help="Scenes, images or samples that are measured.")]


@app.command()
def kmeans(as_json: Json = False, quick: Quick = False) -> None:
    """Exact knot-grid k-means against scikit-learn on materialized features."""
    from synthgen.lab.bench.kmeans import bench_kmeans
    from synthgen.lab.bench.quality import embedded_features

    _show(bench_kmeans(embedded=embedded_features(), quick=quick), as_json)


@app.command()
def capture(
    as_json: Json = False,
    quick: Quick = False,
    num_pairs: Annotated[int, typer.Option(min=9, help="Interleaved pairs; at least 9.")] = 9,
) -> None:
    """Cost of capturing on a full-size SD 2.1 UNet, against two rivals."""
    from synthgen.lab.bench.capture import bench_capture

    _show(bench_capture(num_pairs=num_pairs, quick=quick), as_json)


@app.command()
def scenes(as_json: Json = False, num: Num = 200) -> None:
    """Quality of the embedded model: VAE, classes and colors of generated images."""
    from synthgen.lab.bench.scenes import bench_scenes

    _show(bench_scenes(num=num), as_json)


@app.command()
def quality(
    as_json: Json = False,
    num: Num = 200,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also over layers, grids and timesteps.")
    ] = False,
) -> None:
    """Masks against ground truth: per-head, head-averaged, and RGB+XY k-means."""
    from synthgen.lab.bench.quality import bench_quality

    _show(bench_quality(num=num, sweep=sweep), as_json)


@app.command()
def report(as_json: Json = False, quick: Quick = False, num: Num = 1000) -> None:
    """Time, peak memory and size of the report of many samples."""
    from synthgen.lab.bench.report import bench_report

    _show(bench_report(num=num, quick=quick), as_json)


@app.command()
def audit(as_json: Json = False, quick: Quick = False) -> None:
    """Top-n and Hungarian IoU by counted bits, against boolean masks pair by pair."""
    from synthgen.lab.bench.audit import bench_audit

    _show(bench_audit(quick=quick), as_json)


@app.command()
def verdicts(
    as_json: Json = False,
    num: Num = 64,
    auditor: Annotated[str, typer.Option(help="Who looks at the masks.")] = "scenes-sam",
) -> None:
    """What an audit keeps of a good dataset, and of one whose masks were shuffled."""
    from synthgen.lab.bench.verdicts import bench_verdicts

    _show(bench_verdicts(num=num, auditor=auditor), as_json)


@app.command()
def scale(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A dataset whose shards were measured.")
    ],
    shards: Annotated[int, typer.Option(min=1, help="Shards of the simulated run.")] = 10_000,
    startup: Annotated[
        float, typer.Option(min=0.0, help="Seconds in which a worker loads the model.")
    ] = 30.0,
    plot: Annotated[Path | None, typer.Option(help="Picture to write (.png, .svg).")] = None,
    as_json: Json = False,
) -> None:
    """Simulated: hours and stragglers for 1 to 512 workers, and what limits more."""
    from synthgen.lab.bench.scale import bench_scale

    _show(bench_scale(directory, shards, startup=startup, plot=plot), as_json)


def _show(result: dict[str, Any], as_json: bool) -> None:
    lines = [json.dumps(result)] if as_json else _lines(result)
    print("\n".join(lines))
    sys.stdout.flush()


def _lines(tree: dict[str, Any], indent: int = 0) -> list[str]:
    lines: list[str] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{'  ' * indent}{name}", *_lines(value, indent + 1)]
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            lines.append(f"{'  ' * indent}{name:<24} {shown}")
    return lines
