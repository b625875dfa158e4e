"""Thousands of samples of the fake model through the real flow: do memory and speed stay flat?

The command ``synthgen generate`` runs as a child with a Prefect server of its own and is watched
from outside: its resident memory and CPU time, its server's memory and database, once per shard.
What a run of days would show, the quarters of a long run show before: the last must not hold more
memory than the second (the first warms up), nor be slower. The wall clock belongs to whoever else
uses the machine, and so does half of the speed of its cores. So speed is samples per CPU time of a
reference workload, a fixed piece of work that is timed with every shard: what takes as many of
those as before has stayed as fast, whatever the clock says.

Everything is kept in one folder; interrupted, the same call goes on, and the longest stretch
without an interruption is judged.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from matplotlib.figure import Figure

from synthgen import jobs
from synthgen.config import Config, dump, load
from synthgen.dataset.verify import verify_dataset
from synthgen.lab.bench.fake_model import CARD, draw
from synthgen.segmentation.segment import segment_sample
from synthgen.types import Prompt, Sample

MEMORY_RATIO = 1.05  # most resident memory of the last quarter over that of the second
SPEED_RATIO = 0.9  # least samples per CPU time of the reference workload, likewise
TELL_SECONDS = 30.0
LEAST_SHARDS = 8  # two per quarter
SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "900",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # threads that spin until a core is free would count as work
}
OVERRIDES = (
    *(f"model.card={CARD}", "segmentation.clusters.ks=[2,4]", "generation.batch_size=10"),
    *("segmentation.clusters.max_iterations=8", "segmentation.features.components=2"),
)
COLORS = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito's, told apart by everybody
WINDOWS = 40  # of the picture, over which speed is averaged


@dataclass(frozen=True, slots=True)
class Reading:
    """What was seen when a shard was done.

    Args:
        stretch: Number of the uninterrupted stretch.
        samples: Made in this stretch so far.
        seconds: Since its first shard.
        flow_bytes: Resident memory of the flow's process.
        server_bytes: Of its Prefect server.
        cpu_seconds: Of the flow, since it began; the server's loops run by the clock.
        reference_seconds: CPU time of all reference workloads so far, one per reading.
        database_bytes: Of the server's database and its log.
        database_rows: Of all tables.
    """

    stretch: int
    samples: int
    seconds: float
    flow_bytes: int
    server_bytes: int
    cpu_seconds: float
    reference_seconds: float
    database_bytes: int
    database_rows: int


def soak(
    samples: int, out: Path, shard_size: int = 50, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Make the samples, watch, and judge; a soak that was interrupted goes on.

    Args:
        samples: Planned samples.
        out: Folder of the dataset, the server, the readings and the results.
        shard_size: Samples per shard.
        tell: Told a line now and then.

    Returns:
        What ``soak.json`` holds: the readings' quarters, ratios, growth and ``failures``, one
        line per bound that does not hold; ``soak.png`` shows them.

    Raises:
        ValueError: If there is nothing to judge, for want of shards in one stretch.
        RuntimeError: If the command fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    config = load(overrides=[*OVERRIDES, f"num={samples}", f"dataset.shard_size={shard_size}"])
    (out / "soak.yaml").write_text(dump(config), encoding="utf-8")
    done = (out / "dataset" / "manifest.json").exists() and jobs.status(out / "dataset")
    if not (done and done.finalized and done.planned == config.planned):
        stretch = 1 + max((row.stretch for row in read_readings(out)), default=0)
        _watch(out, config, stretch, tell)
    rows = longest_stretch(read_readings(out))
    result = judge(rows)
    problems = verify_dataset(out / "dataset", deep=True)
    result["failures"] += [f"verify --deep: {problem}" for problem in problems[:5]]
    (out / "soak.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    soak_figure(rows).savefig(out / "soak.png", dpi=100)
    return result


def read_readings(out: Path) -> list[Reading]:
    """The readings in a folder, but for a line that an interruption cut off."""
    rows = []
    path = out / "readings.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError, TypeError):
            rows.append(Reading(**json.loads(line)))
    return rows


def longest_stretch(rows: Sequence[Reading]) -> list[Reading]:
    """The readings of the stretch in which most samples were made.

    Raises:
        ValueError: If it has too few.
    """
    stretches = {row.stretch: [r for r in rows if r.stretch == row.stretch] for row in rows}
    longest = max(stretches.values(), key=lambda found: found[-1].samples, default=[])
    if len(longest) < LEAST_SHARDS:
        raise ValueError(
            f"A soak must make at least {LEAST_SHARDS} shards in one go. Got {len(longest)}; ask "
            "for more --samples in another --out."
        )
    return longest


def judge(rows: Sequence[Reading]) -> dict[str, Any]:
    """Quarters of a stretch, the ratios of the last to the second, and the bounds that fail.

    Args:
        rows: Readings of one stretch, in order.
    """
    quarters = [_quarter(rows, number) for number in range(4)]
    second, last = quarters[1], quarters[3]
    ratios = {name: last[name] / second[name] for name in second if second[name] > 0}
    memory = {name: ratios[name] <= MEMORY_RATIO for name in ("flow_mb", "server_mb")}
    speed = {"samples_per_reference": ratios["samples_per_reference"] >= SPEED_RATIO}
    shards, first, final = len(rows) - 1, rows[0], rows[-1]
    return {
        "samples": final.samples,
        "shards": len(rows),
        "seconds": round(final.seconds, 1),
        "stretch": first.stretch,
        "quarters": quarters,
        "last_over_second": {name: round(value, 4) for name, value in ratios.items()},
        "database": {
            "bytes_per_shard": round((final.database_bytes - first.database_bytes) / shards),
            "rows_per_shard": round((final.database_rows - first.database_rows) / shards, 2),
            "bytes": final.database_bytes,
            "rows": final.database_rows,
        },
        "failures": [
            f"{name}: the last quarter must be "
            f"{f'at least {SPEED_RATIO}' if name in speed else f'at most {MEMORY_RATIO}'} of the "
            f"second. Got {ratios[name]:.3f}."
            for name, holds in (memory | speed).items()
            if not holds
        ],
    }


def _quarter(rows: Sequence[Reading], number: int) -> dict[str, float]:
    edges = [round(part * (len(rows) - 1) / 4) for part in (number, number + 1)]
    first, last = rows[edges[0]], rows[edges[1]]
    inside = rows[edges[0] + 1 : edges[1] + 1]
    made = last.samples - first.samples
    per_cpu_second = made / (last.cpu_seconds - first.cpu_seconds)
    reference = (last.reference_seconds - first.reference_seconds) / len(inside)
    return {
        "flow_mb": sum(row.flow_bytes for row in inside) / len(inside) / 1e6,
        "server_mb": sum(row.server_bytes for row in inside) / len(inside) / 1e6,
        "samples_per_second": made / (last.seconds - first.seconds),
        "samples_per_cpu_second": per_cpu_second,
        "samples_per_reference": per_cpu_second * reference,
    }


def reference_workload(config: Config) -> Callable[[], float]:
    """A fixed piece of work: segments the same samples of the fake model, on one thread.

    Returns:
        Does it; gives the seconds of CPU that it takes now.
    """
    made = draw([Prompt("reference", "a reference")] * 4, range(4), config.generation)
    samples = [sample for sample in made if isinstance(sample, Sample)]

    def work() -> float:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            started = time.process_time()
            for sample in samples:
                segment_sample(sample, config.segmentation)
            return time.process_time() - started
        finally:
            torch.set_num_threads(threads)

    return work


def _watch(out: Path, config: Config, stretch: int, tell: Callable[[str], None]) -> None:
    """Run the command to its end and write a reading whenever it says that a shard is done."""
    made, started, said, reference = 0, 0.0, -math.inf, 0.0
    work, database = reference_workload(config), out / "prefect" / "prefect.db"
    work()  # warm up
    with _command(out) as (process, events), (out / "readings.jsonl").open("a") as file:
        file.write("\n")  # behind a line that was cut off
        for event in events:
            made += event["count"] if event["event"] == "samples" else 0
            if event["event"] != "shard" or event["reused"]:
                continue
            started = started or event["time"]
            reference += work()
            servers = process.children(recursive=True)
            row = Reading(
                stretch=stretch,
                samples=made,
                seconds=event["time"] - started,
                flow_bytes=process.memory_info().rss,
                server_bytes=sum(server.memory_info().rss for server in servers),
                cpu_seconds=sum(process.cpu_times()[:2]),
                reference_seconds=reference,
                database_bytes=sum(x.stat().st_size for x in out.glob("prefect/prefect.db*")),
                database_rows=count_rows(database),
            )
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            if time.monotonic() - said > TELL_SECONDS:
                said = time.monotonic()
                tell(
                    f"{made} samples ({config.planned} planned), flow {row.flow_bytes / 1e6:.0f} "
                    f"MB, server {row.server_bytes / 1e6:.0f} MB, database "
                    f"{row.database_bytes / 1e6:.1f} MB"
                )


@contextmanager
def _command(out: Path) -> Iterator[tuple[psutil.Popen, Iterator[dict[str, Any]]]]:
    """The running command and its events; it is stopped when the block is left early.

    Raises:
        RuntimeError: If it fails, with the last it said.
    """
    words = ("generate", str(out / "soak.yaml"), "--out", str(out / "dataset"), "--json-logs")
    environment = {**os.environ, **SERVER, "PREFECT_HOME": str(out.absolute() / "prefect")}
    environment.pop("PREFECT_API_URL", None)
    process = psutil.Popen(
        [sys.executable, "-c", "from synthgen.cli import main; main()", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is ours: one signal drops a shard, a second kills
    )
    rest: deque[str] = deque(maxlen=20)
    try:
        yield process, _events(process.stderr, rest)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.wait():
        raise RuntimeError(f"The command must succeed. Got exit code {process.wait()}: {rest}")


def _events(lines: Iterator[str], rest: deque[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            rest.append(line.strip())
            continue
        if isinstance(event, dict) and event.get("event") in ("samples", "shard"):
            yield event


def count_rows(database: Path) -> int:
    """Rows of all tables of a SQLite database that others write to."""
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as reader:
        names = reader.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        queries = [f'SELECT count(*) FROM "{name}"' for (name,) in names]  # noqa: S608
        return sum(reader.execute(query).fetchone()[0] for query in queries)


def soak_figure(rows: Sequence[Reading]) -> Figure:
    """Resident memory, speed by three clocks, and the server's database, of one stretch."""
    figure = Figure(figsize=(9.0, 2.9), layout="constrained")
    memory, speed, database = figure.subplots(1, 3)
    read = {name: np.array([getattr(r, name) for r in rows], float) for name in asdict(rows[0])}
    made = read["samples"]
    memory.plot(made, read["flow_bytes"] / 1e6, color=COLORS[0], label="flow")
    memory.plot(made, read["server_bytes"] / 1e6, color=COLORS[1], label="server")
    memory.set(title="resident memory, MB", ylim=(0.0, None))
    marks = np.unique(np.linspace(0, len(rows) - 1, min(WINDOWS, len(rows))).astype(int))
    grown = {name: np.maximum(np.diff(read[name][marks]), 1e-9) for name in read}
    reference = grown["reference_seconds"] / np.diff(marks)
    rates = {
        "reference workload": grown["samples"] / grown["cpu_seconds"] * reference,
        "CPU second": grown["samples"] / grown["cpu_seconds"],
        "second": grown["samples"] / grown["seconds"],
    }
    for (label, rate), color in zip(rates.items(), COLORS, strict=True):
        speed.plot(made[marks][1:], rate / rate.mean(), color=color, label=f"per {label}")
    speed.set(title="speed, of its mean", ylim=(0.0, 2.0))
    database.plot(made, read["database_bytes"] / 1e6, color=COLORS[1], label="MB")
    database.plot(made, read["database_rows"] / 1e3, color=COLORS[0], label="1000 rows")
    database.set(title="server's database", ylim=(0.0, None))
    for axes in (memory, speed, database):
        for quarter in (0.25, 0.5, 0.75):
            axes.axvline(quarter * made[-1], color="#bbbbbb", linewidth=0.8)
        axes.set(xlabel="samples made")
        axes.locator_params(axis="x", nbins=4)
        axes.legend(loc="lower right", frameon=False)
    return figure
