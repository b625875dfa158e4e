"""Looking at a dataset loads no torch; a folder of the user's hides none of ours."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    *("torch", "torchvision", "diffusers", "transformers", "accelerate", "datasets", "prefect"),
    *("sklearn", "matplotlib", "pandas", "scipy.ndimage", "scipy.stats", "scipy.optimize"),
}


@pytest.mark.parametrize(
    "command",
    [
        "import synthgen; dir(synthgen); synthgen.__version__",
        "--help",
        "generate --help",
        "status DIR",
        "verify DIR --deep",
        "gc DIR --dry-run",
        "plan scenes --num 10",
        "config show",
    ],
)
def test_looking_loads_no_torch(command: str, tiny_dataset: Path) -> None:
    words = command.replace("DIR", str(tiny_dataset)).split()
    code = command if words[0] == "import" else "from synthgen.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *words],
        cwd=tiny_dataset,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert done.returncode == 0, done.stderr[-500:]
    assert "synthgen" in imported
    assert not imported & HEAVY


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    """Of the package alone; a requirement that only others import says why behind it."""
    lines = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[0].splitlines()
    text = "\n".join(
        lines[next(i for i, line in enumerate(lines) if "dependencies = [" in line) :]
    )
    reasons = dict(
        re.findall(r'^  "([\w-]+)[^"]*",(?:  # (.+))?$', text.split("dev = [")[0], re.M)
    )
    declared = {canonical(name) for name in re.findall(r'"([A-Za-z][\w-]*)', text)}
    homes = packages_distributions()
    imported: set[str] = set()
    for path in (ROOT / "synthgen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            imported |= {name.partition(".")[0] for name in names}
    ours = {name for name in imported if name in homes} - {"synthgen"}
    missing = {name for name in ours if not {canonical(home) for home in homes[name]} & declared}
    assert not missing
    used = {canonical(home) for name in ours for home in homes[name]}
    assert not {
        name for name, reason in reasons.items() if canonical(name) not in used and not reason
    }


def canonical(name: str) -> str:
    """A distribution's name as indices write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_project_with_its_own_flows_hides_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/__init__.py").write_text("raise ImportError('flows of the project')")
    words = ("--out", "data", "--timezone", "Mars")  # refused after all imports
    done = subprocess.run(
        [sys.executable, "-m", "synthgen.flows.deploy", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "timezone must be" in done.stderr) == (2, True), done.stderr


def test_the_short_name_of_the_checkout_is_the_same_code() -> None:
    import flows.deploy

    from synthgen.flows import deploy

    assert flows.deploy.__file__ == deploy.__file__
