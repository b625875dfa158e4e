"""Shards on Ray: worker processes that outlive their tasks, so each loads the model once.

Ray ends a process that held a GPU after one task, unless ``max_calls`` is 0; six shards on two
workers then load two models, not six. A worker that dies loses nothing: Ray gives its shard to
another, twice, and after that the next run makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from synthgen.flows.runners import ReportsToOneServer
from synthgen.jobs.plan import MAX_WORKERS

try:
    import ray
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options
except ImportError as error:
    raise ImportError(f"{error.name} is not installed; pip install '.[ray]'") from error

MAX_RETRIES = 2  # of a shard whose worker died; errors that a shard raises are Prefect's to retry
OBJECT_STORE_BYTES = 100_000_000  # no image crosses a task boundary; Ray takes at least 75 MB


class ResidentRayTaskRunner(ReportsToOneServer, RayTaskRunner):  # type: ignore[misc]
    """Runs every task in a process that stays, with a GPU of its own where there are any."""

    def submitting(self) -> AbstractContextManager[Any]:
        """With our options."""
        found: AbstractContextManager[Any] = remote_options(
            **share_of(ray.cluster_resources()), max_calls=0, max_retries=MAX_RETRIES
        )
        return found


def share_of(cluster: Mapping[str, float]) -> dict[str, int]:
    """What one task holds: a GPU, its own core, and those of the threads that finish samples.

    They are in the task's process, so Ray places them beside its GPU; where a cluster has many
    cores for each GPU, no more of them than threads by default.

    >>> share_of({"CPU": 64, "GPU": 8}), share_of({"CPU": 8, "GPU": 4})
    ({'num_cpus': 5, 'num_gpus': 1}, {'num_cpus': 2, 'num_gpus': 1})
    >>> share_of({"CPU": 8})
    {'num_cpus': 1, 'num_gpus': 0}
    """
    gpus = int(cluster.get("GPU", 0))
    if not gpus:
        return {"num_cpus": 1, "num_gpus": 0}
    cores = int(cluster.get("CPU", 1)) // gpus
    return {"num_cpus": max(1, min(1 + MAX_WORKERS, cores)), "num_gpus": 1}


def ray_runner(workers: int, address: str | None = None) -> ResidentRayTaskRunner:
    """Ray on this machine with ``workers`` processes, or the cluster at ``address``.

    Args:
        workers: Processes on this machine; a cluster has those that it has.
        address: ``auto`` (the cluster that this machine belongs to) or ``host:port``.

    Raises:
        ValueError: For a ``ray://`` address: its client loses the flow with its connection.
    """
    settings: dict[str, Any] = {"log_to_driver": False}
    if address is None:
        here = {"num_cpus": workers, "object_store_memory": OBJECT_STORE_BYTES}
        return ResidentRayTaskRunner("local", {"include_dashboard": False, **here, **settings})
    if address.startswith("ray://"):
        raise ValueError(
            f"address must be auto or host:port. Got {address!r:.80}. Run the flow on a machine "
            f"of the cluster."
        )
    return ResidentRayTaskRunner(None, {"address": address, **settings})
