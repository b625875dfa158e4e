"""Growth: work and memory depend on what is new, not on what stands or is planned."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from synthgen.cli import app
from synthgen.config import Config, load
from synthgen.prompts import load_prompts
from synthgen.run.plan import MAX_SHARDS, plan, plan_prompts, shard_spans


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
