"""The generation flow: plan, make the shards as tasks, finalize; audit and report if asked to.

Tasks are shards, never samples, and no tensor crosses a task boundary. Prefect's cache is off:
a shard is done when its marker says so, which only the library can tell.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from flows.artifacts import publish_dataset, publish_report
from flows.audit import audit as audit_flow
from flows.limits import slot
from flows.runners import completed, inherited_tags, task_runner
from synthgen import run
from synthgen.config import AuditConfig, Config
from synthgen.dataset.redaction import redact
from synthgen.report.page import write_report
from synthgen.types import ShardReport, ShardSpec


@task(
    retries=2,
    retry_delay_seconds=1,
    cache_policy=NO_CACHE,
    task_run_name="{spec.name}",
    tags=["synthgen"],
    persist_result=False,
)
def make_shard(
    config: Config, spec: ShardSpec, out: str, gpu_limit: str | None = None
) -> dict[str, Any]:
    """Make one shard; a shard that is already complete costs nothing."""
    with slot(gpu_limit):
        report = run.make_shard(config, spec, out, progress=run.emit)
    return {**dataclasses.asdict(report), "worker": _worker()}


@flow(name="synthgen-shards", retries=0, persist_result=False)  # the outer flow is retried
def make_shards(
    config: Config, out: str, workers: int = 1, gpu_limit: str | None = None
) -> list[dict[str, Any]]:
    """Make every planned shard; one that crashes is reported, and made by the next run."""
    specs = run.plan(config)
    progress = cast(UUID, create_progress_artifact(progress=0.0, key="synthgen-progress"))
    rows = []

    def submit(spec: ShardSpec) -> PrefectFuture[dict[str, Any]]:
        return make_shard.submit(config, spec, out, gpu_limit)

    for spec, future in completed(specs, submit, workers):
        rows.append(_result(spec, future))
        _pass_on(rows[-1])
        update_progress_artifact(progress, progress=100.0 * len(rows) / len(specs))
    return sorted(rows, key=lambda row: row["name"])


@flow(name="generate", persist_result=False)
def generate(
    config: Config,
    out: str,
    runner: str = "threads",
    workers: int = 1,
    strict: bool = False,
    audit: AuditConfig | None = None,
    report: bool = False,
    gpu_limit: str | None = None,
    address: str | None = None,
) -> dict[str, Any]:
    """Make a dataset from prompts, or finish one that was cut off.

    Args:
        config: The dataset's configuration.
        out: Output folder.
        runner: Where shards run: a row of RUNNERS or ``module:attribute``.
        workers: Shards in flight at once.
        strict: Refuse to resume with other library versions instead of warning.
        audit: Then audit the dataset, in a flow of its own, with these settings.
        report: Then write ``report/index.html``.
        gpu_limit: Name of a global concurrency limit of which every shard takes a slot.
        address: Cluster of the runner: ``auto`` or ``host:port``; None: this machine.

    Returns:
        The manifest.
    """
    run.initialize(config, out, strict=strict)
    shards = make_shards.with_options(task_runner=task_runner(runner, workers, address))
    with inherited_tags():
        rows = shards(config, out, workers, gpu_limit)
    crashed = [row["name"] for row in rows if row.get("error")]
    if crashed:
        raise RuntimeError(
            f"Every shard must be complete before the dataset is finalized. "
            f"Got {len(crashed)} crashed ({', '.join(crashed[:5])}): {rows_error(rows)} "
            f"Run the same command again to make them."
        )
    manifest = run.finalize(config, out)
    publish_dataset(rows, manifest, out)
    if audit is not None:
        with inherited_tags():
            audit_flow.with_options(retries=0)(
                out, audit, runner=runner, workers=workers, address=address, gpu_limit=gpu_limit
            )
    if report:
        publish_report(write_report(out))
    return manifest


def rows_error(rows: Sequence[dict[str, Any]]) -> str:
    """The first error among the rows, empty where there is none."""
    return next((str(row["error"]) for row in rows if row.get("error")), "")


def _result(spec: ShardSpec, future: PrefectFuture[dict[str, Any]]) -> dict[str, Any]:
    try:
        return future.result()
    except Exception as error:
        get_run_logger().error("%s crashed: %s", spec.name, redact(str(error)))
        lost = ShardReport(spec.name, len(spec.samples), {}, 0, "")
        return {**dataclasses.asdict(lost), "error": redact(f"{type(error).__name__}: {error}")}


def _worker() -> str:
    """The process that we are, among all machines of a cluster."""
    return f"{socket.gethostname()}-{os.getpid()}"


def _pass_on(row: dict[str, Any]) -> None:
    """Report a shard of another process, whose own reports nobody here has heard."""
    if row.get("worker", _worker()) != _worker():
        if not row["reused"]:
            run.emit("samples", count=row["planned"])
        run.emit("shard", name=row["name"], planned=row["planned"], reused=row["reused"])
