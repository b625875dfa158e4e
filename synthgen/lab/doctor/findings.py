"""What an examination says: findings of the installation, reports of the steps of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synthgen.storage.redaction import redact

Status = Literal["ok", "note", "failed", "not run"]
MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class Finding:
    """One line about the installation.

    Args:
        name: What was looked at.
        status: ok; note: works, but should be known; failed: breaks something.
        text: What was found, secrets taken out.
    """

    name: str
    status: Status
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of a table under its header, with a note for whoever reads it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step found.

    Args:
        text: In one line.
        ok: Whether it is as it should be.
        table: The figures behind it.
        picture: Name of a picture beside the page.
    """

    text: str
    ok: bool = True
    table: Table | None = None
    picture: str = ""


@dataclass(frozen=True, slots=True)
class StepReport:
    """A step as it went.

    Args:
        name: Of the step.
        status: failed also where it ended in an exception, whose reason is the outcome's text.
        outcome: What it found.
        seconds: Wall time.
        peak_bytes: Most memory in use during it; 0 where nothing tells.
    """

    name: str
    status: Status
    outcome: Outcome
    seconds: float = 0.0
    peak_bytes: int = 0


def reason(error: BaseException) -> str:
    """An exception as one line that may be sent away: no secrets, no home folder, not endless.

    >>> reason(ValueError("no good:\\n  password=abc"))
    'no good: password=***'
    >>> reason(MemoryError())
    'MemoryError'
    """
    return shareable(" ".join(str(error).split()) or type(error).__name__)


def shareable(text: str) -> str:
    """A line without secrets and without the name of the home folder, cut to a length."""
    home = str(Path.home())
    without_home = text.replace(home, "~") if len(home) > 1 else text
    return redact(without_home)[:MAX_REASON]
