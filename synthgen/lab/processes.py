"""Work shared out to processes that start fresh: no fork of one that has run torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_processes(
    function: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], workers: int
) -> list[Result]:
    """What a function of a module gives for the arguments of each job, in order.

    Args:
        function: Called with a job's arguments.
        jobs: The arguments.
        workers: Processes; 0 does it in this one.
    """
    if workers == 0:
        return [function(*job) for job in jobs]
    with get_context("spawn").Pool(workers) as pool:
        return pool.starmap(function, jobs, chunksize=1)
