"""Growth: what stands stays, what comes is determined, and nothing is lost or made twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
from tiny_run import tiny_config, tree_hashes, write_prompts
from typer.testing import CliRunner

from synthgen import jobs
from synthgen.cli import app
from synthgen.config import Config
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.manifest import publish_manifest, read_manifest
from synthgen.dataset.verify import verify_dataset
from synthgen.jobs.extend import LEAST_WEIGHT
from synthgen.jobs.identity import read_config
from synthgen.jobs.plan import balanced_prompt
from synthgen.progress import Stopped
from synthgen.storage.publish import open_storage
from synthgen.types import Prompt


@pytest.fixture
def config(tiny_pipeline: Path, tiny_dataset: Path) -> Config:
    """The configuration that ``tiny_dataset`` was made with: 8 samples in shards of 3, 3 and 2."""
    return tiny_config(tiny_pipeline, tiny_dataset.parent / "prompts.jsonl")


@pytest.fixture(scope="module")
def extended(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_dataset`` with an extension of one shard, and then one of two."""
    out = shutil.copytree(tiny_dataset, tmp_path_factory.mktemp("extended") / "out")
    jobs.extend(out, 1)
    jobs.extend(out, 2)
    return out


def keys(out: Path, version: int | None = None) -> list[str]:
    return [sample["key"] for sample in open_dataset(out, version=version)]


# --- what it makes ------------------------------------------------------------------------------


def test_what_was_published_stays_and_new_shards_are_whole(
    extended: Path, tiny_dataset: Path
) -> None:
    before, after = tree_hashes(tiny_dataset), tree_hashes(extended)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"config.yaml", "manifest.json", "README.md"}
    shards = json.loads((extended / "manifest.json").read_text())["shards"]
    assert [row["planned"] for row in shards] == [3, 3, 2, 3, 3, 3]
    assert verify_dataset(extended, deep=True) == []
    assert jobs.status(extended).finalized


