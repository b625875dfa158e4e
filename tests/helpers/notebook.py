"""Run a notebook and keep what its cells show: ``python tests/helpers/notebook.py NOTEBOOK``."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def outputs_of(notebook: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Run the code cells one after the other; what each shows, as notebooks keep it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    return [
        _run("".join(cell["source"]), names)
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def _run(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(tree, "cell", "exec"), names)
        value = None
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    found: list[dict[str, Any]] = []
    if said.getvalue():
        found.append({"name": "stdout", "output_type": "stream", "text": _lines(said.getvalue())})
    if value is not None:
        data = {"text/plain": _lines(_plain(value)), **_picture(value)}
        kind = {"output_type": "execute_result", "execution_count": None, "metadata": {}}
        found.append({**kind, "data": data})
    return found


def _plain(value: Any) -> str:
    text = repr(value)
    return text.partition(" at 0x")[0] + ">" if " at 0x" in text else text


def _picture(value: Any) -> dict[str, str]:
    if hasattr(value, "savefig") or hasattr(value, "_repr_png_"):
        stream = io.BytesIO()
        if hasattr(value, "savefig"):
            value.savefig(stream, format="png", dpi=72)
        else:
            stream.write(value._repr_png_())
        return {"image/png": base64.b64encode(stream.getvalue()).decode()}
    return {}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    content = json.loads(path.read_text(encoding="utf-8"))
    shown = iter(outputs_of(content))
    number = 0
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            cell["outputs"], cell["execution_count"] = next(shown), number
            for output in cell["outputs"]:
                output.update({"execution_count": number} if "data" in output else {})
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
