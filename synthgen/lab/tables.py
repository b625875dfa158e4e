"""Tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already, see `escape`.

    >>> print(markdown_table(("a", "b"), [("1", escape("x|y"))]))
    | a | b |
    | --- | --- |
    | 1 | x\\|y |
    """
    lines = (header, ("---",) * len(header), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """Text that Markdown shows as it is: prompts and errors are nobody's markup.

    >>> escape("<b>[x](y)|\\n")
    '&lt;b>\\\\[x\\\\](y)\\\\|'
    """
    escaped = re.sub(r"([\\\[\]|`])", r"\\\1", " ".join(text.split()))
    return escaped.replace("<", "&lt;")
