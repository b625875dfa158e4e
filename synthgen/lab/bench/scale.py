"""How long a dataset takes on 1 to 512 workers, and what limits more: simulated, not run.

Shard times are drawn (bootstrap) from those that a dataset's markers measured, and handed out as
the flow does: the next shard goes to the first worker that is free (Graham's list scheduling,
1966, whose makespan is at most twice the best possible). A worker loads the model once. What is
not simulated, because no rate of it is known here, is stated beside: requests to the object
store, rows of the server's database, bytes per second, with the arithmetic.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from synthgen.dataset.manifest import Marker, read_markers
from synthgen.jobs.estimate import PUTS_PER_SHARD, REQUESTS_PER_SHARD, ROWS_PER_SHARD
from synthgen.storage.publish import open_storage

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
REPLICATES = 20
MADE = "generate"  # stage whose time only a marker of a shard that was made here has
STARTUP_SECONDS = 30.0  # to import torch and load SD 2.1 from a local disk
PUTS_PER_SECOND = 3500
"""What Amazon S3 promises for a prefix: 3,500 writing and 5,500 reading requests per second
(Amazon S3 user guide, "Best practices design patterns: optimizing performance")."""


def makespan(
    seconds: Float[np.ndarray, " shard"], workers: int, startup: float = 0.0
) -> tuple[float, float]:
    """When the last shard is done, and when the first worker has nothing left to do.

    Shards go in their order to the first worker that is free. The gap between the two times is
    the stragglers' part: workers wait in it for the last ones.

    Args:
        seconds: Time of each shard.
        workers: Workers.
        startup: Seconds before a worker's first shard.

    >>> makespan(np.array([3.0, 1.0, 1.0, 1.0]), 2)
    (3.0, 3.0)
    >>> makespan(np.array([1.0, 1.0, 1.0, 4.0]), 2, startup=1.0)
    (6.0, 3.0)
    """
    free = [startup] * min(workers, len(seconds))
    heapq.heapify(free)
    for duration in seconds.tolist():
        heapq.heapreplace(free, free[0] + duration)
    return max(free), min(free)


def bootstrap(
    measured: Float[np.ndarray, " marker"], num_shards: int, seed: int
) -> Float[np.ndarray, " shard"]:
    """Times of shards that nobody made, drawn with replacement from measured ones."""
    drawn: Int[np.ndarray, " shard"] = np.random.default_rng(seed).integers(
        len(measured), size=num_shards
    )
    return np.asarray(measured[drawn])


def bench_scale(
    directory: str | Path,
    shards: int = 10_000,
    startup: float = STARTUP_SECONDS,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Makespan, efficiency and stragglers by number of workers, and the limits beyond.

    Args:
        directory: A dataset whose markers give the measured times.
        shards: Shards of the simulated run.
        startup: Seconds in which a worker loads the model.
        plot: Image file to write, by its suffix.

    Returns:
        ``basis``; by number of workers ``hours`` (median, 5 % and 95 % of 20 bootstraps),
        ``efficiency`` (work over workers times makespan), ``straggler_seconds``; ``limits``.

    Raises:
        ValueError: If fewer than two shards were made and measured there; a merge makes none.
    """
    markers = [
        marker
        for marker in read_markers(open_storage(directory))
        if marker.planned and MADE in marker.seconds  # shards of a merge were only copied
    ]
    measured = np.array([sum(marker.seconds.values()) for marker in markers])
    if len(measured) < 2 or not measured.min() > 0:
        raise ValueError(
            f"At least 2 shards must have been made and timed. Got {len(measured)} in "
            f"{directory}; make some with 'synthgen generate --set dataset.shard_size=8'."
        )
    drawn = [bootstrap(measured, shards, seed) for seed in range(REPLICATES)]
    rows = {str(count): _row(drawn, count, startup) for count in WORKERS}
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        scale_figure(rows, shards).savefig(plot, dpi=110)
    return {
        "basis": {
            "measured_shards": len(measured),
            "seconds_per_shard": float(measured.mean()),
            "slowest_over_mean": float(measured.max() / measured.mean()),
            "simulated_shards": shards,
            "startup_seconds": startup,
        },
        "workers": rows,
        "limits": limits(markers, float(measured.mean()), max(WORKERS)),
    }


def limits(markers: Sequence[Marker], mean_seconds: float, workers: int) -> dict[str, str]:
    """What grows with the number of workers, each with its arithmetic."""
    per_second = workers / mean_seconds
    num_bytes = sum(marker.bytes for marker in markers) / len(markers)
    most = PUTS_PER_SECOND * mean_seconds / PUTS_PER_SHARD
    rate = f"{workers} workers / {mean_seconds:.3g} s = {per_second:.3g} shards/s"
    return {
        "shards": rate,
        "object store": f"{rate} x {REQUESTS_PER_SHARD} requests = "
        f"{per_second * REQUESTS_PER_SHARD:.3g} requests/s, {PUTS_PER_SHARD} of "
        f"{REQUESTS_PER_SHARD} write",
        "object store, most workers": f"{PUTS_PER_SECOND} writes/s x {mean_seconds:.3g} s / "
        f"{PUTS_PER_SHARD} writes per shard = {most:,.0f} workers on one S3 prefix",
        "server's database": f"{rate} x {ROWS_PER_SHARD} rows x 3600 s = "
        f"{per_second * ROWS_PER_SHARD * 3600:,.0f} rows/h",
        "bytes": f"{rate} x {num_bytes / 1e6:.3g} MB = {per_second * num_bytes / 1e6:.3g} MB/s",
    }


def scale_figure(rows: dict[str, dict[str, float]], shards: int) -> Figure:
    """Makespan against the ideal, and the share of time in which workers work."""
    counts = [int(count) for count in rows]
    hours, ideal = [row["hours"] for row in rows.values()], next(iter(rows.values()))["hours"]
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog(counts, hours, "o-", color="#0072B2", label=f"{shards:,} shards")
    straight = [ideal * counts[0] / count for count in counts]
    left.loglog(counts, straight, "--", color="#666666", label="ideal")
    left.set(xlabel="workers", ylabel="hours")
    left.yaxis.set_major_formatter("{x:g}")
    left.legend()
    right.semilogx(counts, [row["efficiency"] for row in rows.values()], "o-", color="#D55E00")
    right.set(xlabel="workers", ylabel="work / (workers x makespan)", ylim=(0.0, 1.02))
    for axes in (left, right):
        axes.set_xticks(counts, labels=[str(count) for count in counts], rotation=45)
        axes.minorticks_off()
    return figure


def _row(
    drawn: Sequence[Float[np.ndarray, " shard"]], workers: int, startup: float
) -> dict[str, float]:
    times = np.array([makespan(seconds, workers, startup) for seconds in drawn])
    work = np.array([seconds.sum() for seconds in drawn])
    low, median, high = np.percentile(times[:, 0], (5, 50, 95)) / 3600
    return {
        "hours": float(median),
        "hours_low": float(low),
        "hours_high": float(high),
        "efficiency": float(np.median(work / (workers * times[:, 0]))),
        "straggler_seconds": float(np.median(times[:, 0] - times[:, 1])),
    }
