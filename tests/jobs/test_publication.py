"""What stands is not lost: neither to gc, nor to a run with an older plan, nor with its marker."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import rewrite, tiny_config, tree_hashes
from typer.testing import CliRunner

from synthgen import jobs
from synthgen.cli import app
from synthgen.config import Config
from synthgen.dataset.manifest import read_marker
from synthgen.dataset.metadata import Row, read_rows
from synthgen.dataset.verify import verify_dataset
from synthgen.diffusion import generate as drawing
from synthgen.storage.publish import Storage, open_storage
from synthgen.types import Failure

SHARDS = ("train-000000", "train-000001", "train-000002")


@pytest.fixture
def config(tiny_pipeline: Path, tiny_dataset: Path) -> Config:
    """The configuration that ``tiny_dataset`` was made with: 8 samples in shards of 3, 3 and 2."""
    return tiny_config(tiny_pipeline, tiny_dataset.parent / "prompts.jsonl")


@pytest.fixture
def out(tiny_dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_dataset, tmp_path / "out")


@pytest.fixture
def unfinished(out: Path) -> Path:
    """A dataset that no manifest lists yet: nothing but its markers knows its tars."""
    shutil.rmtree(out / "manifests")
    (out / "manifest.json").unlink()
    return out


def flip(path: Path, name: str, value: object) -> None:
    """Another value under a name of a JSON file."""
    rewrite(path, **{name: value})


def markers(out: Path) -> dict[str, object]:
    """All that markers say but times, and the hash of rows, which hold times."""
    blank: Any = {"seconds": {}, "created": "", "metadata_sha256": ""}
    found = {shard: read_marker(open_storage(out), shard) for shard in SHARDS}
    return {name: m and replace(m, **blank) for name, m in found.items()}


# --- gc -----------------------------------------------------------------------------------------


def test_gc_removes_orphans_only_and_lists_them_first(
    unfinished: Path, config: Config, tiny_dataset: Path
) -> None:
    out, kept = unfinished, tree_hashes(unfinished)
    (out / "stats" / "train-000002.json").unlink()
    (out / "data" / "train-000007.tar").write_bytes(b"x")
    (out / "data" / "notes.txt").write_text("mine")
    assert jobs.gc(out) == []  # all of it is younger than an hour
    orphans = ["data/train-000002.tar", "metadata/train-000002.parquet", "data/train-000007.tar"]
    before = tree_hashes(out)
    assert jobs.gc(out, orphan_seconds=0.0, dry_run=True) == orphans
    assert tree_hashes(out) == before
    assert jobs.gc(out, orphan_seconds=0.0) == orphans
    assert (out / "data" / "notes.txt").read_text() == "mine"
    (out / "data" / "notes.txt").unlink()
    assert tree_hashes(out) == {n: h for n, h in kept.items() if n != "data/train-000002.tar"}
    jobs.generate(config, out)
    assert tree_hashes(out) == tree_hashes(tiny_dataset)


def test_the_command_lists_what_it_would_remove(out: Path) -> None:
    stale = out / ".synthgen/staging" / f"{'0' * 8}-1-{'0' * 32}"  # of another machine
    stale.mkdir(parents=True)
    os.utime(stale, (0, 0))
    name = stale.relative_to(out)
    done = CliRunner().invoke(app, ["gc", str(out), "--dry-run"])
    assert done.output == f"would be removed  {name}\n1 files would be removed.\n"
    assert stale.exists()
    assert CliRunner().invoke(app, ["gc", str(out)]).output.startswith(f"removed  {name}\n")
    assert not stale.exists()


@pytest.mark.parametrize("lost", [("stats",), ("stats", "metadata")])
def test_what_a_manifest_lists_stays_and_lost_markers_come_back(
    lost: tuple[str, ...], out: Path, tiny_dataset: Path
) -> None:
    for folder in lost:
        shutil.rmtree(out / folder)
    assert jobs.gc(out, orphan_seconds=0.0) == []
    assert tree_hashes(out) == tree_hashes(tiny_dataset)
    assert markers(out) == markers(tiny_dataset)
    assert verify_dataset(out, deep=True) == []


def test_what_an_older_manifest_lists_stays_too(out: Path, config: Config) -> None:
    larger = config.model_copy(update={"num": 9})
    jobs.GenerateJob(larger, out).begin()
    (out / "stats" / "train-000002.json").unlink()  # as if killed before the marker
    (out / "data" / "train-000002.tar").write_bytes(b"of the larger plan")
    assert jobs.gc(out, orphan_seconds=0.0) == []
    assert jobs.generate(larger, out)["totals"]["samples"] == 9
    flip(out / "manifest.json", "shards", [])
    (out / "stats" / "train-000002.json").unlink()
    assert jobs.gc(out, orphan_seconds=0.0) == []
    (out / "manifests" / "v0001.json").write_text("{")
    with pytest.raises(ValueError, match=r"v0001\.json must be readable"):
        jobs.gc(out, orphan_seconds=0.0)
    assert (out / "data" / "train-000002.tar").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("bytes", 10241), ("planned", 7), ("sha256", "0" * 64), ("config", "0")]
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_flipped_bit_in_a_marker_costs_no_shard(
    name: str, value: object, finished: bool, out: Path, config: Config, tiny_dataset: Path
) -> None:
    if not finished:
        shutil.rmtree(out / "manifests")
        (out / "manifest.json").unlink()
    flip(out / "stats" / "train-000001.json", name, value)
    before = tree_hashes(out)
    assert jobs.gc(out, orphan_seconds=0.0) == []
    assert tree_hashes(out) == before
    if not finished and name == "sha256":
        return  # nobody but the marker knows what it was: 'synthgen verify' names it
    assert jobs.generate(config, out)["totals"]["samples"] == 8
    assert tree_hashes(out) == tree_hashes(tiny_dataset)
    assert markers(out) == markers(tiny_dataset)


def test_a_marker_that_cannot_be_read_protects_its_shard(unfinished: Path) -> None:
    flip(unfinished / "stats" / "train-000000.json", "added_later", 1)
    assert jobs.gc(unfinished, orphan_seconds=0.0) == []
    assert (unfinished / "data" / "train-000000.tar").exists()


@pytest.mark.parametrize("lost", ["stats/train-000001.json", "data/train-000001.tar"])
def test_gc_that_was_stopped_looks_again_before_it_removes(
    lost: str,
    unfinished: Path,
    config: Config,
    tiny_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resume finishes between the look and the removals."""
    real, out = Storage.publishing, unfinished
    (out / lost).unlink()

    def resumed(storage: Storage) -> AbstractContextManager[None]:
        monkeypatch.setattr(Storage, "publishing", real)
        jobs.generate(config, out)
        return real(storage)

    monkeypatch.setattr(Storage, "publishing", resumed)
    assert jobs.gc(out, orphan_seconds=0.0, dry_run=True) != []
    assert jobs.gc(out, orphan_seconds=0.0) == []
    assert Storage.publishing is real
    assert tree_hashes(out) == tree_hashes(tiny_dataset)
    assert verify_dataset(out, deep=True) == []


