"""``synthgen plan``: what a configuration will make and take, before it does."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from synthgen.cli.generate import Classes, Set, print_estimate, read_config
from synthgen.cli.options import refuse_unused, say
from synthgen.config import Config


def plan(
    source: Annotated[
        str, typer.Argument(help="A YAML configuration, a prompt file, -, or: demo, scenes, voc.")
    ],
    out: Annotated[
        str, typer.Option(help="A dataset that was begun; its shards are the better basis.")
    ] = "synthgen-out",
    num: Annotated[int | None, typer.Option(help="Samples planned.")] = None,
    classes: Classes = None,
    overrides: Set = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="GPU hours, requests and rows at --rate.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(help="Images per second of one GPU, as 'generate' prints it.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="GPUs.", show_default="1")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what a run will make and take: shards, images, bytes, GPU hours.

    Makes nothing. With --cost also what the same takes at a throughput that you measured.

    Examples:

      synthgen plan voc --set model.card=sd21-base --num 100000

      synthgen plan voc --num 100000 --cost --rate 1.5 --workers 64
    """
    refuse_unused({"--rate": rate, "--workers": workers}, not cost, "without --cost")
    config = read_config(source, overrides or [], num, classes)
    if cost:
        _show_cost(config, out, rate, workers or 1, as_json)
    elif as_json:
        from synthgen import jobs

        print(json.dumps(jobs.estimate(config, out)), flush=True)
    else:
        print_estimate(config, out)


def _show_cost(config: Config, out: str, rate: float | None, workers: int, as_json: bool) -> None:
    from synthgen.jobs.cost import cost

    if rate is None:
        raise ValueError(
            "--cost needs --rate, images per second of one GPU. Got none; 'synthgen generate' "
            "prints it at the end of a run."
        )
    rows = cost(config, rate, workers, out)
    if as_json:
        print(json.dumps(rows), flush=True)
        return
    for name, value in rows.items():
        say(f"{name:>16}  {value:,}")
