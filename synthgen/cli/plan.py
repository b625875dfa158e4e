"""``synthgen plan``: what a configuration will make and take, before it does."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from synthgen.cli.generate import Set, print_estimate, read_config


def plan(
    source: Annotated[
        str, typer.Argument(help="A YAML configuration, a prompt file, or: scenes, voc.")
    ],
    out: Annotated[
        str, typer.Option(help="A dataset that was begun; its shards are the better basis.")
    ] = "synthgen-out",
    num: Annotated[int | None, typer.Option(help="Samples planned.")] = None,
    overrides: Set = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="GPU hours, requests and rows at --rate.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(help="Images per second of one GPU, as 'generate' prints it.")
    ] = None,
    workers: Annotated[int, typer.Option(help="GPUs.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="With --cost: one JSON object.")] = False,
) -> None:
    """Say what a run will make and take: shards, images, bytes, GPU hours.

    Makes nothing. With --cost also what the same takes at a throughput that you measured.

    Examples:

      synthgen plan voc --set model.card=sd21-base --num 100000

      synthgen plan voc --num 100000 --cost --rate 1.5 --workers 64
    """
    from synthgen.run.cost import cost as count

    config = read_config(source, overrides or [], num)
    if not cost:
        print_estimate(config, out)
        return
    if rate is None:
        raise ValueError(
            "--cost needs --rate, images per second of one GPU. Got none; 'synthgen generate' "
            "prints it at the end of a run."
        )
    rows = count(config, rate, workers, out)
    if as_json:
        print(json.dumps(rows), flush=True)
        return
    for name, value in rows.items():
        typer.echo(f"{name:>16}  {value:,}")
