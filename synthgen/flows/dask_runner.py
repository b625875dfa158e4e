"""Shards on Dask: one process per worker, one shard at a time, the model stays loaded.

For GPUs start the workers with ``dask cuda worker``, which gives each one of its own.
"""

from __future__ import annotations

from synthgen.flows.runners import ReportsToOneServer

try:
    from prefect_dask import DaskTaskRunner
except ImportError as error:
    raise ImportError(f"{error.name} is not installed; pip install '.[dask]'") from error


class OneServerDaskTaskRunner(ReportsToOneServer, DaskTaskRunner):  # type: ignore[misc]
    """Dask whose workers report to the server of the flow."""


def dask_runner(workers: int, address: str | None = None) -> OneServerDaskTaskRunner:
    """Dask on this machine with ``workers`` processes, or the scheduler at ``address``."""
    if address is not None:
        return OneServerDaskTaskRunner(address=address)
    processes = {"n_workers": workers, "threads_per_worker": 1, "processes": True}
    return OneServerDaskTaskRunner(
        cluster_kwargs={**processes, "dashboard_address": "127.0.0.1:0"}
    )
