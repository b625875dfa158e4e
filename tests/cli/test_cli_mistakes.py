"""Mistakes on the command line are one line before anything is made; help and what looks."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from made_export import make_dataset
from PIL import Image
from typer.testing import CliRunner

from synthgen.cli import app, main
from synthgen.cli.verify import status_lines
from synthgen.jobs import DatasetStatus

Refused = Callable[..., str]
SECRET = "hunter2hunter2"


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Run a command that must end with exit code 2; gives its one line."""

    def run(*args: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["synthgen", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert (stopped.value.code, printed.out) == (2, ""), printed.err
        lines = printed.err.strip().splitlines()
        assert len(lines) == 1, printed.err
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0]

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, labeled dataset of four drawn images."""
    out = tmp_path_factory.mktemp("mistakes") / "data"
    make_dataset(out, num=4, shard_size=2)
    return out


def pages(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from pages(child, (*path, name))


PAGES = dict(pages(typer.main.get_command(app)))


@pytest.mark.parametrize("path", PAGES, ids=" ".join)
def test_help_shows_brackets_and_examples_that_can_be_pasted(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 200)
    shown = CliRunner().invoke(app, [*path, "--help"]).output
    texts = [PAGES[path].help or "", *(getattr(p, "help", "") or "" for p in PAGES[path].params)]
    for bracket in re.findall(r"\[[^\]]*\]", " ".join(texts)):
        assert bracket in shown
    examples = (PAGES[path].help or "").partition("Examples:")[2]
    for paragraph in examples.split("\n\n"):
        first, *others = paragraph.strip().splitlines() or [""]
        assert first.startswith("synthgen") == bool(first)
        for line, following in zip([first, *others], others, strict=False):
            assert line.endswith(" \\")
            assert following.startswith("    ")
        if first:
            assert f"\n   {first}" in shown, "examples are indented alike"


@pytest.mark.parametrize(
    ("path", "defaults"),
    [
        ("doctor", ["scenes", "synthgen-doctor"]),
        ("study", ["scenes"]),
    ],
)
def test_help_shows_defaults_that_depend_on_others(
    path: str, defaults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 200)
    shown = CliRunner().invoke(app, [path, "--help"]).output
    for default in defaults:
        assert f"[default: ({default}" in shown


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"s3://key:{SECRET}@127.0.0.1/x", "must not hold credentials"),
        (f"s3://bucket/x?token={SECRET}", "must not hold credentials"),
        (f"ftp://me:{SECRET}@host/x", "Got 'ftp'"),
        (f"hf://datasets/me:{SECRET}@hub/x/y", "hf://datasets/owner/name. Got another"),
        (f"hf://me:{SECRET}@hub/x", "check the URL"),
        ("hf://me/scenes", "did you mean hf://datasets/me/scenes?"),
    ],
)
def test_targets_of_push_are_refused_without_repeating_secrets(
    url: str, words: str, made: Path, refused: Refused
) -> None:
    said = refused("push", made, url)
    assert words in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "nosuch", "--val", "scenes"], "DIR (no --labels): "),
        (["train", "scenes", "--val", "nosuch"], "--val (no --val-labels): "),
        (["train", "DATA", "--val", "DATA", "--labels", "x"], "DIR (--labels 'x'): "),
        (["train", "scenes", "--val", "DATA", "--val-labels", "x"], "--val (--val-labels 'x'): "),
        (["evaluate", "downstream", "--data", "nosuch"], "must have a manifest"),
        (["evaluate", "downstream", "--set", "arms=[nosuch]"], "arms"),
        (["train", "scenes", "--val", "scenes", "--device", "gpu"], "--device must be present"),
        (["evaluate", "downstream", "--set", "training.device=gpu"], "training.device must be"),
    ],
)
def test_datasets_are_looked_at_before_scenes_are_rendered(
    args: list[str], words: str, made: Path, refused: Refused
) -> None:
    assert words in refused(*(made if arg == "DATA" else arg for arg in args))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["train", "DATA", "--val", "DATA", "--epochs", "0", "--set", "steps=9"],
            "with --set steps",
        ),
        (["train", "scenes", "--val", "scenes", "--labels", "x"], "--labels has no effect on"),
        (["train", "scenes", "--val", "scenes", "--audited", "x"], "--audited has no effect on"),
        (["train", "scenes", "--val", "scenes", "--found-only"], "--found-only has no effect on"),
        (["train", "DATA", "--val", "scenes", "--val-labels", "x"], "--val-labels has no effect"),
        (
            ["evaluate", "downstream", "--data", "DATA", "--set", "generate.num=2"],
            "--set generate has no effect",
        ),
        (["export", "DATA", "out", "--set", "keep_only=false"], "without audited"),
        (["inspect", "a car", "--checkpoint", "x.pth"], "--checkpoint has no effect without"),
        (["inspect", "a car", "--sha256", "0"], "--sha256 has no effect without --auditor"),
        (["doctor", "--card", "scenes"], "--card has no effect without --run"),
        (["study", "layers", "--prompts", "voc", "--images", "rendered"], "with --images"),
        (["plan", "scenes", "--rate", "1"], "--rate has no effect without --cost"),
        (["plan", "scenes", "--workers", "1"], "--workers has no effect without --cost"),
    ],
)
def test_options_without_effect_are_refused(
    args: list[str], words: str, made: Path, refused: Refused
) -> None:
    said = refused(*(made if arg == "DATA" else arg for arg in args))
    assert words in said
    assert "Leave it out" in said


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (["view", "x", "--port", "-1"], "--port"),
        (["view", "x", "--port", "65536"], "--port"),
        (["report", "x", "--num", "0"], "--num"),
        (["bench", "scenes", "--num", "0"], "--num"),
        (["bench", "quality", "--num", "0"], "--num"),
        (["bench", "m2f", "--num", "0"], "--num"),
        (["bench", "capture", "--num-pairs", "8"], "--num-pairs"),
    ],
)
def test_values_out_of_bounds_name_their_option(
    args: list[str], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 2
    assert f"Invalid value for '{option}'" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["report", "DATA", "--out", "folder"], "did you mean folder/index.html?"),
        (["inspect", "a red car", "--out", "notes.txt"], "--out must be a folder"),
        (["inspect", "a red car", "--out", "notes.txt/x"], "notes.txt is a file"),
        (["inspect", "photo.bmp"], "'photo.bmp': No such file"),
        (["inspect", "picture.bmp"], "must show something. Got 'picture.bmp', all of one color"),
        (["inspect", "notes.txt"], "must be readable"),
        (["inspect", "folder"], "'folder': Is a directory"),
        (["inspect", ""], "Got an empty text"),
        (["inspect", "  "], "Got an empty text"),
        (["report", "nosuch"], "nosuch"),
        (["view", "nosuch"], "nosuch"),
        (["view", "s3://bucket/x"], "must be a folder on this machine"),
        (["config", "show", "nosuch"], "nosuch"),
        (["config", "show", "nosuch.jsonl"], "nosuch.jsonl"),
        (["status", "folder"], "must be a dataset. Got no"),
        (["verify", "folder"], "must be a dataset. Got no identity.json"),
        (["verify", "nosuch"], "must be a dataset. Got no identity.json"),
        (["export", "DATA", "notes.txt"], "OUT must be a new or empty folder"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(
    args: list[str], words: str, made: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/README.md").write_text("of something else")
    (tmp_path / "notes.txt").write_text("no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.bmp")
    assert words in refused(*(made if arg == "DATA" else arg for arg in args))


def test_a_plan_is_one_json_object_on_request() -> None:
    done = CliRunner().invoke(app, ["plan", "scenes", "--num", "9", "--json"])
    assert json.loads(done.stdout)["samples"] == 9
    done = CliRunner().invoke(
        app, ["plan", "scenes", "--num", "9", "--json", "--cost", "--rate", "2"]
    )
    assert json.loads(done.stdout)["hours"] == round(9 / 2 / 3600, 4)


def test_problems_are_counted_by_kind_on_request(made: Path, tmp_path: Path) -> None:
    data = shutil.copytree(made, tmp_path / "data")
    (data / "data/train-000001.tar").unlink()
    done = CliRunner().invoke(app, ["verify", str(data), "--json"])
    said = json.loads(done.stdout)
    assert (done.exit_code, said["correct"]) == (1, False)
    assert said["kinds"]["marker without tar"] == 1
    assert said["total"] == len(said["problems"]) == sum(said["kinds"].values())
    assert {"kind", "where", "message"} == set(said["problems"][0])


def test_the_version_is_the_package_s() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"synthgen {metadata.version('synthgen')}\n")


def test_status_tells_how_far_a_dataset_is(tiny_dataset: Path, tmp_path: Path) -> None:
    def told(root: Path) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["status", str(root), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    manifest = json.loads((tiny_dataset / "manifest.json").read_text())
    whole = told(tiny_dataset)
    assert whole["finalized"]
    assert whole["samples"] == whole["planned"] == manifest["totals"]["samples"] == 8
    assert whole["num_bytes"] == sum(p.stat().st_size for p in tiny_dataset.glob("data/*.tar"))
    assert (whole["failed"], whole["reasons"]) == (0, {})
    cut_off = shutil.copytree(tiny_dataset, tmp_path / "cut-off")
    (cut_off / "manifest.json").unlink()
    (cut_off / "data/train-000001.tar").unlink()
    found = told(cut_off)
    assert (found["finalized"], found["complete_shards"], found["planned_shards"]) == (False, 2, 3)
    shown = CliRunner().invoke(app, ["status", str(cut_off)]).stdout
    assert "5 samples in 2 shards" in shown
    assert "run the command that made it again" in shown


def test_status_names_why_samples_failed() -> None:
    found = DatasetStatus(2, 1, 9, 3, 2, {"black": 2}, 1_500_000, 0, False)
    lines = status_lines(found)
    assert [line.split()[:2] for line in lines[2:4]] == [["failed", "2"], ["black", "2"]]
    assert lines[4].split() == ["size", "1.5", "MB"]
