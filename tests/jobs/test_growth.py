"""Growth: work and memory depend on what is new, not on what stands or is planned."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from grown import grow
from ordered import ordered_config
from tiny_run import tiny_config, tree_hashes, write_prompts
from typer.testing import CliRunner

from synthgen import jobs
from synthgen.cli import app
from synthgen.config import Config, load
from synthgen.dataset.loader import open_dataset
from synthgen.jobs.plan import MAX_SHARDS, plan, plan_prompts, shard_spans
from synthgen.prompts import load_prompts
from synthgen.storage.publish import Storage


def test_a_plan_is_computed_shard_by_shard() -> None:
    config = load(overrides=["num=1000000000", "dataset.shard_size=1000"])
    prompts = load_prompts(config.prompts)
    tracemalloc.start()
    shards = plan_prompts(config, prompts)
    last = shards[-1]
    assert (len(shards), last.name) == (MAX_SHARDS, "train-999999")
    assert [sample.key for sample in last.samples[::999]] == ["9999990000", "9999990999"]
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("extended", [0, 1, 3])
@pytest.mark.parametrize("num", [1, 5, 6, 7])
def test_spans_are_those_that_an_enumeration_gives(num: int, extended: int) -> None:
    config = Config.model_validate(
        {"num": num, "extended": extended, "dataset": {"shard_size": 3}}
    )
    starts = [*range(0, num, 3), *range(num, config.planned, 3), config.planned]
    expected = [range(a, b) for a, b in pairwise(starts)]
    assert list(shard_spans(config)) == expected
    assert [s.index for s in plan(config)] == list(range(len(expected)))


@pytest.mark.parametrize("command", [["plan"], ["generate", "--dry-run"], ["generate"]])
def test_more_shards_than_numbers_have_digits_for_are_refused(command: list[str]) -> None:
    done = CliRunner().invoke(app, [*command, "scenes", "--num", "10000000000000"])
    assert isinstance(done.exception, ValueError)  # one line and exit code 2, by `main`
    assert "at most 1,000,000 shards" in str(done.exception)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    return grow(tmp_path_factory.mktemp("grown"), 1000)


class Counted(Counter[str]):
    """Calls of a storage by what is done, while they are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        for name in ("read", "size", "open", "publish", "facts", "names"):
            monkeypatch.setattr(Storage, name, self._counting(name, getattr(Storage, name)))

    def _counting(self, name: str, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self[name] += 1
            return call(*args, **kwargs)

        return counted


def test_work_depends_on_what_is_new(
    grown: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,000 shards; listings are one per folder, whatever stands in it."""
    config, out = grown
    calls = Counted(monkeypatch)
    found = jobs.status(out)
    assert (found.complete_shards, found.samples, found.finalized) == (1000, 1000, True)
    assert calls.total() <= 12, calls
    calls.clear()
    assert jobs.generate(config, out)["totals"]["shards"] == 1000
    assert calls.total() <= 80, calls
    calls.clear()
    assert jobs.extend(out, 1)["totals"]["shards"] == 1001
    assert calls.total() <= 120, calls
    assert jobs.status(out).complete_shards == 1001
    numbers = [len(open_dataset(out, version=n).pipeline[0].urls) for n in (1, 2, 3)]
    assert numbers == [1, 1000, 1001]


def test_what_changed_since_the_manifest_is_asked_again(
    tmp_path: Path,
) -> None:
    config = ordered_config(tmp_path, "num=12")
    jobs.generate(config, tmp_path / "out")
    before = tree_hashes(tmp_path / "out")
    for name in ("data/train-000001.tar", "metadata/train-000002.parquet"):
        (tmp_path / "out" / name).unlink()
        assert jobs.status(tmp_path / "out").complete_shards == 2
        jobs.generate(config, tmp_path / "out")
        assert tree_hashes(tmp_path / "out") == before
    marker = tmp_path / "out" / "stats/train-000000.json"
    marker.unlink()
    assert jobs.GenerateJob(config, tmp_path / "out").missing() == ["train-000000"]
    jobs.generate(config, tmp_path / "out")
    assert tree_hashes(tmp_path / "out") == before


def test_statistics_of_labels_are_gone_on_with(tiny_pipeline: Path, tmp_path: Path) -> None:
    """Growing step by step gives the card of all at once, and reads the new rows alone."""
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    config = tiny_config(tiny_pipeline, prompts, "labeling.method=clusters", "num=3")
    steps, whole = tmp_path / "steps", tmp_path / "whole"
    jobs.generate(config, steps)
    (steps / "metadata" / "aside").mkdir()
    rows = steps / "metadata" / "train-000000.parquet"
    content = rows.read_bytes()
    rows.write_bytes(b"not looked at")
    jobs.extend(steps, 1)
    rows.write_bytes(content)
    (steps / "metadata" / "aside").rmdir()
    jobs.generate(config.model_copy(update={"extended": 1}), whole)
    assert (steps / "README.md").read_text() == (whole / "README.md").read_text()
    assert "| car |" in (whole / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_shards_cost_seconds_and_megabytes(tmp_path: Path) -> None:
    """The bars of growth: status 2 s, extend by one 10 s, 500 MB, of one core, in a child."""
    grow(tmp_path, 100_000)
    for call, seconds in (("jobs.status(out)", 2.0), ("jobs.extend(out, 1)", 10.0)):
        program = (
            "import re, sys, time\nfrom synthgen import jobs\nout = sys.argv[1]\n"
            f"start = time.process_time()\n{call}\nprint(time.process_time() - start)\n"
            "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())\n"
            "print(int(peak[1]) // 1024)"  # ru_maxrss is that of pytest, where it was larger
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "out")],
            cwd=Path(__file__).parents[1] / "helpers", capture_output=True, text=True, check=True,
        )  # fmt: skip
        took, megabytes = map(float, done.stdout.split())
        print(f"{call}: {took:.2f} s, {megabytes:.0f} MB")
        assert took <= seconds
        assert megabytes <= 500 or "extend" in call  # which holds torch and a model
