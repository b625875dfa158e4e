"""``synthgen soak``: thousands of tiny samples through the real flow, watched from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def soak(
    samples: Annotated[int, typer.Option(min=8, help="Samples to make.")] = 20_000,
    out: Annotated[
        Path, typer.Option(help="Dataset, server, readings, soak.json, soak.png.")
    ] = Path("synthgen-soak"),
    shard_size: Annotated[int, typer.Option(min=1, help="Samples per shard.")] = 50,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output.")
    ] = False,
) -> None:
    """Long run without a network: memory and speed must stay flat, the database's growth is told.

    Interrupt it when you like; the same command goes on. Exit code 1 if a bound does not hold.

    Examples:

      synthgen soak --samples 2000 --out soak    (minutes: a first look)

      synthgen soak                              (20,000 samples: what README shows)
    """
    from synthgen.lab.bench import soak as bench

    result = bench.soak(samples, out, shard_size, tell=lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _show(result, out)
    if result["failures"]:
        raise typer.Exit(1)


def _show(result: dict[str, Any], out: Path) -> None:
    typer.echo(f"{result['samples']} samples, {result['shards']} shards, {result['seconds']} s")
    for name in result["quarters"][0]:
        cells = "  ".join(f"{quarter[name]:8.1f}" for quarter in result["quarters"])
        typer.echo(f"  {name:<24} {cells}   last/second {result['last_over_second'][name]:.3f}")
    database = result["database"]
    typer.echo(
        f"  database                 {database['rows_per_shard']} rows and "
        f"{database['bytes_per_shard']:,} bytes per shard; {database['bytes'] / 1e6:.1f} MB"
    )
    for line in result["failures"]:
        typer.echo(f"  FAILED  {line}", err=True)
    typer.echo(f"  {'failed' if result['failures'] else 'flat'}: {out / 'soak.png'}")
