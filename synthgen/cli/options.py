"""What options have in common: one that would be ignored is refused."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from synthgen.storage.untrusted import printable


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
