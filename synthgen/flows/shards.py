"""What the flows over shards share: how a task is tried, what becomes of its row, when to stop.

A shard that crashes becomes a row with its error; the others are made, and the next run makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from synthgen.flows.artifacts import put, update_progress
from synthgen.flows.runners import completed
from synthgen.storage.redaction import redact

P = ParamSpec("P")
Result = TypeVar("Result")
Row = dict[str, Any]
_TOLD = ("counts", "reasons", "reused", "samples", "rejected", "classes", "error")


def may_pass_again(_task: object, _run: object, state: Any) -> bool:
    """Whether to try again: not after a ValueError, which a shard made again only repeats."""
    return not isinstance(state.result(raise_on_failure=False), ValueError)


def shard_task(run_name: str) -> Callable[[Callable[P, Result]], Task[P, Result]]:
    """A decorator: a function of one shard as a task, whose runs are named ``run_name``."""
    return task(
        task_run_name=run_name,
        retries=2,
        retry_delay_seconds=1,
        retry_condition_fn=may_pass_again,
        cache_policy=NO_CACHE,
        tags=["synthgen"],
        persist_result=False,
    )


def collect(
    shards: Sequence[str],
    submit: Callable[[str], PrefectFuture[Row]],
    workers: int,
    progress_key: str,
) -> Iterator[Row]:
    """The rows of shards as they are done, with ``shard``, and ``error`` where one crashed.

    Args:
        shards: File stems.
        submit: Starts the task of one.
        workers: Shards in flight at once.
        progress_key: Artifact that shows how many are done.
    """
    progress, logger = put("progress", progress_key, 0.0 if shards else 100.0), get_run_logger()
    for done, (shard, future) in enumerate(completed(shards, submit, workers), start=1):
        row = {"shard": shard, **_row(shard, future)}
        told = (f"{name} {value}" for name, value in row.items() if name in _TOLD)
        logger.info("%s, %d of %d: %s", shard, done, len(shards), ", ".join(told))
        yield row
        update_progress(progress, 100.0 * done / len(shards))


def refuse_crashed(rows: Sequence[Mapping[str, Any]], wanted: str) -> None:
    """Stop where a shard crashed.

    Args:
        rows: One per shard.
        wanted: What every shard must be, and before what.

    Raises:
        RuntimeError: With the first five shards and the first error.

    >>> refuse_crashed([{"shard": "train-000000", "error": "E: x."}], "made")
    Traceback (most recent call last):
    RuntimeError: Every shard must be made. Got 1 crashed (train-000000): E: x. ...
    """
    crashed = [row for row in rows if row.get("error")]
    if crashed:
        names = ", ".join(str(row["shard"]) for row in crashed[:5])
        raise RuntimeError(
            f"Every shard must be {wanted}. Got {len(crashed)} crashed ({names}): "
            f"{crashed[0]['error']} Run the same command again."
        )


def _row(shard: str, future: PrefectFuture[Row]) -> Row:
    try:
        return future.result()
    except Exception as error:
        get_run_logger().error("%s crashed: %s", shard, redact(str(error)))
        return {"error": redact(f"{type(error).__name__}: {error}")}
