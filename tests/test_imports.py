"""What stands in a user's own folder hides nothing of ours: folders have common names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
    import flows.limits

    from synthgen.flows import limits

    assert flows.limits.__file__ == limits.__file__
