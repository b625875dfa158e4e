"""Options that commands share, and what they have in common: one that is ignored is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.config import Config, load
from synthgen.storage.untrusted import printable


class Engine(StrEnum):
    """Who runs a job: a Prefect flow (default), or this process alone."""

    flow = "flow"
    inline = "inline"


_where = partial(typer.Option, rich_help_panel="Where it runs")
printed = partial(typer.Option, rich_help_panel="What is printed")

Folder = Annotated[str, typer.Argument(metavar="DIR", help="Dataset folder or URL.")]
Finished = Annotated[str, typer.Argument(metavar="DIR", help="A finished dataset.")]
Source = Annotated[
    str, typer.Argument(help="A YAML configuration, a prompt file, -, or: demo, scenes, voc.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        help="Change one setting: section.key=value (repeatable). 'synthgen config show' lists "
        "those of datasets.",
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(help="Classes to look for in captions: cat,dog or a file of names, or of ids."),
]
Num = Annotated[
    int | None, typer.Option(help="Images to make, also those that fail.", show_default="64")
]
FirstNum = Annotated[int | None, typer.Option(min=1, help="Whole shards until this many samples.")]
EngineOption = Annotated[Engine, _where("--engine", help="A Prefect flow, or this process alone.")]
Runner = Annotated[str, _where(help="Where shards are made: threads, ray, dask.")]
Workers = Annotated[int, _where(min=1, help="Shards in flight at once.")]
IN_FLIGHT = 2
"""Shards at once where images are drawn: one is drawn while the one before is published."""
Address = Annotated[
    str | None, _where(help="Cluster of ray (auto, host:port) or dask; default: here.")
]
Strict = Annotated[bool, _where("--strict", help="Refuse to go on with other library versions.")]
ThenAudit = Annotated[
    str | None, typer.Option("--audit", help="Then audit it with this auditor: scenes-sam.")
]
Checkpoint = Annotated[str | None, typer.Option(help="File or folder of the auditor's weights.")]
Sha256 = Annotated[str | None, typer.Option(help="What the checkpoint's hash must be.")]
Parts = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Label the parts that 'synthgen oneshot fit' has learned."),
]
Labels = Annotated[
    str | None, typer.Option(help="Id of labels beside the dataset; else those in it.")
]


def of_parts(folder: str | None, classes: str | None) -> tuple[list[str], dict[str, Any]]:
    """Assignments and values that make a dataset's labels those of parts; none without a folder.

    Raises:
        ValueError: If classes are given beside them, or the folder holds no parts.
    """
    if folder is None:
        return [], {}
    refuse_unused({"--classes": classes}, True, "with --parts")
    from synthgen.oneshot.parts import part_names

    place = json.dumps(str(Path(folder).absolute()))
    return ["labeling.method=parts", f"labeling.parts={place}"], {"classes": part_names(folder)}


def read_config(
    source: str,
    overrides: list[str] | None,
    num: int | None = None,
    classes: str | None = None,
    parts: str | None = None,
) -> Config:
    """The configuration that the command line describes.

    Args:
        source: A YAML file is a configuration; anything else is a prompt source.
        overrides: Assignments ``key=value``.
        num: Overrides ``num`` where given.
        classes: Names with commas between, or a file of them.
        parts: Folder of parts that are labeled.
    """
    from synthgen.prompts.class_list import read_classes

    path = Path(source)
    is_config = path.suffix.lower() in {".yaml", ".yml"}
    given: dict[str, Any] = {} if is_config else {"prompts": source}
    given |= {} if num is None else {"num": num}
    given |= {} if classes is None else {"classes": read_classes(classes)}
    of_labels, names = of_parts(parts, classes)
    every = [*(overrides or []), *of_labels]
    return load(path if is_config else None, every, given | names)


def say(text: object, err: bool = False) -> None:
    """Print a line in which names and reasons of datasets cannot act on the terminal.

    Args:
        text: The line.
        err: On standard error.
    """
    typer.echo(printable(text), err=err)


def refuse_unused(given: Mapping[str, object], unused: bool, where: str) -> None:
    """Refuse an option that would have no effect.

    Args:
        given: Options with their values; None, False and no items: not given.
        unused: Whether they would be ignored.
        where: In which case, for the message: "without --audited".

    Raises:
        ValueError: In one line, about the first.

    >>> refuse_unused({"--rate": 1.5}, True, "without --cost")
    Traceback (most recent call last):
    ValueError: --rate has no effect without --cost. Leave it out, or add --cost.
    """
    names = [
        name
        for name, value in given.items()
        if value is not False and value not in (None, [], ())  # a number may be 0
    ]
    if unused and names:
        missing = where.removeprefix("without ")
        hint = "" if missing == where else f", or add {missing}"
        raise ValueError(f"{names[0]} has no effect {where}. Leave it out{hint}.")
