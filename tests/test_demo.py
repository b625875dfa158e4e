"""The demo as a newcomer runs it, and every command and snippet of the README."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from read_dataset import READERS
from typer.testing import CliRunner

from synthgen.cli import app
from synthgen.dataset.labels import class_names
from synthgen.dataset.loader import open_dataset
from synthgen.scenes.vocabulary import CLASSES

pytestmark = pytest.mark.timeout(1200)  # processes of their own, on machines that are busy
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Fenced code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def bash_lines() -> list[str]:
    """Every command of the README, comments cut off."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset made by ``synthgen demo`` with 4 images."""
    out = tmp_path_factory.mktemp("demo") / "out"
    done = run_demo(out)
    assert done.returncode == 0, done.stderr
    assert "contact-sheet.png" in done.stdout
    assert f"Report: {out / 'report' / 'index.html'}" in done.stdout
    check_last_line(done.stdout, out)
    return out


def check_last_line(stdout: str, out: Path) -> None:
    """It counts labeled samples and their classes as the loader does, and names a command."""
    last = stdout.strip().splitlines()[-1]
    names, samples = class_names(out), list(open_dataset(out))
    found = [{names[i] for i in np.unique(s["semantic"])} & set(CLASSES) for s in samples]
    labeled, classes = sum(map(bool, found)), len(set.union(*found))
    assert labeled >= 2
    assert f"{labeled} of 4 samples are labeled, with {classes} classes." in last
    assert last.endswith(f"synthgen view {out}")


def run_demo(out: Path) -> subprocess.CompletedProcess[str]:
    """``synthgen demo --num 4`` in a process of its own."""
    code = "from synthgen.cli import main; main()"
    command = [sys.executable, "-c", code, "demo", "--num", "4", "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_a_second_demo_does_no_work_and_says_so(demo: Path) -> None:
    tars = {path: path.stat().st_mtime_ns for path in demo.glob("data/*.tar")}
    done = run_demo(demo)
    assert done.returncode == 0, done.stderr
    assert "nothing was done" in done.stdout
    assert tars == {path: path.stat().st_mtime_ns for path in demo.glob("data/*.tar")}


def test_the_contact_sheet_shows_images_clusters_hierarchy_and_classes(demo: Path) -> None:
    sheet = np.asarray(Image.open(demo / "report" / "contact-sheet.png").convert("RGB"))
    assert sheet.shape[1] == 8 * 258  # image, five k, hierarchy, classes
    assert sheet.shape[0] >= 4 * 256
    tiles = [sheet[14:270, column * 258 : column * 258 + 256] for column in range(8)]
    colors = [len(np.unique(tile.reshape(-1, 3), axis=0)) for tile in tiles]
    assert min(colors) > 50, "no tile may be blank"


def test_previews_hold_clusters_components_and_upsampling_error(demo: Path) -> None:
    (path,) = (demo / "previews").glob("*.tar")
    with tarfile.open(path) as tar:
        names = tar.getnames()
        for name in names[:7]:
            pixels = np.asarray(Image.open(io.BytesIO(tar.extractfile(name).read())))
            assert pixels.shape[:2] == (128, 128)
            assert pixels.min() < pixels.max()
    suffixes = [name.partition(".")[2] for name in names[:7]]
    assert sorted(suffixes) == sorted(
        [*(f"k{k:02d}.png" for k in (2, 5, 6, 10, 20)), "pca.png", "upsampling.png"]
    )


@pytest.mark.parametrize("name", list(READERS))
def test_third_party_readers_read_every_sample(demo: Path, name: str) -> None:
    assert READERS[name](demo) == 4


def test_the_audit_puts_our_masks_above_chance_and_above_other_images_masks(demo: Path) -> None:
    (path,) = demo.glob("audit/*/summary.json")
    summary = json.loads(path.read_text())
    means = summary["means"]
    assert summary["totals"]["samples"] == 4
    assert means["top_5"] > means["chance_top_5"]
    assert means["top_5"] > means["others_top_5"] + 0.1
    assert path.parent.name in (demo / "report" / "index.html").read_text()


def test_readme_install_commands_name_what_exists() -> None:
    installs = [line for line in bash_lines() if line.startswith("pip install")]
    assert len(installs) == 2
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in installs:
        install, then = line.split(" && ")
        words = shlex.split(install)
        assert (ROOT / words[words.index("-c") + 1]).exists()
        for extra in re.findall(r"\[(\w+)\]", words[-1]):
            assert extra in extras["optional-dependencies"]
        assert then in {"synthgen demo", "pytest"}


@pytest.mark.parametrize("line", [x for x in bash_lines() if x.startswith("synthgen ")])
def test_readme_commands_parse(line: str, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo.parent)
    words = shlex.split(line)[1:]
    if words[0] != "generate":
        words = [str(demo) if word == "data/scenes" else word for word in words]
    if words[0] == "generate":
        prompts = demo.parent / "my-prompts.jsonl"
        prompts.write_text('{"prompt": "a red ball", "classes": ["ball"]}\n')
        offline = [word for word in words if "model." in word]
        words = [w for w in words if w != "--dry-run" and w not in offline and w != "--set"]
        settings = [w for w in words if "=" in w]
        words = [w for w in words if w not in settings] + ["--dry-run"]
        words += [x for s in settings for x in ("--set", s)]
    elif words[0] == "train":
        words += ["--steps", "2", "--val-num", "2"]
    elif words[0] in {"bench", "study", "evaluate"}:
        words = [*words[:2], "--help"]
    elif words[0] in {"serve", "extend", "merge"} or "data/both" in words:
        words = [words[0], "--help"]  # test_schedule.py runs them
    elif words[0] == "view" or any(word.endswith(".pth") for word in words):
        words = [words[0], "--help"]  # serves until it is stopped; weights that are not here
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output + str(result.exception)


def test_readme_snippets_run(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (demo.parent / "data").mkdir(exist_ok=True)
    (demo.parent / "data" / "scenes").symlink_to(demo)
    monkeypatch.chdir(demo.parent)
    monkeypatch.syspath_prepend(str(demo.parent))
    assert CliRunner().invoke(app, ["audit", str(demo), "--id", "sam"]).exit_code == 0
    labels = ["label", str(demo), "--id", "words", "--engine", "inline"]
    assert CliRunner().invoke(app, labels).exit_code == 0
    snippets = blocks("python")
    assert len(snippets) >= 3
    for number, snippet in enumerate(snippets):
        named = re.match(r"# (\w+\.py)\n", snippet)
        if named:
            (demo.parent / named[1]).write_text(snippet)
        exec(compile(snippet, f"README block {number}", "exec"), {"__name__": f"block{number}"})
