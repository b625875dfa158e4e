"""The growth flow: one extension per run, made by the generation flow, then looked at."""

from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from synthgen.config import AuditConfig, Config
from synthgen.flows.generate import generate
from synthgen.flows.runners import inherited_tags
from synthgen.jobs import extension

TARGET = "synthgen.extended"
"""Label of a flow run: how many extended shards the dataset has when it has ended."""


@flow(name="extend", persist_result=False)
def extend(
    out: str,
    shards: int = 1,
    config: Config | None = None,
    runner: str = "threads",
    workers: int = 1,
    audit: AuditConfig | None = None,
    report: bool = False,
    gpu_limit: str | None = None,
    address: str | None = None,
) -> dict[str, Any]:
    """Add whole shards to a dataset, with fresh seeds and the next prompts; returns its manifest.

    An extension that was cut off is finished first, and nothing more is added then. A retry, also
    of a run whose audit or report failed, adds no shard beside those of the first try. The first
    run of a schedule makes the dataset itself, from ``config``.

    Args:
        out: The dataset's folder or URL.
        shards: How many to add.
        config: Begins the dataset where there is none; afterwards it must stay the dataset's.
        runner: Where shards run: a row of RUNNERS or ``module:attribute``.
        workers: Shards in flight at once.
        audit: Then audit what is there by now; shards are audited once.
        report: Then write ``report/index.html``.
        gpu_limit: Name of a global concurrency limit of which every shard takes a slot.
        address: Cluster of the runner: ``auto`` or ``host:port``; None: this machine.
    """
    where: Any = {"runner": runner, "workers": workers, "gpu_limit": gpu_limit, "address": address}
    with get_client(sync_client=True) as client:
        # of an earlier try of this flow run, in whatever process: the server keeps it
        target = client.read_flow_run(flow_run.id).labels.get(TARGET)
        until = None if target is None else int(target)
        with extension(out, shards, config, until) as extended, inherited_tags():
            client.update_flow_run_labels(flow_run.id, {TARGET: extended.extended})
            again = generate.with_options(retries=0)  # ours are retried
            manifest: dict[str, Any] = again(extended, out, audit=audit, report=report, **where)
    return manifest
