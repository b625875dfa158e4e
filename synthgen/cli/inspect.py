"""Commands that look at a dataset or a configuration."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from synthgen.cli.generate import read_config
from synthgen.config import dump

config_app = typer.Typer(help="Show or check a configuration.", no_args_is_help=True)
Folder = Annotated[str, typer.Argument(metavar="DIR", help="Dataset folder or URL.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="section.key=value (repeatable).")
]


def verify(
    directory: Folder,
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every sample.")] = False,
) -> None:
    """Check every shard: truncation, duplicates, foreign members, bad ids, hashes."""
    from synthgen.dataset.verify import verify_dataset

    problems = verify_dataset(directory, deep=deep)
    for problem in problems:
        typer.echo(problem)
    if problems:
        typer.echo(f"{len(problems)} problems in {directory}.", err=True)
        raise typer.Exit(1)
    typer.echo(f"{directory} is complete and correct.")


def replay(
    directory: Folder,
    key: Annotated[str, typer.Argument(help="Key of the sample, 10 digits or more.")],
) -> None:
    """Make one sample again from its provenance and compare every member's hash."""
    from synthgen import run

    results = run.replay(directory, key)
    for member, same in results.items():
        typer.echo(f"{'same' if same else 'DIFFERENT':>9}  {member}")
    if not all(results.values()):
        raise typer.Exit(1)


def gc(directory: Folder) -> None:
    """Clear what interrupted runs left behind; complete shards are never touched."""
    from synthgen import run

    removed = run.gc(directory)
    for path in removed:
        typer.echo(f"removed  {path}")
    typer.echo(f"{len(removed)} files removed.")


@config_app.command("show")
def show(
    source: Annotated[str, typer.Argument(help="YAML configuration, prompt file, or name.")] = (
        "scenes"
    ),
    overrides: SetOption = None,
) -> None:
    """Print the resolved configuration, defaults included, as YAML."""
    typer.echo(dump(read_config(source, overrides or [], None)), nl=False)


@config_app.command("validate")
def validate(
    source: Annotated[str, typer.Argument(help="YAML configuration, prompt file, or name.")],
    overrides: SetOption = None,
) -> None:
    """Check a configuration and print its digest; exit code 2 names the first mistake."""
    from synthgen import run

    config = read_config(source, overrides or [], None)
    typer.echo(json.dumps({"valid": True, "digest": run.config_digest(config)}))
