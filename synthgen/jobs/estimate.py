"""What a run will make and take, before it does: shards, bytes, seconds, and on what basis.

What it costs on a fleet, too: requests and rows per shard are counted, not guessed.
`tests/storage/test_s3.py` counts the requests of a shard before a real server; the rows were
counted in the database of a Prefect 3.8.8 server.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthgen.config import Config
from synthgen.dataset.manifest import read_markers
from synthgen.diffusion.cards import find_card
from synthgen.jobs.classes import warn_of_classes
from synthgen.jobs.plan import MAX_WORKERS, prompts_of, samples_in_flight, shard_spans
from synthgen.storage.publish import open_storage

# Measured on the embedded model, 128 x 128 px, 41 masks per image, 2026-11-21.
BYTES_PER_PIXEL = {"jpg": 0.8, "png": 1.8, "webp": 1.6}
BYTES_PER_SIDE_PIXEL = 110  # masks: their outlines grow with the sides, not with the area
BYTES_PER_TAR_MEMBERS = 3500  # four headers and paddings
SECONDS_PER_STEP, SECONDS_PER_IMAGE = 0.13, 0.7  # per image on one core of a CPU

BASIS = 100  # shards whose markers are enough to judge the others by
FALLBACK_SIDE = 512  # of a card that leaves the size to the model's own configuration

PUTS_PER_SHARD = 3
"""Tar, metadata and marker, of a tar below two parts (`dataset.remote.PART_BYTES`)."""

REQUESTS_PER_SHARD = 18
"""Those three, a look at each that it has arrived, and what is read: identity, plan and marker
before and after, manifest and classes, and what stands where metadata and marker will. A question
for the size of what is not there is two requests."""

ROWS_PER_SHARD = 23
"""In the Prefect server's database, over 103 task runs (2026-11-21): the task run, 3 states,
3 events with 12 resources, and the event of the progress artifact with 3. Retries add some."""


def bytes_per_sample(config: Config) -> int:
    """About how many bytes of tar a sample takes."""
    card, _ = find_card(config.model.card)
    height = config.generation.height or card.height or FALLBACK_SIDE
    width = config.generation.width or card.width or FALLBACK_SIDE
    image = height * width * BYTES_PER_PIXEL[config.dataset.image_format]
    return int(image) + BYTES_PER_SIDE_PIXEL * (height + width) + BYTES_PER_TAR_MEMBERS


def estimate(config: Config, out: str | Path | None = None) -> dict[str, Any]:
    """Shards, samples, bytes and seconds of a run.

    Args:
        config: The dataset's configuration.
        out: A dataset that was begun; its complete shards are then the basis.

    Returns:
        ``shards``, ``samples``, ``memory`` (at most, in bytes, of captures that are held at once),
        ``bytes``, ``seconds`` (None where there is no basis) and ``basis``.
    """
    counts = {
        "shards": len(shard_spans(config)),
        "samples": config.planned,
        "memory": bytes_in_flight(config),
    }
    prompts = prompts_of(config)  # one that cannot be read is said before, not by the run
    warn_of_classes(config, prompts.class_names)
    markers = read_markers(open_storage(out), newest=BASIS) if out else []
    markers = [marker for marker in markers if marker.planned]
    if markers:
        planned = sum(marker.planned for marker in markers)
        seconds = sum(sum(marker.seconds.values()) for marker in markers) / planned
        num_bytes = sum(marker.bytes for marker in markers) / planned
        basis = f"the {planned} samples that were made there last"
        return counts | _scaled(config.planned, num_bytes, seconds, basis)
    num_bytes = float(bytes_per_sample(config))
    card, _ = find_card(config.model.card)
    if card.name != "scenes":
        basis = "no time is known for this model before its first shard"
        return counts | _scaled(config.planned, num_bytes, None, basis)
    steps = config.generation.num_inference_steps or card.num_inference_steps
    seconds = SECONDS_PER_STEP * steps + SECONDS_PER_IMAGE
    basis = f"the embedded model at 128 x 128 px and {steps} steps on one core of a CPU"
    return counts | _scaled(config.planned, num_bytes, seconds, basis)


def bytes_in_flight(config: Config) -> int:
    """Most bytes of captures that wait for their masks: a batch's are bounded by its budget.

    Where threads finish samples, those of a shard may wait while the next one is drawn.
    """
    asked, batch = config.generation.workers, config.generation.batch_size
    most = samples_in_flight(MAX_WORKERS if asked is None else asked, batch)
    most *= 1 if asked == 0 else 2
    return int(config.capture.memory_budget_mb * 1e6 * most / batch)


def _scaled(num: int, num_bytes: float, seconds: float | None, basis: str) -> dict[str, Any]:
    return {
        "bytes": int(num * num_bytes),
        "seconds": None if seconds is None else round(num * seconds, 1),
        "basis": basis,
    }


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