# --- the plan -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["samples", "shard"])
@pytest.mark.parametrize("url", ["file", "memory"])
def test_a_run_that_was_overtaken_by_a_larger_plan_publishes_nothing(
    at: str, url: str, config: Config, tmp_path: Path
) -> None:
    out = f"memory://overtaken-{at}" if url == "memory" else str(tmp_path / "out")
    larger, seen = config.model_copy(update={"num": 10}), 0

    def overtaken(event: str, **fields: object) -> None:
        nonlocal seen
        seen += event == at
        if seen == {"samples": 5, "shard": 2}[at] and event == at:  # the last shard is drawn
            jobs.generate(larger, out)

    with pytest.raises(RuntimeError, match=r"must stay the 8 samples of this run\. Got 10") as no:
        jobs.generate(config, out, progress=overtaken)
    assert len(str(no.value).splitlines()) == 1
    assert verify_dataset(out, deep=True) == []
    assert jobs.status(out).planned == jobs.status(out).samples == 10
    with pytest.raises(ValueError, match="num must not shrink"):
        jobs.GenerateJob(config, out).begin()


def test_a_manifest_of_an_older_plan_is_not_published(out: Path, config: Config) -> None:
    jobs.GenerateJob(config.model_copy(update={"num": 10}), out).begin()
    with pytest.raises(RuntimeError, match="must stay the 8 samples"):
        jobs.GenerateJob(config, out).finalize()


