"""The page of the API out of the docstrings; ``python tests/helpers/api_page.py`` writes it."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import synthgen

PAGE = Path(__file__).parents[2] / "synthgen/API.md"
ORDER = (
    *("record", "record_image", "segment", "label", "load_model", "generate", "annotate"),
    *("open_dataset", "learn_parts", "load_parts", "Parts", "Prompt", "MaskSet", "LabelMap"),
)
HEAD = """# API

What `import synthgen` offers; every example runs as it stands, without a network, on the embedded
model. Made from the docstrings by `python tests/helpers/api_page.py`, and checked in a test.
"""


def page() -> str:
    """All names, each with its signature, what it does and an example."""
    return "\n".join([HEAD, *(_entry(name, getattr(synthgen, name)) for name in ORDER)])


def _entry(name: str, found: Any) -> str:
    lines = [f"## {name}", "", "```text", _signature(f"synthgen.{name}", found), "```", ""]
    lines += _markdown(inspect.getdoc(found) or "")
    for method, function in inspect.getmembers(found, inspect.isfunction):
        if inspect.isclass(found) and not method.startswith("_"):
            lines += ["", f"**{_signature(method, function)}**", ""]
            lines += _markdown(inspect.getdoc(function) or "")
    return "\n".join([*lines, ""])


def _signature(name: str, found: Any) -> str:
    """The call without annotations; continued lines are indented."""
    whole = inspect.signature(found)
    own = [p.replace(annotation=p.empty) for p in whole.parameters.values() if p.name != "self"]
    plain = f"{name}{whole.replace(parameters=own, return_annotation=whole.empty)}"
    return "\n".join(textwrap.wrap(plain, 88, subsequent_indent="    "))


def _markdown(doc: str) -> list[str]:
    """Google sections as lists, examples as code."""
    lines: list[str] = []
    section = ""
    code = False
    for line in doc.splitlines():
        starts = line.strip().startswith(">>>")
        if code and not line.strip():
            lines.append("```")
            code = False
        elif starts and not code:
            lines.append("```python")
            code = True
        if re.fullmatch(r"(Args|Returns|Raises):", line):
            section = line[:-1]
            lines += [f"**{section}**", ""]
        elif code or not section:
            lines.append(line)
        elif re.match(r"    \w[\w, .]*: ", line):
            names, _, text = line.strip().partition(": ")
            lines.append(f"- `{names}`: {text}")
        else:
            lines.append("  " + line.strip() if line.strip() else "")
            section = section if line.strip() else ""
    return [*lines, "```"] if code else lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
