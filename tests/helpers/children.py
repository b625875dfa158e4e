"""What the child processes of the tests run; imported once, by the server that forks them."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from synthgen import jobs
from synthgen.config import Config
from synthgen.diffusion.backbones import load_backbone
from synthgen.storage import publish
from synthgen.types import shard_name

PRELOADED = [__name__]
"""Modules of children; one with long imports adds its name before the first child starts."""


def context() -> ForkServerContext:
    """Processes that begin with everything imported and no thread running."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # the server of 3.11 does not get it
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    """A child that is ready to begin."""
    ready = context().Event()
    child = context().Process(target=target, args=(*args, ready))
    child.start()
    assert ready.wait(240)
    return child


def run_to_end(target: Callable[..., None], *args: Any) -> float:
    """Run a child to its end; returns its seconds from when it was ready."""
    child, started = start(target, *args), time.perf_counter()
    child.join(600)
    assert child.exitcode == 0
    return time.perf_counter() - started


def run_and_kill(delay: float, target: Callable[..., None], *args: Any) -> bool:
    """Run a child and kill it after a while; whether it was still running."""
    child = start(target, *args)
    child.join(delay)
    child.kill()
    child.join()
    return child.exitcode == -9


def finish(config: Config, out: Path, ready: Event) -> None:
    """Make or finish the dataset; ``ready`` is set once the model is loaded."""
    torch.set_num_threads(1)
    load_backbone(config.model)
    ready.set()
    jobs.generate(config, out)


def finish_on_a_slow_disk(config: Config, out: Path, most: float, seed: int, ready: Event) -> None:
    """Make or finish the dataset where a write reaches the disk after up to ``most`` seconds."""
    real, rng = os.fsync, random.Random(seed)

    def slow(handle: int) -> None:
        time.sleep(rng.uniform(0, most))
        real(handle)

    os.fsync = slow
    finish(config, out, ready)


def make_shards(config: Config, out: Path, indices: tuple[int, ...]) -> None:
    """Make some shards of a dataset that was begun, in this order."""
    torch.set_num_threads(1)
    job = jobs.GenerateJob(config, out)
    for index in indices:
        job.run_shard(shard_name(index))


def finish_at_its_pace(config: Config, out: Path, seed: int, stop_at: int, ready: Event) -> None:
    """Make or finish the dataset with pauses; exit code 1 or 2 where it is refused.

    Args:
        config: The configuration.
        out: The dataset's folder.
        seed: Of the pauses.
        stop_at: At so many syncs the process stops until somebody lets it go on; 0: never.
        ready: Set once the model is loaded.
    """
    real, rng, syncs = os.fsync, random.Random(seed), 0
    publish.LOCK_SECONDS = 2.0  # one that is stopped in the middle does not hold up the test

    def stopping(handle: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)
        real(handle)

    def pausing(event: str, **fields: object) -> None:
        time.sleep(rng.choice((0.0, 0.0, 0.05, 0.2)))

    os.fsync = stopping
    torch.set_num_threads(1)
    load_backbone(config.model)
    ready.set()
    try:
        jobs.generate(config, out, progress=pausing)
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines()
        sys.exit(3 if len(lines) > 1 else 2 if isinstance(error, ValueError) else 1)
