"""The command line as a user runs it: help, mistakes, two engines, signals, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from synthgen import jobs
from synthgen.cli import app, main
from synthgen.cli.display import Tally
from synthgen.config import load

pytestmark = pytest.mark.timeout(1200)  # processes of their own, on machines that are busy
WORDS = ("car", "dog", "tree")
COMMANDS = ["demo", "generate", "verify", "audit", "report", "view", "inspect"]
COMMANDS += ["label", "extend", "merge", "serve", "export", "push", "study", "train", "evaluate"]
COMMANDS += ["replay", "gc", "doctor", "config", "bench", "status", "plan", "oneshot"]


def synthgen(*args: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-c", "from synthgen.cli import main; main()", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def here(*args: object) -> str:
    """What a command that succeeds prints; in this process, which has torch imported already."""
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def tiny_config(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of six images in three shards on the tiny random-weight pipeline."""
    folder = tmp_path_factory.mktemp("cli")
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": f"a {w}", "classes": [w]}) + "\n" for w in WORDS)
    )
    config = folder / "config.yaml"
    config.write_text(
        f"prompts: {prompts}\nnum: 6\nmodel: {{card: {tiny_pipeline}}}\n"
        "generation: {num_inference_steps: 2, batch_size: 2, height: 64, width: 64}\n"
        "segmentation: {features: {components: 2}, clusters: {ks: [2, 3]}}\n"
        "dataset: {shard_size: 2, preview_every: 2}\n"
    )
    return config


def hashes(out: Path) -> dict[str, str]:
    """The sha256 of every shard, from the manifest."""
    manifest = json.loads((out / "manifest.json").read_text())
    return {shard["name"]: shard["sha256"] for shard in manifest["shards"]}


def test_help_names_every_command_and_teaches_by_example() -> None:
    top = synthgen("--help")
    assert top.returncode == 0
    for command in COMMANDS:
        assert command in top.stdout
    assert "synthgen generate voc --set model.card=sd21-base" in here("generate", "-h")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["generate", "absent.jsonl", "--dry-run"], "absent.jsonl"),
        (["generate", "scenes", "--set", "num", "--dry-run"], "key=value"),
        (["generate", "scenes", "--set", "sead=1", "--dry-run"], "seed"),
        (["generate", "scenes", "--set", "model.card=scense", "--dry-run"], "scenes"),
        (["generate", "scenes", "--num", "0"], "num"),
        (["generate", "scenes", "--set", "segmentation.method=per-haed"], "'per-head'?"),
        (["generate", "scenes", "--set", "labeling.method=cluster"], "'clusters'?"),
        (["generate", "scenes", "--runner", "rayy"], "'ray'?"),
        (["generate", "scenes", "--engine", "inline", "--workers", "3"], "--engine inline"),
        (["generate", "scenes", "--audit", "scenes-sma"], "'scenes-sam'?"),
        (
            ["config", "validate", "scenes", "--set", "labeling.refiner=guided"],
            "guided is called pamr",
        ),
        (["config", "validate", "absent.yaml"], "readable"),
        (["verify", "absent-folder"], "absent-folder"),
        (["replay", "absent-folder", "0000000000"], "absent-folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    args: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["synthgen", *args])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    assert words in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_dry_run_counts_and_makes_nothing(tiny_config: Path, tmp_path: Path) -> None:
    said = here("generate", tiny_config, "--out", tmp_path / "x", "--dry-run")
    assert "3" in next(line for line in said.splitlines() if "shards" in line)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.device=cuda"], "model.device must be present"),
        (["labeling.method=clusters", "prompts=plain.txt"], "must have classes"),
        (["labeling.method=clusters", "prompts=many.jsonl"], "at most 254 classes"),
        (["model.card=empty"], "empty"),
        (["seed=9", "--out=other"], "Got a change of seed"),
        (["--out=plain.txt"], "must be a folder"),
        (["--audit=scenes-sma"], "'scenes-sam'?"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    settings: list[str],
    words: str,
    tiny_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.txt").write_text("a dog\n")
    rows = ({"prompt": f"a c{i} d{i}", "classes": [f"c{i}", f"d{i}"]} for i in range(150))
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "empty").mkdir()
    jobs.GenerateJob(load(tiny_config), tmp_path / "other").begin()
    before = sorted(tmp_path.rglob("*"))
    given = [w for s in settings for w in ([s] if s.startswith("--") else ["--set", s])]
    for last in ([], ["--dry-run"]):
        if not last and torch.cuda.is_available():
            continue
        command = ["synthgen", "generate", str(tiny_config), "--engine", "inline", *given, *last]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        *warned, said = printed.err.strip().splitlines()
        assert (stopped.value.code, words in said) == (2, True), printed.err
        assert all(line.startswith("warning: ") for line in warned)
        assert sorted(tmp_path.rglob("*")) == before


def test_the_same_command_finishes_what_was_extended(tiny_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    here("generate", tiny_config, "--out", out, "--engine", "inline")
    here("extend", out, "--engine", "inline")
    (out / "manifest.json").unlink()
    here("generate", tiny_config, "--out", out, "--engine", "inline")
    assert jobs.status(out).planned == 8
    assert jobs.status(out).finalized


def test_both_engines_and_any_number_of_workers_give_the_same_shards(
    tiny_config: Path, tmp_path: Path
) -> None:
    inline = ["generate", tiny_config, "--engine", "inline", "--out"]
    here(*inline, tmp_path / "inline")
    done = synthgen("generate", tiny_config, "--out", tmp_path / "flow", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert len(hashes(tmp_path / "inline")) == 3
    assert hashes(tmp_path / "inline") == hashes(tmp_path / "flow")
    assert "nothing was done" in here(*inline, tmp_path / "flow")
    here("verify", tmp_path / "flow", "--deep")
    replayed = here("replay", tmp_path / "flow", "0000010001")
    assert "DIFFERENT" not in replayed
    assert "same" in replayed


def test_config_show_is_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(here("config", "show", "--set", "num=3"))
    assert json.loads(here("config", "validate", path))["valid"] is True


def test_tally_counts_reused_samples_as_done_but_not_made() -> None:
    tally = Tally(planned=4, shards=2)
    tally.count("shard", {"planned": 2, "reused": True})
    tally.count("samples", {"count": 2})
    tally.count("shard", {"planned": 2, "reused": False})
    assert (tally.done, tally.made, tally.shards_done) == (4, 2, 2)
    assert tally.line.startswith("4/4 images, 2/2 shards")
