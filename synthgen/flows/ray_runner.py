"""Shards on Ray: worker processes that outlive their tasks, so each loads the model once.

Ray ends a process that held a GPU after one task, unless ``max_calls`` is 0; six shards on two
workers then load two models, not six. A worker that dies loses nothing: Ray gives its shard to
another, twice, and after that the next run makes it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from synthgen.flows.runners import ReportsToOneServer

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
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        found: AbstractContextManager[Any] = remote_options(
            num_cpus=1, num_gpus=gpus, max_calls=0, max_retries=MAX_RETRIES
        )
        return found


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
