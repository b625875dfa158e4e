"""The cases that users reported: each script beside the checkout is run against one dataset.

By default in this process, commands included, for a process of its own costs seconds of imports
each; ``-m slow`` runs the scripts as they are, and those that take longer.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from synthgen import cli, jobs
from synthgen.cli.generate import DEMO_OVERRIDES
from synthgen.config import load

FOLDERS = [parent / "shared/data/field" for parent in Path(__file__).resolve().parents]
FIELD = next((folder for folder in FOLDERS if folder.is_dir()), None)
CASES = sorted(FIELD.glob("[!_]*.py")) if FIELD else []
SLOW = ("sam3-folders", "yolo-from-another-folder")
"""They import all of transformers, and ultralytics three times."""

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(FIELD is None, reason="no shared/data/field beside the checkout"),
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labeled images of the embedded model, made as `synthgen demo` makes its own."""
    out = tmp_path_factory.mktemp("field") / "demo"
    jobs.generate(load(overrides=[*DEMO_OVERRIDES, "num=2"]), out)
    return out


def command(*given: object, **ignored: Any) -> tuple[int, str]:
    """Exit code and output of `synthgen`, run in this process."""
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            sys.argv = ["synthgen", *map(str, given)]
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return code, said.getvalue().strip()


def prepare(case: Path, folder: Path) -> Path:
    """A copy of a case that looks for the embedded weights where they are today."""
    text = case.read_text().replace('"scenes" / "weights"', '"embedded" / "weights"')
    if "ultralytics" in text and importlib.util.find_spec("ultralytics") is None:
        pytest.skip("ultralytics is not installed")
    (folder / case.name).write_text(text)
    return folder / case.name


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW))
        for path in CASES
    ],
)
def test_a_reported_case_passes(
    case: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = prepare(case, tmp_path)
    for name, value in {**os.environ, "DEMO": str(demo)}.items():
        monkeypatch.setenv(name, value)  # put back, as the folder and the arguments are
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.syspath_prepend(str(case.parent))
    monkeypatch.delitem(sys.modules, "_case", raising=False)
    monkeypatch.setattr(importlib.import_module("_case"), "cli", command)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(program), run_name="__main__")
    assert end.value.code == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[path.stem for path in CASES])
def test_a_reported_case_passes_as_a_script(case: Path, demo: Path, tmp_path: Path) -> None:
    program = prepare(case, tmp_path)
    ours = [str(Path(__file__).parent.parent), str(case.parent)]
    paths = [*ours, *filter(None, [os.environ.get("PYTHONPATH")])]
    surroundings = {"DEMO": str(demo), "TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(paths)}
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, **surroundings, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
