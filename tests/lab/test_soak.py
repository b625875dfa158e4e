"""``synthgen soak``: judged on made-up readings, and run for 200 samples."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from synthgen.config import load
from synthgen.lab.bench.soak import (
    OVERRIDES,
    Reading,
    judge,
    longest_stretch,
    read_readings,
    reference_workload,
    soak_figure,
)

MAIN = (sys.executable, "-c", "from synthgen.cli import main; main()", "soak")


def flat(shards: int = 41, stretch: int = 1) -> list[Reading]:
    """A run in which everything but the database stays what it is."""
    return [
        Reading(
            stretch=stretch,
            samples=50 * (number + 1),
            seconds=2.0 * number,
            flow_bytes=1_000_000_000,
            server_bytes=200_000_000,
            cpu_seconds=30 + 1.0 * number,
            reference_seconds=0.2 * (number + 1),
            database_bytes=5_000_000 + 60_000 * number,
            database_rows=1000 + 25 * number,
        )
        for number in range(shards)
    ]


def test_a_flat_run_passes_with_its_growth_stated() -> None:
    result = judge(flat())
    assert result["failures"] == []
    assert result["database"]["bytes_per_shard"] == 60_000
    assert result["database"]["rows_per_shard"] == 25
    assert result["quarters"][3]["samples_per_second"] == pytest.approx(25)
    assert result["quarters"][3]["samples_per_cpu_second"] == pytest.approx(50)
    assert result["quarters"][3]["samples_per_reference"] == pytest.approx(10)
    assert set(result["last_over_second"].values()) == {1.0}


def test_a_leak_and_a_slowdown_fail_and_a_warm_up_does_not() -> None:
    leaking = [
        replace(row, flow_bytes=row.flow_bytes + 10_000 * row.samples * (row.samples > 500))
        for row in flat(401)
    ]
    (said,) = judge(leaking)["failures"]
    assert said.startswith("flow_mb: the last quarter must be at most 1.05 of the second. Got 1.")
    slower = [replace(row, cpu_seconds=row.cpu_seconds**1.5) for row in flat()]
    (said,) = judge(slower)["failures"]
    assert said.startswith("samples_per_reference: the last quarter must be at least 0.9 of")
    warming = [replace(row, flow_bytes=6 * 10**8) for row in flat()[:5]]
    assert judge([*warming, *flat()[5:]])["failures"] == []


def test_a_machine_that_slows_down_is_no_slowdown_of_ours() -> None:
    slow = [1.0 if row.samples < 1000 else 1.7 for row in flat()]
    rows, cpu, yards = [], 0.0, 0.0
    for row, factor in zip(flat(), slow, strict=True):
        cpu, yards = cpu + factor, yards + 0.2 * factor
        rows.append(replace(row, cpu_seconds=cpu, reference_seconds=yards))
    result = judge(rows)
    assert result["failures"] == []
    assert result["last_over_second"]["samples_per_cpu_second"] < 0.7


def test_the_reference_workload_leaves_threads_alone() -> None:
    threads = torch.get_num_threads()
    work = reference_workload(load(overrides=list(OVERRIDES)))
    assert all(work() > 0 for _ in range(2))
    assert torch.get_num_threads() == threads


def test_the_longest_stretch_is_judged_and_a_cut_line_is_no_reading(tmp_path: Path) -> None:
    rows = [*flat(9, stretch=1), *flat(20, stretch=2), *flat(8, stretch=3)]
    lines = [json.dumps(asdict(row)) for row in rows]
    (tmp_path / "readings.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:20]]) + "\n")
    assert read_readings(tmp_path) == rows[:-1]
    assert longest_stretch(rows) == flat(20, stretch=2)
    with pytest.raises(ValueError, match=r"at least 8 shards in one go\. Got 7"):
        longest_stretch(flat(7))
    assert read_readings(tmp_path / "nowhere") == []


def test_the_figure_is_small(tmp_path: Path) -> None:
    soak_figure(flat(400)).savefig(tmp_path / "soak.png", dpi=100)
    assert (tmp_path / "soak.png").stat().st_size < 60_000
    with Image.open(tmp_path / "soak.png") as picture:
        assert picture.size == (900, 290)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_hundred_samples_through_the_real_flow_interrupted_once(tmp_path: Path) -> None:
    out = tmp_path / "soak"
    command = [*MAIN, "--samples", "200", "--shard-size", "10", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "samples (200 planned), flow" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    if process.returncode != 0:  # else it was faster
        assert process.returncode == 130
        assert "run again to go on" in said
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # memory of so short a run may still warm up
    result = json.loads(done.stdout)
    assert not any("verify" in line for line in result["failures"])
    assert json.loads((out / "dataset" / "manifest.json").read_text())["totals"]["samples"] == 200
    assert 10 < result["database"]["rows_per_shard"] < 60
    assert result["quarters"][3]["flow_mb"] > result["quarters"][3]["server_mb"] > 10
    assert (out / "soak.png").exists()
