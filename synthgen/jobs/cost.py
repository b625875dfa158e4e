"""What a run costs on a fleet: GPU hours, bytes, requests and rows, for a known throughput.

Requests and rows per shard are counted, not guessed: `tests/storage/test_s3.py` counts the
requests of a shard before a real server; the rows were counted in the database of a Prefect
3.8.8 server.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthgen.config import Config
from synthgen.jobs.estimate import estimate
from synthgen.jobs.plan import shard_spans

PUTS_PER_SHARD = 3
"""Tar, metadata and marker, of a tar below two parts (`dataset.remote.PART_BYTES`)."""

REQUESTS_PER_SHARD = 18
"""Those three, a look at each that it has arrived, and what is read: identity, plan and marker
before and after, manifest and classes, and what stands where metadata and marker will. A question
for the size of what is not there is two requests."""

ROWS_PER_SHARD = 23
"""In the Prefect server's database, over 103 task runs (2026-11-21): the task run, 3 states,
3 events with 12 resources, and the event of the progress artifact with 3. Retries add some."""


def cost(
    config: Config, rate: float, workers: int = 1, out: str | Path | None = None
) -> dict[str, Any]:
    """What a configuration takes at a throughput.

    Shards are whole: with more workers than shards the others have nothing to do, and the last
    round of shards may leave some idle.

    Args:
        config: The dataset's configuration.
        rate: Images per second of one GPU.
        workers: GPUs.
        out: A dataset that was begun; its shards are then the basis of the bytes.

    Returns:
        ``shards``, ``samples``, ``bytes``, ``gpu_hours``, ``hours``, ``requests``,
        ``database_rows``.

    Raises:
        ValueError: If the rate is not positive, or there is no worker.
    """
    if not rate > 0 or not math.isfinite(rate):
        raise ValueError(f"rate must be a positive number of images per second. Got {rate}.")
    if workers < 1:
        raise ValueError(f"workers must be at least 1. Got {workers}.")
    planned = estimate(config, out)
    shards, samples = int(planned["shards"]), int(planned["samples"])
    longest = _most_samples([len(span) for span in shard_spans(config)], workers)
    return {
        "shards": shards,
        "samples": samples,
        "bytes": planned["bytes"],
        "gpu_hours": round(samples / rate / 3600, 4),
        "hours": round(longest / rate / 3600, 4),
        "requests": shards * REQUESTS_PER_SHARD,
        "database_rows": shards * ROWS_PER_SHARD,
    }


def _most_samples(sizes: Sequence[int], workers: int) -> int:
    """Samples of the busiest worker, if each shard goes to the one that has fewest.

    >>> _most_samples([8, 8, 8, 2], 1), _most_samples([8, 8, 8, 2], 3), _most_samples([8, 2], 9)
    (26, 10, 8)
    """
    taken = [0] * min(workers, len(sizes))
    for size in sizes:
        heapq.heapreplace(taken, taken[0] + size)
    return max(taken)