def test_who_publishes_is_waited_for(
    out: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthgen.storage.publish.LOCK_SECONDS", 0.1)
    (out / "data" / "train-000000.tar").unlink()
    with (
        open_storage(out).publishing(),
        pytest.raises(RuntimeError, match="One process at a time may publish in a dataset"),
    ):
        jobs.generate(config, out)


# --- rows ---------------------------------------------------------------------------------------


def rows_of(out: Path) -> Iterator[Row]:
    """All rows without times."""
    for shard in SHARDS:
        for row in read_rows(open_storage(out), shard):
            seconds = {"seconds_generate": 0.0, "seconds_segment": 0.0}
            yield replace(row, **seconds, iterations=0, converged=True)  # type: ignore[arg-type]


def test_lost_rows_are_made_again_from_tar_and_plan(
    config: Config, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With labels, with samples that failed, and with k-means that was stopped."""
    prompts = tmp_path / "prompts.jsonl"
    shutil.copy(config.prompts, prompts)
    stopped = "segmentation.clusters.max_iterations=1"
    labeled = tiny_config(tiny_pipeline, prompts, "labeling.method=clusters", stopped)
    real, doomed = drawing.generate, jobs.plan(labeled)[1].samples[1].seed

    def failing(model: object, prompts: object, seeds: list[int], *rest: object) -> list[object]:
        made = real(model, prompts, seeds, *rest)  # type: ignore[arg-type]
        return [
            Failure(one.prompt, seed, "black_image", "") if seed == doomed else one
            for one, seed in zip(made, seeds, strict=True)
        ]

    monkeypatch.setattr(drawing, "generate", failing)
    out = tmp_path / "out"
    jobs.generate(labeled, out)
    before, known, rows = tree_hashes(out), markers(out), list(rows_of(out))
    assert jobs.status(out).unconverged > 0
    monkeypatch.setattr(drawing, "generate", None)  # nothing may be drawn
    for lost in ("metadata", "stats"):
        shutil.rmtree(out / lost)
        assert not jobs.status(out).complete_shards
        assert jobs.generate(labeled, out)["totals"]["failed"] == 1
        assert tree_hashes(out) == before
        assert markers(out) == known
    again = [replace(row, message="") for row in rows_of(out)]
    assert [replace(row, labels=None) for row in again] == [replace(r, labels=None) for r in rows]
    for row, there in zip(again, rows, strict=True):
        if row.labels is not None and there.labels is not None:
            assert replace(row.labels, scores=()) == replace(there.labels, scores=())
            for score, drawn in zip(row.labels.scores, there.labels.scores, strict=True):
                assert score == pytest.approx(drawn, abs=2e-4)
    assert verify_dataset(out, deep=True) == []


def test_rows_of_another_tar_are_made_again(out: Path, config: Config, tiny_dataset: Path) -> None:
    shutil.copy(out / "metadata/train-000000.parquet", out / "metadata/train-000001.parquet")
    (out / "stats" / "train-000001.json").unlink()  # what 'synthgen verify' says to do
    jobs.generate(config, out)
    assert list(rows_of(out)) == list(rows_of(tiny_dataset))
