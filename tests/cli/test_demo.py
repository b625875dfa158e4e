"""The demo as a newcomer runs it, and every command and snippet of the READMEs."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from read_dataset import READERS
from typer.main import get_command
from typer.testing import CliRunner

from synthgen.cli import app
from synthgen.config import load, load_section
from synthgen.dataset.labels import class_names
from synthgen.dataset.loader import open_dataset
from synthgen.embedded.vocabulary import CLASSES
from synthgen.lab.downstream.experiment import DownstreamSettings

pytestmark = pytest.mark.timeout(1200)  # a server and real models, on machines that are busy
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ALL = "\n".join(
    (ROOT / folder / "README.md").read_text()
    for folder in (
        *(".", "flows", "prompts", "tests/faults"),
        *(f"synthgen/{house}" for house in ("auditing", "dataset", "export", "labeling")),
    )
)


def blocks(language: str) -> list[str]:
    """Fenced code blocks of all READMEs in one language."""
    return re.findall(rf"```{language}\n(.*?)```", ALL, flags=re.DOTALL)


def lines(language: str) -> list[str]:
    """Every command of the READMEs in one language, comments cut off."""
    found = [line for block in blocks(language) for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in found if line.strip()]


def commands() -> list[str]:
    """All our commands: those of shell blocks, and those in the text that have arguments."""
    spans = re.findall(r"`(synthgen(?: [^`\s]+){2,})`", ALL)
    found = [*lines("bash"), *lines("sh"), *spans]
    return list(dict.fromkeys(line for line in found if line.startswith("synthgen ")))


COMMANDS = commands()
CLI: Any = get_command(app)
JUDGED = ("synthgen audit data/scenes --id sam", "synthgen label data/scenes --id words")
RUN = (
    "synthgen generate my-prompts.jsonl --dry-run",
    "synthgen verify data/scenes --deep",
    "synthgen audit data/scenes --auditor scenes-m2f --id m2f",
    "synthgen report data/scenes --labels words",
    'synthgen inspect "a photo of a red car" --out figures',
    "synthgen export data/scenes data/coco --format coco --split 0.9/0.1",
    "synthgen export data/scenes data/yolo --format yolo-seg",
    "synthgen export data/scenes data/parquet --format hf-parquet",
)
"""Run as they stand, after those of JUDGED; other tests run what is only parsed here."""


def succeed(line: str) -> str:
    """Run one of our commands in this process; returns what it printed."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    for number, handler in signals.items():
        signal.signal(number, handler)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which the README is followed."""
    folder = tmp_path_factory.mktemp("readme")
    prompts = '{"prompt": "a red ball", "classes": ["ball"]}\n'
    (folder / "my-prompts.jsonl").write_text(prompts)
    return folder


@pytest.fixture(scope="module")
def demo(place: Path) -> Path:
    """The README's dataset, made by ``synthgen demo`` with 4 images."""
    out = place / "data" / "scenes"
    printed = succeed(f"synthgen demo --num 4 --out {out}")
    assert "contact-sheet.png" in printed
    assert f"Report: {out / 'report' / 'index.html'}" in printed
    check_last_line(printed, out)
    return out


@pytest.fixture(scope="module")
def labeled(demo: Path) -> None:
    """An audit and labels beside the dataset, by the README's own lines."""
    assert {*JUDGED, *RUN} <= {*COMMANDS}
    with contextlib.chdir(demo.parent.parent):
        for line in JUDGED:
            succeed(line)


def check_last_line(stdout: str, out: Path) -> None:
    """It counts labeled samples and their classes as the loader does, and names a command."""
    last = stdout.strip().splitlines()[-1]
    names, samples = class_names(out), list(open_dataset(out))
    found = [{names[i] for i in np.unique(s["semantic"])} & set(CLASSES) for s in samples]
    labeled, classes = sum(map(bool, found)), len(set.union(*found))
    assert labeled >= 2
    assert f"{labeled} of 4 samples are labeled, with {classes} classes." in last
    assert last.endswith(f"synthgen view {out}")


def test_a_second_demo_does_no_work_and_says_so(demo: Path) -> None:
    tars = {path: path.stat().st_mtime_ns for path in demo.glob("data/*.tar")}
    assert "nothing was done" in succeed(f"synthgen demo --num 4 --out {demo} --engine inline")
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


def test_third_party_readers_read_every_sample(demo: Path) -> None:
    """In a process of its own, since a DataLoader forks and flows leave threads in this one."""
    script = ROOT / "tests/read_dataset.py"
    command = [sys.executable, str(script), str(demo)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" 4 samples") == len(READERS)


def test_the_audit_puts_our_masks_above_other_images_masks(demo: Path) -> None:
    page = (demo / "report" / "index.html").read_text()
    paths = sorted(demo.glob("audit/*/summary.json"))
    assert [path.parent.name.rpartition("-")[0] for path in paths] == ["scenes-m2f", "scenes-sam"]
    for path in paths:
        summary = json.loads(path.read_text())
        means = summary["means"]
        assert summary["totals"]["samples"] == 4
        assert means["top_5"] > means["shuffled_masks_top_5"] + 0.1
        assert means["color_baseline_top_5"] > 0  # color alone: 4 images can't tell who is ahead
        assert path.parent.name in page


def test_readme_install_commands_name_what_exists() -> None:
    installs = [line for line in lines("bash") if line.startswith("pip install")]
    assert len(installs) == 2
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in installs:
        install, then = line.split(" && ")
        words = shlex.split(install)
        assert (ROOT / words[words.index("-c") + 1]).exists()
        for extra in re.findall(r"\[(\w+)\]", words[-1]):
            assert extra in extras["optional-dependencies"]
        assert then in {"synthgen demo", "pytest"}


@pytest.mark.parametrize("line", COMMANDS)
def test_readme_commands_parse(line: str) -> None:
    """Every flag is known, every value is of its type, every setting exists; nothing is run."""
    changes = parse(line).get("overrides") or []
    if line.startswith("synthgen evaluate downstream"):  # has settings of its own
        load_section(DownstreamSettings, changes, synthetic={"url": "data/scenes"})
    else:
        load(overrides=changes)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("synthgen bench kmeans --absent", "No such option: --absent"),
        ("synthgen export here", "Missing parameter: out"),
        ("synthgen label here --num 0", "greater than or equal to 1"),
        ("synthgen generate here --set seeds=[0]", "seeds must be a known setting"),
        ("synthgen evaluate downstream --set seed=0", "seed must be a known setting"),
    ],
)
def test_wrong_commands_do_not_parse(line: str, reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        test_readme_commands_parse(line)


def parse(line: str) -> dict[str, Any]:
    """Parameters of a command line, as its function would get them."""
    command, words = CLI, shlex.split(line)[1:]
    while known := getattr(command, "commands", {}):
        command, words = known[words[0]], words[1:]
    return dict(command.make_context("synthgen", words).params)


@pytest.mark.usefixtures("labeled")
@pytest.mark.parametrize("line", RUN)
def test_readme_commands_run(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    succeed(line)


@pytest.mark.usefixtures("labeled")
def test_readme_snippets_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    snippets = blocks("python")
    assert len(snippets) >= 3
    for number, snippet in enumerate(snippets):
        named = re.match(r"# (\w+\.py)\n", snippet)
        if named:
            (place / named[1]).write_text(snippet)
        exec(compile(snippet, f"README block {number}", "exec"), {"__name__": f"block{number}"})
