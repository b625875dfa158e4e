"""What newcomers meet first runs: notebook, script for one's own pipeline, page of the API."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from api_page import PAGE, page
from notebook import outputs_of
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_notebook_shows_what_it_holds() -> None:
    """Texts are those of the file; pictures are there, and of its size nobody complains."""
    path = EXAMPLES / "quickstart.ipynb"
    assert path.stat().st_size < 400_000
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = [cell["outputs"] for cell in content["cells"] if cell["cell_type"] == "code"]
    shown = outputs_of(content)
    kinds = [[sorted(output.get("data", ["text"])) for output in cell] for cell in shown]
    assert kinds == [[sorted(output.get("data", ["text"])) for output in cell] for cell in kept]
    assert sum("image/png" in kind for cell in kinds for kind in cell) >= 3
    texts = [[output.get("data", {}).get("text/plain") for output in cell] for cell in shown]
    assert texts[1] == [output["data"]["text/plain"] for output in kept[1]]


def test_the_script_for_ones_own_pipeline_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["own_pipeline.py", "a red car", "car", "--steps", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(EXAMPLES / "own_pipeline.py"), run_name="__main__")
    assert "heads in 9 layers" in capsys.readouterr().out
    for name in ("image", "masks", "labels"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) >= 128


def test_the_page_of_the_api_is_what_the_docstrings_say() -> None:
    """After a change: ``python tests/helpers/api_page.py``."""
    assert PAGE.read_text(encoding="utf-8") == page()
