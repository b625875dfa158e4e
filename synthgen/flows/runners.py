"""Task runners by name: where the shards of a flow run.

``threads`` runs them in this process: images are drawn one batch at a time (the model is
shared), clustering and writing overlap with it. ``ray`` and ``dask`` run them in worker
processes, each of which loads the model once and keeps it; on this machine, or on a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from prefect import tags
from prefect.client.orchestration import get_client
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from synthgen.progress import Stopped, stop_requested
from synthgen.registry import resolve

RUNNERS = {
    "threads": "synthgen.flows.runners:threads",
    "ray": "synthgen.flows.ray_runner:ray_runner",
    "dask": "synthgen.flows.dask_runner:dask_runner",
}
WINDOW = 32  # submissions in flight: a plan of a million shards must not flood the server
_STOP_SECONDS = 1.0  # how long a request to stop may wait for workers that do not hear of it

Item = TypeVar("Item")


@contextmanager
def inherited_tags() -> Iterator[None]:
    """Give flow runs that begin in the block the tags of ours: automations know them by these."""
    with tags(*flow_run.tags):
        yield


def threads(workers: int, address: str | None = None) -> ThreadPoolTaskRunner[Any]:
    """A pool of ``workers`` threads in this process.

    Raises:
        ValueError: If a cluster is named.
    """
    if address is not None:
        raise ValueError(
            f"address must be left out for threads, which run here. Got {address!r:.80}. "
            f"Choose runner ray or dask."
        )
    return ThreadPoolTaskRunner(max_workers=workers)


def task_runner(name: str, workers: int, address: str | None = None) -> TaskRunner[Any]:
    """The runner that ``name`` stands for.

    Args:
        name: A row of RUNNERS, or ``module:attribute`` of a function of the other two.
        workers: Shards in flight at once; on this machine also the number of processes.
        address: The cluster that runs them, as Ray or Dask write it; None: this machine.

    Raises:
        ValueError: In one line, for an unknown name, a package that is not installed, fewer than
            one worker, or a cluster that could not report to a server.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1. Got {workers}.")
    if address is not None and name != "threads" and not PREFECT_API_URL.value():
        raise ValueError(
            "With a cluster, PREFECT_API_URL must name a server that its workers reach. Got "
            "none; start one with 'prefect server start --host 0.0.0.0' and set it."
        )
    runner: TaskRunner[Any] = resolve(name, RUNNERS, "runner")(workers, address)
    return runner


def completed(
    items: Iterable[Item], submit: Callable[[Item], PrefectFuture[Any]], workers: int
) -> Iterator[tuple[Item, PrefectFuture[Any]]]:
    """Submit items and yield each with its future as soon as it is done, in any order.

    At most WINDOW submissions, or two for each worker, are in flight: no straggler holds up the
    others, and no worker waits for the next.

    Raises:
        Stopped: After ``progress.request_stop``.
    """
    done: SimpleQueue[tuple[Item, PrefectFuture[Any]]] = SimpleQueue()
    in_flight, window = 0, max(WINDOW, 2 * workers)
    for item in items:
        if in_flight == window:
            yield _next(done)
            in_flight -= 1
        submit(item).add_done_callback(partial(_put, done, item))
        in_flight += 1
    for _ in range(in_flight):
        yield _next(done)


class ReportsToOneServer:
    """Mixed into runners of other processes: what they run reports to our server.

    Workers would start one each.
    """

    def submit(self, *arguments: Any, **options: Any) -> Any:
        """Submit a task; see ``TaskRunner.submit``."""
        url = PREFECT_API_URL.value() or str(get_client(sync_client=True).api_url)
        with temporary_settings({PREFECT_API_URL: url}), self.submitting():
            return super().submit(*arguments, **options)  # type: ignore[misc]

    def submitting(self) -> AbstractContextManager[Any]:
        """In the block a task is submitted."""
        return nullcontext()


def _put(done: SimpleQueue[Any], item: object, future: object) -> None:
    done.put((item, future))


def _next(done: SimpleQueue[Any]) -> Any:
    while True:
        try:
            return done.get(timeout=_STOP_SECONDS)
        except Empty:
            if stop_requested():
                raise Stopped from None
