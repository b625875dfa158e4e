"""``synthgen config``: show or check a configuration."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from synthgen.cli.options import Set, Source, read_config, say
from synthgen.config import dump

app = typer.Typer(help="Show or check a configuration.", no_args_is_help=True)


@app.command("show")
def show(
    source: Annotated[str, typer.Argument(help="YAML configuration, prompt file, or name.")] = (
        "scenes"
    ),
    overrides: Set = None,
) -> None:
    """Print the resolved configuration, defaults included, as YAML."""
    from synthgen.prompts import open_prompts

    config = read_config(source, overrides)
    open_prompts(config.prompts, config.classes)  # a mistyped name is a file that is not there
    typer.echo(dump(config), nl=False)


@app.command("validate")
def validate(source: Source, overrides: Set = None) -> None:
    """Check a configuration and print its digest; exit code 2 names the first mistake."""
    from synthgen.jobs.identity import config_digest

    digest = config_digest(read_config(source, overrides))
    say(json.dumps({"valid": True, "digest": digest}))
