"""Thousands of planted samples through the real flow: do memory, speed and database stay flat?

The command ``synthgen generate`` runs as a child with a Prefect server of its own and is watched
from outside: its resident memory and CPU time, its server's memory and database, once
per shard. What a run of days would show, the quarters of a long run show before: the last must
not hold more memory than the second (the first warms up), nor be slower. Speed is samples per
CPU time of a yardstick, a fixed piece of work that is timed beside every shard: the wall clock
belongs to whoever else uses the machine, and so does half of the speed of its cores.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from synthgen import jobs
from synthgen.config import Config, dump, load
from synthgen.dataset.verify import verify_dataset
from synthgen.lab.bench.fake_model import CARD
from synthgen.lab.bench.reference_workload import Yardstick
from synthgen.lab.bench.soak_figure import save_figure

MEMORY_RATIO = 1.05  # most resident memory of the last quarter over that of the second
SPEED_RATIO = 0.9  # least samples per CPU time of the yardstick, likewise
TELL_SECONDS = 30.0
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
        yardstick_seconds: CPU time of all yardsticks so far, one per reading.
        database_bytes: Of the server's database and its log.
        database_rows: Of all tables.
    """

    stretch: int
    samples: int
    seconds: float
    flow_bytes: int
    server_bytes: int
    cpu_seconds: float
    yardstick_seconds: float
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
    standing = read_readings(out)
    if not is_made(config, out / "dataset"):
        _watch(out, 1 + max((row.stretch for row in standing), default=0), samples, tell)
    result = judge(longest_stretch(read_readings(out)))
    problems = verify_dataset(out / "dataset", deep=True)
    result["failures"] += [f"verify --deep: {problem}" for problem in problems[:5]]
    (out / "soak.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    save_figure([asdict(row) for row in longest_stretch(read_readings(out))], out / "soak.png")
    return result


def is_made(config: Config, dataset: Path) -> bool:
    """Whether a dataset holds all that is planned."""
    if not (dataset / "manifest.json").exists():
        return False
    status = jobs.status(dataset)
    return status.finalized and status.planned == config.planned


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
        ValueError: If it has fewer than eight, two per quarter.
    """
    stretches = {row.stretch: [r for r in rows if r.stretch == row.stretch] for row in rows}
    longest = max(stretches.values(), key=lambda found: found[-1].samples, default=[])
    if len(longest) < 8:
        raise ValueError(
            f"A soak must make at least 8 shards in one go. Got {len(longest)}; ask for more "
            f"--samples in another --out."
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
    bounds = {
        "flow_mb": (ratios["flow_mb"] <= MEMORY_RATIO, f"at most {MEMORY_RATIO}"),
        "server_mb": (ratios["server_mb"] <= MEMORY_RATIO, f"at most {MEMORY_RATIO}"),
        "samples_per_yardstick": (
            ratios["samples_per_yardstick"] >= SPEED_RATIO,
            f"at least {SPEED_RATIO}",
        ),
    }
    shards = len(rows) - 1
    return {
        "samples": rows[-1].samples,
        "shards": len(rows),
        "seconds": round(rows[-1].seconds, 1),
        "stretch": rows[0].stretch,
        "quarters": quarters,
        "last_over_second": {name: round(value, 4) for name, value in ratios.items()},
        "database": {
            "bytes_per_shard": round((rows[-1].database_bytes - rows[0].database_bytes) / shards),
            "rows_per_shard": round((rows[-1].database_rows - rows[0].database_rows) / shards, 2),
            "bytes": rows[-1].database_bytes,
            "rows": rows[-1].database_rows,
        },
        "failures": [
            f"{name}: the last quarter must be {wanted} of the second. Got {ratios[name]:.3f}."
            for name, (holds, wanted) in bounds.items()
            if not holds
        ],
    }


def _quarter(rows: Sequence[Reading], number: int) -> dict[str, float]:
    edges = [round(part * (len(rows) - 1) / 4) for part in (number, number + 1)]
    first, last = rows[edges[0]], rows[edges[1]]
    inside = rows[edges[0] + 1 : edges[1] + 1]
    made = last.samples - first.samples
    per_cpu_second = made / (last.cpu_seconds - first.cpu_seconds)
    yardstick = (last.yardstick_seconds - first.yardstick_seconds) / len(inside)
    return {
        "flow_mb": sum(row.flow_bytes for row in inside) / len(inside) / 1e6,
        "server_mb": sum(row.server_bytes for row in inside) / len(inside) / 1e6,
        "samples_per_second": made / (last.seconds - first.seconds),
        "samples_per_cpu_second": per_cpu_second,
        "samples_per_yardstick": per_cpu_second * yardstick,
    }


def _watch(out: Path, stretch: int, samples: int, tell: Callable[[str], None]) -> None:
    """Run the command to its end and write a reading whenever it says that a shard is done."""
    made, started, said, yards = 0, 0.0, -math.inf, 0.0
    yardstick = Yardstick(load(out / "soak.yaml"))
    yardstick.seconds()  # warm up
    with _command(out) as (process, events), (out / "readings.jsonl").open("a") as file:
        file.write("\n")  # behind a line that was cut off
        for event in events:
            made += event["count"] if event["event"] == "samples" else 0
            if event["event"] != "shard" or event["reused"]:
                continue
            started = started or event["time"]
            yards += yardstick.seconds()
            row = _read(process, out, stretch, made, event["time"] - started, yards)
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            if time.monotonic() - said > TELL_SECONDS:
                said = time.monotonic()
                tell(_line(row, samples))


def _line(row: Reading, samples: int) -> str:
    return (
        f"{row.samples} samples ({samples} planned), flow {row.flow_bytes / 1e6:.0f} MB, server "
        f"{row.server_bytes / 1e6:.0f} MB, database {row.database_bytes / 1e6:.1f} MB"
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


def _read(
    process: psutil.Popen, out: Path, stretch: int, made: int, seconds: float, yards: float
) -> Reading:
    servers = process.children(recursive=True)
    database = out / "prefect" / "prefect.db"
    return Reading(
        stretch=stretch,
        samples=made,
        seconds=seconds,
        flow_bytes=process.memory_info().rss,
        server_bytes=sum(server.memory_info().rss for server in servers),
        cpu_seconds=sum(process.cpu_times()[:2]),
        yardstick_seconds=yards,
        database_bytes=sum(path.stat().st_size for path in database.parent.glob("prefect.db*")),
        database_rows=sum(count_rows(database).values()),
    )


def count_rows(database: Path) -> Mapping[str, int]:
    """Rows of every table of a SQLite database that others write to."""
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as reader:
        names = reader.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        counted = {name: f'SELECT count(*) FROM "{name}"' for (name,) in names}  # noqa: S608
        return {name: reader.execute(query).fetchone()[0] for name, query in counted.items()}
