"""Looking at a dataset loads no torch; a folder of the user's hides none of ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "accelerate", "datasets", "prefect"}


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
