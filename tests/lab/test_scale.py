"""Simulated fleets against a slow, obvious simulation; costs against their arithmetic."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from synthgen.cli import app
from synthgen.config import load
from synthgen.jobs.estimate import PUTS_PER_SHARD, REQUESTS_PER_SHARD, ROWS_PER_SHARD, cost
from synthgen.jobs.plan import plan
from synthgen.lab.bench.scale import WORKERS, bench_scale, bootstrap, makespan

durations = st.lists(st.integers(1, 50), min_size=1, max_size=40)


def second_by_second(seconds: list[int], workers: int, startup: int) -> tuple[int, int]:
    """Every worker looks at its clock every second; whoever is free takes the next shard."""
    waiting, left = list(seconds), [startup] * min(workers, len(seconds))
    finished, now = [0] * len(left), 0
    while waiting or any(left):
        for worker, rest in enumerate(left):
            if rest == 0 and waiting:
                left[worker] = waiting.pop(0)
                finished[worker] = now + left[worker]
        now += 1
        left = [max(0, rest - 1) for rest in left]
    return max(finished), min(finished)


@given(durations, st.integers(1, 12), st.integers(0, 9))
def test_makespan_is_that_of_workers_who_look_at_the_clock(
    seconds: list[int], workers: int, startup: int
) -> None:
    times = makespan(np.array(seconds, dtype=float), workers, float(startup))
    assert times == second_by_second(seconds, workers, startup)
    least = max(sum(seconds) / workers, max(seconds))
    last = times[0] - startup
    assert least <= last <= (2 - 1 / workers) * least + 1e-9, "Graham's bounds"


def test_bootstrap_draws_measured_times_and_repeats() -> None:
    measured = np.array([1.0, 2.0, 5.0])
    drawn = bootstrap(measured, 3000, 7)
    assert set(drawn.tolist()) == {1.0, 2.0, 5.0}
    assert abs(drawn.mean() - measured.mean()) < 0.2
    assert np.array_equal(drawn, bootstrap(measured, 3000, 7))


def test_a_fleet_is_simulated_from_the_markers_of_a_dataset(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    markers = [json.loads(path.read_text()) for path in tiny_dataset.glob("stats/*.json")]
    mean = np.mean([sum(marker["seconds"].values()) for marker in markers])
    plot = tmp_path / "plots" / "scale.png"
    found = bench_scale(tiny_dataset, shards=600, startup=0.0, plot=plot)
    assert found["basis"]["measured_shards"] == len(markers) == 3
    assert found["basis"]["seconds_per_shard"] == pytest.approx(mean)
    hours = [row["hours"] for row in found["workers"].values()]
    assert hours == sorted(hours, reverse=True)
    assert hours[0] == pytest.approx(600 * mean / 3600, rel=0.1)
    assert list(found["workers"]) == [str(count) for count in WORKERS]
    assert all(0 < row["efficiency"] <= 1 + 1e-9 for row in found["workers"].values())
    assert found["workers"]["1"]["straggler_seconds"] == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    per_hour = 512 / mean * ROWS_PER_SHARD * 3600
    assert f"{per_hour:,.0f} rows/h" in found["limits"]["server's database"]
    most = 3500 * mean / PUTS_PER_SHARD
    assert f"{most:,.0f} workers" in found["limits"]["object store, most workers"]


def test_too_few_measured_shards_are_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "stats").mkdir()
    shutil.copy(tiny_dataset / "stats" / "train-000000.json", tmp_path / "stats")
    with pytest.raises(ValueError, match=r"At least 2 shards.* Got 1 "):
        bench_scale(tmp_path)


def test_costs_are_those_of_whole_shards_on_whole_workers() -> None:
    config = load(overrides=["num=1000", "dataset.shard_size=64"])
    found = cost(config, rate=2.0, workers=5)
    assert found["shards"] == len(plan(config)) == 16
    assert found["gpu_hours"] == pytest.approx(1000 / 2 / 3600, abs=1e-4)
    assert found["hours"] == pytest.approx((3 * 64 + 40) / 2 / 3600, abs=1e-4)  # 40 are last
    alone = cost(config, rate=2.0)
    assert alone["hours"] == alone["gpu_hours"]
    assert found["requests"] == 16 * REQUESTS_PER_SHARD
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="rate must be"):
            cost(config, rate)


def test_the_command_plans_and_needs_a_rate() -> None:
    runner = CliRunner()
    said = runner.invoke(app, ["plan", "scenes", "--num", "640", "--cost", "--rate", "2"]).stdout
    assert "gpu_hours" in said
    assert "0.0889" in said
    given = ["plan", "scenes", "--num", "640", "--cost", "--rate", "2", "--json"]
    assert json.loads(runner.invoke(app, given).stdout)["shards"] == 10
    assert "basis" in runner.invoke(app, ["plan", "scenes", "--num", "640"]).stdout
    failed = runner.invoke(app, ["plan", "scenes", "--cost"])
    assert isinstance(failed.exception, ValueError)
    assert "--rate" in str(failed.exception)
