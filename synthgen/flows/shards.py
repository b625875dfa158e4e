"""One body for every flow: a job begins, its shards run as tasks, and it is finalized.

Tasks are shards, never samples, and no tensor crosses a task boundary. Prefect's cache is off: a
shard is done when its marker says so, which only the library can tell. A shard that crashes
becomes a row with its error; the others are made, and the next run makes it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture

from synthgen.flows.artifacts import put, update_progress
from synthgen.flows.runners import completed, inherited_tags, task_runner
from synthgen.jobs import Job
from synthgen.progress import report
from synthgen.storage.redaction import redact

Row = dict[str, Any]


def _leave_services_to_parent() -> None:
    """Let a fork end without Prefect's services, whose threads only its parent has.

    Prefect 3 resets them in a fork and still drains them at its exit, which then raises: every
    forked worker of a DataLoader would end with code 1 once its parent has run a flow.
    """
    calls = threading._threading_atexits  # type: ignore[attr-defined]
    calls[:] = [call for call in calls if not call.func.__module__.startswith("prefect.")]


os.register_at_fork(after_in_child=_leave_services_to_parent)


def may_pass_again(_task: object, _run: object, state: Any) -> bool:
    """Whether to try again: not after a ValueError, which a shard made again only repeats."""
    return not isinstance(state.result(raise_on_failure=False), ValueError)


@task(
    task_run_name="{job.name}-{shard}",
    retries=2,
    retry_delay_seconds=1,
    retry_condition_fn=may_pass_again,
    cache_policy=NO_CACHE,
    tags=["synthgen"],
    persist_result=False,
)
def run_shard(job: Job[Any], shard: str, gpu_limit: str | None = None) -> Row:
    """Make one shard; one that is done costs nothing."""
    with slot(gpu_limit):
        done = job.run_shard(shard)
    return {**job.row(done), "samples_planned": job.needs(shard)[0], "worker": _worker()}


def run_job(
    job: Job[Any],
    runner: str = "threads",
    workers: int = 1,
    gpu_limit: str | None = None,
    address: str | None = None,
) -> dict[str, Any]:
    """All of a job, its shards as tasks of a flow inside ours; returns what it published.

    Args:
        job: What is done.
        runner: Where shards run: a row of RUNNERS or ``module:attribute``.
        workers: Shards in flight at once.
        gpu_limit: Name of a global concurrency limit of which every shard takes a slot.
        address: Cluster of the runner: ``auto`` or ``host:port``; None: this machine.

    Raises:
        RuntimeError: If shards crashed, after all others were made.
    """
    job.begin()

    # a closure, for parameters of flows are stored on the server; the outer flow is retried
    @flow(
        name=f"synthgen-{job.name}-shards",
        task_runner=task_runner(runner, workers, address),
        retries=0,
        persist_result=False,
    )
    def run_shards() -> list[Row]:
        rows = collect(
            job.missing(), lambda shard: run_shard.submit(job, shard, gpu_limit), workers, job.name
        )
        return sorted(map(_pass_on, rows), key=itemgetter("shard"))

    with inherited_tags():
        rows = run_shards()
    put("table", f"synthgen-{job.name}-shards", rows, job.subject)
    refuse_crashed(rows)
    return job.finalize()


@contextmanager
def slot(limit: str | None) -> Iterator[None]:
    """Hold one slot of a global concurrency limit while the block runs.

    A slot is leased: that of a killed process comes back after five minutes.

    Args:
        limit: Name of the limit; None takes no slot.

    Raises:
        ConcurrencySlotAcquisitionError: If the server has no limit of this name. Prefect's own
            default is to run unbounded then, which a misspelled name would hide.
    """
    if limit is None:
        yield
        return
    with concurrency(limit, occupy=1, strict=True):
        yield


def collect(
    shards: Sequence[str],
    submit: Callable[[str], PrefectFuture[Row]],
    workers: int,
    name: str,
) -> Iterator[Row]:
    """The rows of shards as they are done, with ``shard``, and ``error`` where one crashed.

    Args:
        shards: File stems.
        submit: Starts the task of one.
        workers: Shards in flight at once.
        name: Of the job, for the artifact that shows how many are done.
    """
    logger = get_run_logger()
    progress = put("progress", f"synthgen-{name}-progress", 0.0 if shards else 100.0)
    for done, (shard, future) in enumerate(completed(shards, submit, workers), start=1):
        try:
            row = {"shard": shard, **future.result()}
        except Exception as error:
            row = {"shard": shard, "error": redact(f"{type(error).__name__}: {error}")}
            logger.error("%s crashed: %s", shard, row["error"])
        told = ", ".join(f"{name} {value}" for name, value in row.items())
        logger.info("%d of %d: %s", done, len(shards), told)
        yield row
        update_progress(progress, 100.0 * done / len(shards))


def refuse_crashed(rows: Sequence[Mapping[str, Any]]) -> None:
    """Stop where a shard crashed.

    Raises:
        RuntimeError: With the first five shards and the first error.

    >>> refuse_crashed([{"shard": "train-000000", "error": "E: x."}])
    Traceback (most recent call last):
    RuntimeError: Every shard must be done. Got 1 crashed (train-000000): E: x. ...
    """
    crashed = [row for row in rows if row.get("error")]
    if crashed:
        names = ", ".join(str(row["shard"]) for row in crashed[:5])
        raise RuntimeError(
            f"Every shard must be done. Got {len(crashed)} crashed ({names}): "
            f"{crashed[0]['error']} Run the same command again."
        )


def _worker() -> str:
    """The process that we are, among all machines of a cluster."""
    return f"{socket.gethostname()}-{os.getpid()}"


def _pass_on(row: Row) -> Row:
    """Report a shard of another process, whose own reports nobody here has heard."""
    planned = row.pop("samples_planned", 0)
    if row.get("worker", _worker()) != _worker():
        if not row["reused"]:
            report("samples", count=planned)
        report("shard", name=row["shard"], planned=planned, reused=row["reused"])
    return row