def test_prompts_go_on_and_every_image_keeps_its_identity(extended: Path) -> None:
    infos = [sample["json"] for sample in open_dataset(extended)]
    assert [info["prompt_id"] for info in infos] == (["car", "dog", "sky"] * 6)[:17]
    assert [info["image_index"] for info in infos] == [i // 3 for i in range(17)]
    expected = [jobs.sample_seed(11, i["prompt_id"], i["image_index"]) for i in infos]
    assert [info["seed"] for info in infos] == expected
    assert len(set(expected)) == 17


def test_consumers_of_an_older_version_see_what_they_saw(
    extended: Path, tiny_dataset: Path
) -> None:
    old = keys(tiny_dataset)
    assert keys(extended, version=1) == old
    assert keys(extended, version=2) == [*old, *(f"000003000{i}" for i in range(3))]
    assert keys(extended, version=3) == keys(extended)
    assert len(keys(extended)) == 17
    with pytest.raises(ValueError, match="there: 1 to 3"):
        open_dataset(extended, version=4)


def test_the_steps_of_growth_do_not_matter(
    extended: Path, tiny_dataset: Path, tmp_path: Path, config: Config
) -> None:
    """Three at once, and all 17 begun as one plan, give the tars of one and then two."""
    out = shutil.copytree(tiny_dataset, tmp_path / "at-once")
    jobs.extend(out, 3)
    whole = config.model_copy(update={"extended": 3})
    jobs.generate(whole, tmp_path / "whole")
    expected = _without_history(extended)
    assert _without_history(out) == expected
    assert _without_history(tmp_path / "whole") == expected
    assert jobs.replay(out, "0000040001") != {}
    assert all(jobs.replay(out, "0000040001").values())


def _without_history(out: Path) -> dict[str, str]:
    return {k: v for k, v in tree_hashes(out).items() if not k.startswith("manifests/")}


def test_a_configuration_begins_the_dataset_and_then_extends_it(
    config: Config, extended: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    totals = [jobs.extend(out, 1, config)["totals"]["planned"] for _ in range(2)]
    assert totals == [8, 11]
    assert keys(out) == keys(extended, version=2)


def test_the_command_extends_by_url(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = fsspec.filesystem("memory")
    store.put(str(tiny_dataset), "/grown", recursive=True)
    done = CliRunner().invoke(app, ["extend", "memory://grown", "--engine", "inline"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert jobs.status("memory://grown").planned == 11
    assert verify_dataset("memory://grown", deep=True) == []
    assert list(tmp_path.iterdir()) == []  # a URL never names a local folder
    store.rm("/grown", recursive=True)


def test_a_balanced_extension_draws_what_a_segmenter_knows_least(
    config: Config, extended: Path, tmp_path: Path
) -> None:
    """Cars are known, dogs are not: those are drawn, in that extension and the one after it."""
    scores = {"class_iou": {"background": 0.9, "car": 0.99, "dog": 0.1, "sky": 0.95}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "segmenter.json").write_text(json.dumps({"scores": scores}))
    weights = jobs.weights_by_score(tmp_path / "run")
    assert weights == pytest.approx({"car": LEAST_WEIGHT, "dog": 0.9, "sky": 0.05})
    out = shutil.copytree(extended, tmp_path / "out")
    jobs.extend(out, 1, weights=weights)
    jobs.extend(out, 1)
    assert verify_dataset(out, deep=True) == []
    infos = [sample["json"] for sample in open_dataset(out)]
    plan = jobs.plan(read_config(open_storage(out)))
    planned = [sample for shard in plan for sample in shard.samples]
    assert [s.prompt.id for s in planned] == [info["prompt_id"] for info in infos]
    assert [info["prompt_id"] for info in infos[:17]] == (["car", "dog", "sky"] * 6)[:17]
    assert {info["prompt_id"] for info in infos[17:]} == {"dog", "sky"}  # sky names no class
    assert len({(info["prompt_id"], info["image_index"]) for info in infos}) == 23
    again = shutil.copytree(out, tmp_path / "again")  # a lost shard is made again as it was
    for path in again.rglob("*000006*"):
        path.unlink()
    jobs.generate(jobs.as_extended(config, again), again)
    assert tree_hashes(again)["data/train-000006.tar"] == tree_hashes(out)["data/train-000006.tar"]
    forgotten = config.model_copy(update={"extended": 5})
    with pytest.raises(ValueError, match="must keep them"):
        jobs.generate(forgotten, out)


def test_prompts_are_drawn_as_often_as_their_classes_weigh() -> None:
    prompts = [Prompt(n, n, c) for n, c in {"a": ("a",), "b": ("b",), "ab": ("a", "b")}.items()]
    drawn = Counter(balanced_prompt(prompts, {"a": 0.2, "b": 0.8}, 0, i) for i in range(6000))
    for which, weight in enumerate((0.2, 0.8, 0.5)):
        assert drawn[which] == pytest.approx(6000 * weight / 1.5, rel=0.08)
    unknown = [Prompt("c", "c", ("c",)), Prompt("a", "a", ("a",)), Prompt("-", "-", ())]
    drawn = Counter(balanced_prompt(unknown, {"a": 0.5, "b": 1.0}, 1, i) for i in range(6000))
    assert drawn[0] == pytest.approx(2400, rel=0.08)
    assert drawn[2] == pytest.approx(2400, rel=0.08)


@pytest.mark.parametrize("content", ["", "{}", '{"scores": {"class_iou": {"a": 2.0}}}', "[]"])
def test_what_is_no_training_does_not_balance(
    content: str, extended: Path, tmp_path: Path
) -> None:
    (tmp_path / "segmenter.json").write_text(content)
    before = tree_hashes(extended)
    with pytest.raises(ValueError, match="Classes must be balanced by a folder of 'synthgen tra"):
        jobs.weights_by_score(tmp_path)
    command = ["extend", str(extended), "--balance-by", str(tmp_path), "--engine", "inline"]
    assert isinstance(CliRunner().invoke(app, command).exception, ValueError)
    assert tree_hashes(extended) == before


# --- what goes wrong ----------------------------------------------------------------------------


def test_killed_between_version_and_manifest_the_version_is_used(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_dataset, tmp_path / "out")
    jobs.extend(out, 1)
    shutil.copy(out / "manifests" / "v0001.json", out / "manifest.json")  # as if never replaced
    assert jobs.extend(out, 1)["totals"]["planned"] == 11
    assert [path.name for path in sorted((out / "manifests").iterdir())] == [
        "v0001.json",
        "v0002.json",
    ]
    storage = open_storage(out)
    manifest = read_manifest(storage, 2)
    assert manifest is not None
    assert publish_manifest(storage, manifest) == read_manifest(storage)


@pytest.mark.parametrize("begun", [True, False])
def test_killed_after_its_commit_it_is_not_repeated(
    begun: bool,
    config: Config,
    tiny_dataset: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody has heard that it is done: run again it ends, and only then a new one begins."""
    out = tmp_path / "out"
    if begun:
        shutil.copytree(tiny_dataset, out)
    planned = 11 if begun else 8
    with suppress(Stopped), jobs.extension(out, 1, config) as extended:
        jobs.generate(extended, out)
        raise Stopped
    before = tree_hashes(out)
    assert jobs.extend(out, 1, config)["totals"]["planned"] == planned
    assert "it is ended, none added" in caplog.text
    assert tree_hashes(out) == before
    assert jobs.extend(out, 1, config)["totals"]["planned"] == planned + 3
    assert jobs.extend(out, 1, config)["totals"]["planned"] == planned + 6


def test_a_copy_without_what_is_hidden_grows(extended: Path, tmp_path: Path) -> None:
    out = shutil.copytree(extended, tmp_path / "out", ignore=lambda *_: [".synthgen"])
    assert jobs.extend(out, 1)["totals"]["planned"] == 20


def test_two_extensions_at_once_collide_clearly(extended: Path, tmp_path: Path) -> None:
    out = shutil.copytree(extended, tmp_path / "out")
    main = (sys.executable, "-c", "from synthgen.cli import main; main()")
    command = [*main, "extend", str(out), "--engine", "inline"]
    with jobs.extension(out, 1):
        with pytest.raises(RuntimeError, match="One process at a time may extend a dataset"):
            jobs.extend(out, 1)
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("synthgen: One process at a time may extend a dataset")
    assert len(done.stderr.splitlines()) == 1
    assert tree_hashes(out) == tree_hashes(extended)


def test_a_plan_without_the_extensions_is_refused(
    extended: Path, config: Config, tmp_path: Path
) -> None:
    out = shutil.copytree(extended, tmp_path / "out")
    for update in ({}, {"num": 20}, {"num": 17}, {"num": 9, "extended": 3}):
        with pytest.raises(ValueError, match="synthgen extend"):
            jobs.generate(config.model_copy(update=update), out)
    with pytest.raises(ValueError, match="num must stay"):
        jobs.extend(out, 1, config.model_copy(update={"num": 9}))
    with pytest.raises(ValueError, match="seed"):
        jobs.extend(out, 1, config.model_copy(update={"seed": 5}))
    assert tree_hashes(out) == tree_hashes(extended)


def test_other_prompts_are_refused(
    tiny_pipeline: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_dataset, tmp_path / "out")
    one = write_prompts(tmp_path / "p.jsonl", ({"prompt": "a red car", "classes": ["car"]},))
    with pytest.raises(ValueError, match="prompts"):
        jobs.extend(out, 1, tiny_config(tiny_pipeline, one))
    assert tree_hashes(out) == tree_hashes(tiny_dataset)


def test_nothing_to_extend_is_said_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a dataset"):
        jobs.extend(tmp_path / "nothing", 1)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(ValueError, match="at least 1"):
        jobs.extend(tmp_path / "nothing", 0)
