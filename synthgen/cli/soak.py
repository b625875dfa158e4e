"""``synthgen soak``: thousands of tiny samples through the real flow, watched from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

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

      synthgen soak                              (20,000 samples: what was published)
    """
    from synthgen.lab.bench import soak as bench

    result = bench.soak(samples, out, shard_size, tell=lambda line: typer.echo(line, err=True))
    database, failures = result["database"], result["failures"]
    lines = [f"{result['samples']} samples, {result['shards']} shards, {result['seconds']} s"]
    for name, ratio in result["last_over_second"].items():
        cells = "  ".join(f"{quarter[name]:8.1f}" for quarter in result["quarters"])
        lines.append(f"  {name:<24} {cells}   last/second {ratio:.3f}")
    lines.append(
        f"  database                 {database['rows_per_shard']} rows and "
        f"{database['bytes_per_shard']:,} bytes per shard; {database['bytes'] / 1e6:.1f} MB"
    )
    lines += [f"  FAILED  {line}" for line in failures]
    lines.append(f"  {'failed' if failures else 'flat'}: {out / 'soak.png'}")
    typer.echo(json.dumps(result) if as_json else "\n".join(lines))
    if failures:
        raise typer.Exit(1)
