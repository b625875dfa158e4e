"""Independent jobs, each in a process of its own, whose progress is heard here.

Every process is started fresh (no fork of a process that has run torch), sends its progress
records through a pipe of its own (a queue's lock outlives a process that is killed with it), and
ends at its next report when it is told to; what it has kept on disk until then is its own matter.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
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
    waiting, running = list(jobs), dict[Connection, BaseProcess]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                records, process = _start(waiting.pop(0))
                running[records] = process
            for process in _hear(running):
                process.join()
                if process.exitcode:
                    raise RuntimeError(
                        f"run {process.name} failed with exit code {process.exitcode}; its error "
                        "is printed above."
                    )
            if progress.stop_requested():
                raise progress.Stopped
    finally:
        for process in running.values():
            process.terminate()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while running and time.monotonic() < deadline:
            _hear(running)
        for process in running.values():
            process.kill()


def _start(job: Job) -> tuple[Connection, BaseProcess]:
    """A started process, and where its records arrive."""
    context = get_context("spawn")
    records, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, job), name=job.name, daemon=True)
    process.start()
    sender.close()  # the process has the only one: its end is the pipe's end
    return records, process


def _hear(running: dict[Connection, BaseProcess]) -> list[BaseProcess]:
    """Hand on the records of a second at most; takes out the processes that ended meanwhile."""
    ended = []
    for records in wait(list(running), timeout=1.0):
        assert isinstance(records, Connection)
        try:
            progress.logger.handle(records.recv())
        except (EOFError, OSError):  # ended, or killed while it sent
            ended.append(running.pop(records))
    return ended


class _Sender(QueueHandler):
    """Puts records, as a queue takes them, into a pipe."""

    queue: Any

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send(record)


def _serve(sender: Any, job: Job) -> None:
    """What a started process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; the parent hears it too
    signal.signal(signal.SIGTERM, lambda _number, _frame: progress.request_stop())
    progress.logger.setLevel(logging.INFO)
    progress.logger.propagate = False
    progress.logger.addHandler(_Sender(sender))
    try:
        job.work(*job.arguments)
    except progress.Stopped:
        sys.exit(STOPPED)
    except (ValueError, OSError) as error:
        print(f"synthgen: run {job.name}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
