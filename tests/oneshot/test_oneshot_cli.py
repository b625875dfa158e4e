"""``synthgen oneshot`` from annotated files to label maps, again after a stop; its mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from synthgen.cli import main

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--set", "epochs=2", "--set", "lr=0.3")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A photograph with a mask of two parts, and others without."""
    rng = np.random.default_rng(0)
    image = rng.integers(90, 120, (96, 128, 3), dtype=np.uint8)
    mask = np.zeros((96, 128), dtype=np.uint8)
    mask[20:80, 30:100], mask[40:60, 50:70] = 1, 2
    image[mask == 1], image[mask == 2] = (200, 40, 40), (40, 60, 200)
    (tmp_path / "photos").mkdir()
    Image.fromarray(image).save(tmp_path / "car.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for number in range(3):
        Image.fromarray(np.roll(image, 9 * number, 1)).save(tmp_path / f"photos/{number}.png")
    return tmp_path


@pytest.fixture
def run(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code and what was printed of a command, in the folder of the files."""

    def run_command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["synthgen", "oneshot", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    monkeypatch.chdir(files)
    return run_command


def test_one_annotated_photograph_labels_a_folder(run: Run, files: Path) -> None:
    fit = ("fit", "--image", "car.png", "--mask", "mask.png", "--classes", "body,window", *QUICK)
    code, said, error = run(*fit, "--json")
    assert code == 0, error
    assert json.loads(said)["names"] == ["body", "window"]
    made = {path.name for path in (files / "parts").iterdir()}
    assert {"parts.safetensors", "parts.json", "picture.png", "losses.png", "legend.json"} <= made
    before = (files / "parts/parts.safetensors").read_bytes()
    assert run(*fit)[0] == 0  # nothing is left to do
    assert (files / "parts/parts.safetensors").read_bytes() == before

    predict = ("predict", "parts", "photos", "--out", "found", "--set", "presence=0")
    code, said, error = run(*predict)
    assert code == 0, error
    assert "window" in said
    labels = np.asarray(Image.open(files / "found/labels/1.png"))
    assert labels.shape == (96, 128)
    assert labels.max() <= 2
    legend = json.loads((files / "found/legend.json").read_text())
    assert np.asarray(Image.open(files / "found/colors/1.png")).shape == (96, 128, 3)
    assert set(legend) == {"background", "body", "window", "ignore"}
    found = COCO(files / "found/annotations.json")
    assert len(found.getImgIds()) == 3
    for row in found.loadAnns(found.getAnnIds()):
        own = np.asarray(Image.open(files / f"found/labels/{row['image_id'] - 1}.png"))
        np.testing.assert_array_equal(found.annToMask(row), own == row["category_id"])
        assert 0 <= row["score"] <= 1

    again = {path: path.read_bytes() for path in (files / "found").rglob("*") if path.is_file()}
    (files / "found/labels/2.png").unlink()
    assert run(*predict)[0] == 0
    assert {path: path.read_bytes() for path in again} == again
    code, _, error = run("predict", "parts", "photos", "--out", "found", "--set", "noises=2")
    assert code == 2
    assert "same parts and settings" in error
    code, _, error = run("fit", *fit[1:-4], "--set", "epochs=3")
    assert code == 2
    assert "same examples and settings" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit --image car.png --mask mask.png --classes body", "Got 2 in 400 pixels; add NAME=2"),
        ("fit --image car.png --mask mask.png --classes body,window,wheel", "no pixel of 'wheel'"),
        ("fit --image photos --mask mask.png --classes body,window", "without one in mask.png"),
        ("fit --image car.png --mask none.png --classes body,window", "none.png"),
        ("fit --image none.png --mask mask.png --classes body,window", "none.png"),
        ("fit --image car.png --mask mask.png --classes body,window --set rate=3", "rate"),
        ("fit --image car.png --mask mask.png --classes body,window --model scense", "scenes"),
        ("predict parts photos", "must hold parts.safetensors"),
        ("predict parts .", "folders of .jpg"),
    ],
)
def test_mistakes_are_one_line(run: Run, files: Path, words: str, message: str) -> None:
    if words.endswith(" ."):
        words = words.replace(" .", " empty")
        (files / "empty").mkdir()
    code, said, error = run(*words.split())
    assert (code, said) == (2, ""), error
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (files / "parts").exists()
