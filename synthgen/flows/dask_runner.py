"""Shards on Dask: one process per worker, one shard at a time, the model stays loaded.

For GPUs start the workers with ``dask cuda worker``, which gives each one of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefect.futures import PrefectFuture
from prefect.tasks import Task

from synthgen.flows.runners import one_server

try:
    from prefect_dask import DaskTaskRunner
except ImportError as error:
    raise ImportError(f"{error.name} is not installed; pip install '.[dask]'") from error


class OneServerDaskTaskRunner(DaskTaskRunner):  # type: ignore[misc]  # no types here
    """Dask whose workers report to the server of the flow."""

    def submit(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, Any] | None = None,
    ) -> Any:
        """Submit a task; see ``DaskTaskRunner.submit``."""
        with one_server():
            return super().submit(task, parameters, wait_for, dependencies)


def dask_runner(workers: int, address: str | None = None) -> OneServerDaskTaskRunner:
    """Dask on this machine with ``workers`` processes, or the scheduler at ``address``."""
    if address is not None:
        return OneServerDaskTaskRunner(address=address)
    processes = {"n_workers": workers, "threads_per_worker": 1, "processes": True}
    return OneServerDaskTaskRunner(
        cluster_kwargs={**processes, "dashboard_address": "127.0.0.1:0"}
    )
