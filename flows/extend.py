"""The growth flow: one extension per run, made by the generation flow, then looked at."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.generate import generate
from synthgen import run
from synthgen.config import AuditConfig, Config


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
    """Add whole shards to a dataset, with fresh seeds and the next prompts.

    An extension that was cut off is finished first, and nothing more is added then: a retry adds
    no shard twice. The first run of a schedule makes the dataset itself, from ``config``.

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

    Returns:
        The new manifest.
    """
    with run.extension(out, shards, config) as extended:
        manifest: dict[str, Any] = generate.with_options(retries=0)(  # ours are retried
            extended,
            out,
            runner=runner,
            workers=workers,
            audit=audit,
            report=report,
            gpu_limit=gpu_limit,
            address=address,
        )
    return manifest
