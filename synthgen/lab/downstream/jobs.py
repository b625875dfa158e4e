"""Independent jobs, each in a process of its own, whose progress is heard here.

Every process is started fresh (no fork of a process that has run torch), forwards its progress
records, and ends at its next report when it is told to; what it has kept on disk until then is
its own matter.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging.handlers import QueueHandler, QueueListener
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from synthgen import progress

STOPPED = 143
_PATIENCE_SECONDS = 60  # to end after a request; a checkpoint takes less than one


@dataclass(frozen=True, slots=True)
class Job:
    """A call that can be sent to another process.

    Args:
        name: Of its process, which its progress records carry as ``processName``.
        work: A function of a module.
        arguments: What it is called with.
    """

    name: str
    work: Callable[..., Any]
    arguments: tuple[Any, ...]


def run_jobs(jobs: Sequence[Job], workers: int) -> None:
    """Run all jobs, some at a time.

    Args:
        jobs: In the order in which they are begun.
        workers: Processes at once; 0 runs them in this one.

    Raises:
        RuntimeError: If one of them failed; the others that run are stopped.
        Stopped: After a stop was requested, when all have ended.
    """
    if workers == 0:
        for job in jobs:
            job.work(*job.arguments)
        return
    context = get_context("spawn")
    queue = context.Queue()
    listener = QueueListener(queue, _Forward())
    waiting, running = list(jobs), list[BaseProcess]()
    listener.start()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                process: Any = context.Process(
                    target=_serve, args=(queue, job), name=job.name, daemon=True
                )
                process.start()
                running.append(process)
            wait([process.sentinel for process in running], timeout=1.0)
            if progress.stop_requested():
                raise progress.Stopped
            for ran in running:
                if ran.exitcode:
                    raise RuntimeError(
                        f"run {ran.name} failed with exit code {ran.exitcode}; its error "
                        "is printed above."
                    )
            running = [process for process in running if process.exitcode is None]
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join(_PATIENCE_SECONDS)
        listener.stop()


def _serve(queue: Any, job: Job) -> None:
    """What a started process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; the parent hears it too
    signal.signal(signal.SIGTERM, lambda _number, _frame: progress.request_stop())
    progress.logger.setLevel(logging.INFO)
    progress.logger.propagate = False
    progress.logger.addHandler(QueueHandler(queue))
    try:
        job.work(*job.arguments)
    except progress.Stopped:
        sys.exit(STOPPED)
    except (ValueError, OSError) as error:
        print(f"synthgen: run {job.name}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


class _Forward(logging.Handler):
    """Hands a record of another process to the handlers of this one."""

    def emit(self, record: logging.LogRecord) -> None:
        progress.logger.handle(record)
