"""Task runners by name: where the shards of a flow run.

``threads`` runs them in this process: images are drawn one batch at a time (the model is
shared), clustering and writing overlap with it.
"""

from __future__ import annotations

from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from synthgen.registry import resolve

RUNNERS = {"threads": "flows.runners:threads"}


def threads(workers: int) -> ThreadPoolTaskRunner[Any]:
    """A pool of ``workers`` threads in this process."""
    return ThreadPoolTaskRunner(max_workers=workers)


def task_runner(name: str, workers: int) -> TaskRunner[Any]:
    """The runner that ``name`` stands for.

    Raises:
        ValueError: For an unknown name, or fewer than one worker.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1. Got {workers}.")
    runner: TaskRunner[Any] = resolve(name, RUNNERS, "runner")(workers)
    return runner
