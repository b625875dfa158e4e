"""``synthgen extend``: more samples for a dataset that is in use."""

from __future__ import annotations

from typing import Annotated

import typer

from synthgen.cli.display import JsonLogs
from synthgen.cli.engine import Engine
from synthgen.cli.generate import Address, Runner, Workers, conclude, execute


def extend(
    out: Annotated[str, typer.Argument(metavar="DIR", help="A dataset: folder or URL.")],
    shards: Annotated[int, typer.Option(min=1, help="Whole shards to add.")] = 1,
    engine: Annotated[Engine, typer.Option(help="Prefect flow, or in-process.")] = Engine.flow,
    runner: Runner = "threads",
    workers: Workers = 1,
    address: Address = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse other library versions.")
    ] = False,
    json_logs: JsonLogs = False,
) -> None:
    """Add shards to a dataset: the next prompts, each with its next image and a fresh seed.

    Nothing that stands there changes, and readers go on with the version that they opened:
    open_dataset(DIR, version=1) is what 'synthgen generate' made, version=2 has the first
    extension. If the last extension was cut off, this finishes it and adds nothing more.

    Examples:

      synthgen extend data/scenes --shards 4

      synthgen serve scenes --out data/scenes --extend 4 --cron "0 2 * * *"   (every night)
    """
    from synthgen import jobs

    with jobs.extension(out, shards) as config:
        manifest = execute(config, out, engine, runner, workers, strict, json_logs, address)
    conclude(manifest, out)
