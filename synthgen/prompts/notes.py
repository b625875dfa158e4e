"""What is said of a prompt list that is read all the same: each kind once, with a place."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

SAID = {
    "comment": "{count} line(s) that begin with '#' were skipped as comments, first {where}; to "
    "draw such a text, write it as JSON lines.",
    "repeat": "{count} prompt(s) name a class more than once, first {what} at {where}; each class "
    "is kept once.",
    "unclassed": "{count} prompt(s) have no classes, first {where}: masks only. To label them, "
    "name their classes under 'classes', or give names to look for with --classes.",
    "background": "{count} prompt(s) name a class {what}, first {where}; id 0 stands for what no "
    "class names, so it is not looked for.",
    "marks": "{count} prompt(s) hold marks of a web UI, first {what} at {where}; no weight, break "
    "or adapter comes of them here, they are drawn as letters. Take them out.",
    "others": "{count} file(s) are not named as images are and were left out, first {where}.",
    "captions": "{count} caption(s) are of images that are not there, first {what} at {where}.",
    "uncaptioned": "{count} image(s) have no caption, first {where}: they are seen without text.",
}
"""By kind of note."""

_MARKS = re.compile(
    r"<(?:lora|lyco|hypernet):[^<>]*>"  # an adapter; model.lora loads one
    r"|\([^()]*:\s*\d*\.?\d+\s*\)"  # (sky:1.2)
    r"|\({2,}[^()]+\){2,}|\[{2,}[^\[\]]+\]{2,}"  # ((sky)), [[sky]]
    r"|\b(?:BREAK|ADDCOMM|ADDROW|ADDCOL)\b"
)


class Notes:
    """Notes on the prompts of one file, counted by kind."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str, str]] = {}

    def add(self, kind: str, where: str, what: str = "") -> None:
        """Count one; the first place is kept."""
        count, first, shown = self._found.get(kind, (0, where, what))
        self._found[kind] = (count + 1, first, shown)

    def include(self, other: Notes) -> None:
        """Take over what another list of notes holds."""
        self._found.update(other._found)

    @property
    def sentences(self) -> tuple[str, ...]:
        """One line per kind."""
        return tuple(
            SAID[kind].format(count=count, where=where, what=what)
            for kind, (count, where, what) in self._found.items()
        )


def say(sentences: Iterable[str]) -> None:
    """Warn of what was noted."""
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=3)


def web_ui_mark(text: str) -> str | None:
    """The first thing in a text that a web UI would not draw, None where there is none.

    >>> web_ui_mark("a (blue:1.3) sky"), web_ui_mark("a smile :) (blue)")
    ('(blue:1.3)', None)
    """
    found = _MARKS.search(text)
    return None if found is None else found[0][:40]
