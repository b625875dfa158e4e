"""Commands that look at a dataset or a configuration."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from itertools import islice
from typing import Annotated

import typer

from synthgen.cli.generate import read_config
from synthgen.cli.options import say
from synthgen.config import dump

MAX_PROBLEMS = 100
"""Problems that are shown; the rest is counted."""

config_app = typer.Typer(help="Show or check a configuration.", no_args_is_help=True)
Folder = Annotated[str, typer.Argument(metavar="DIR", help="Dataset folder or URL.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="section.key=value (repeatable).")
]


def verify(
    directory: Folder,
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every sample.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Problems and their counts, as one JSON object.")
    ] = False,
) -> None:
    """Check every shard: truncation, duplicates, foreign members, bad ids, hashes.

    Of an export, every file is compared with the hash that was written last.

    Exit code 0: nothing is wrong, 1: something is.

    Examples:

      synthgen verify data/scenes

      synthgen verify s3://bucket/scenes --deep --json

      synthgen verify data/coco
    """
    from synthgen.dataset.verify import find_problems
    from synthgen.export.checksums import is_export, verify_export
    from synthgen.storage.publish import open_storage

    if is_export(open_storage(directory)):
        found = iter(verify_export(open_storage(directory)))
    else:
        _check_is_dataset(directory)
        found = find_problems(directory, deep=deep)
    problems = list(islice(found, MAX_PROBLEMS))
    kinds = Counter(problem.kind for problem in problems)
    kinds.update(problem.kind for problem in found)  # the rest is counted alone
    if as_json:
        rows = [asdict(problem) for problem in problems]
        counts = {"total": kinds.total(), "kinds": dict(kinds)}
        print(json.dumps({"correct": not problems, **counts, "problems": rows}), flush=True)
        raise typer.Exit(int(bool(problems)))
    for problem in problems:
        say(problem)
    if problems:
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        shown = f" ({len(problems)} shown)" if len(problems) < kinds.total() else ""
        say(f"{kinds.total()} problems in {directory}{shown}: {counted}.", err=True)
        raise typer.Exit(1)
    say(f"{directory} is complete and correct.")


def _check_is_dataset(directory: str) -> None:
    """Refuse a folder of something else, of which everything would be wrong.

    Raises:
        ValueError: If it has no description and no tar of a dataset.
    """
    from synthgen.dataset.manifest import IDENTITY, MANIFEST, TAR_NAME
    from synthgen.storage.publish import open_storage

    storage = open_storage(directory)
    if any(storage.size(name) is not None for name in (IDENTITY, MANIFEST)):
        return
    if not any(TAR_NAME.fullmatch(name) for name in storage.names("data")):
        raise ValueError(f"{storage.root} must be a dataset. Got no {IDENTITY} there.")


def replay(
    directory: Folder,
    key: Annotated[str, typer.Argument(help="Key of the sample, 10 digits or more.")],
) -> None:
    """Make one sample again from its provenance and compare every member's hash."""
    from synthgen import jobs

    results = jobs.replay(directory, key)
    for member, same in results.items():
        say(f"{'same' if same else 'DIFFERENT':>9}  {member}")
    if not all(results.values()):
        raise typer.Exit(1)


def gc(
    directory: Folder,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list, remove nothing.")] = False,
) -> None:
    """Clear what interrupted runs left behind; complete and listed shards are never touched."""
    from synthgen import jobs

    removed = jobs.gc(directory, dry_run=dry_run)
    verb = "would be removed" if dry_run else "removed"
    for path in removed:
        say(f"{verb}  {path}")
    say(f"{len(removed)} files {verb}.")


@config_app.command("show")
def show(
    source: Annotated[str, typer.Argument(help="YAML configuration, prompt file, or name.")] = (
        "scenes"
    ),
    overrides: SetOption = None,
) -> None:
    """Print the resolved configuration, defaults included, as YAML."""
    from synthgen.prompts import open_prompts

    config = read_config(source, overrides or [], None)
    open_prompts(
        config.prompts, config.classes
    )  # a name that is mistyped is a prompt file that is not there
    typer.echo(dump(config), nl=False)


@config_app.command("validate")
def validate(
    source: Annotated[str, typer.Argument(help="YAML configuration, prompt file, or name.")],
    overrides: SetOption = None,
) -> None:
    """Check a configuration and print its digest; exit code 2 names the first mistake."""
    from synthgen import jobs

    config = read_config(source, overrides or [], None)
    say(json.dumps({"valid": True, "digest": jobs.config_digest(config)}))
