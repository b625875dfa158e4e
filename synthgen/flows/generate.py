"""The generation flow: plan, make the shards as tasks, finalize; audit and report if asked to.

Tasks are shards, never samples, and no tensor crosses a task boundary. Prefect's cache is off:
a shard is done when its marker says so, which only the library can tell.
"""

import dataclasses
import os
import socket
from operator import itemgetter
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture

from synthgen import jobs
from synthgen.config import AuditConfig, Config
from synthgen.flows.artifacts import publish_dataset, publish_report
from synthgen.flows.audit import audit as audit_flow
from synthgen.flows.limits import slot
from synthgen.flows.runners import inherited_tags, task_runner
from synthgen.flows.shards import collect, refuse_crashed, shard_task
from synthgen.report.page import write_report
from synthgen.types import ShardSpec, shard_name


@shard_task("{spec.name}")
def make_shard(
    config: Config, spec: ShardSpec, out: str, gpu_limit: str | None = None
) -> dict[str, Any]:
    """Make one shard; a shard that is already complete costs nothing."""
    with slot(gpu_limit):
        report = jobs.make_shard(config, spec, out, progress=jobs.emit)
    return {**dataclasses.asdict(report), "worker": _worker()}


@flow(name="synthgen-shards", retries=0, persist_result=False)  # the outer flow is retried
def make_shards(
    config: Config, out: str, workers: int = 1, gpu_limit: str | None = None
) -> list[dict[str, Any]]:
    """Make every shard that is missing; one that crashes is made by the next run."""
    specs = jobs.plan(config)
    names = {shard_name(index): index for index in jobs.missing(config, out)}
    rows = []

    def submit(shard: str) -> PrefectFuture[dict[str, Any]]:
        return make_shard.submit(config, specs[names[shard]], out, gpu_limit)

    for row in collect(list(names), submit, workers, "synthgen-progress"):
        rows.append(row)
        _pass_on(row)
    return sorted(rows, key=itemgetter("shard"))


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
    config = jobs.as_extended(config, out)
    jobs.initialize(config, out, strict=strict)
    shards = make_shards.with_options(task_runner=task_runner(runner, workers, address))
    with inherited_tags():
        rows = shards(config, out, workers, gpu_limit)
    refuse_crashed(rows, "complete before the dataset is finalized")
    manifest = jobs.finalize(config, out)
    publish_dataset(rows, manifest, out)
    if audit is not None:
        with inherited_tags():
            audit_flow.with_options(retries=0)(
                out, audit, runner=runner, workers=workers, address=address, gpu_limit=gpu_limit
            )
    if report:
        publish_report(write_report(out), out)
    return manifest


def _worker() -> str:
    """The process that we are, among all machines of a cluster."""
    return f"{socket.gethostname()}-{os.getpid()}"


def _pass_on(row: dict[str, Any]) -> None:
    """Report a shard of another process, whose own reports nobody here has heard."""
    if row.get("worker", _worker()) != _worker():
        if not row["reused"]:
            jobs.emit("samples", count=row["planned"])
        jobs.emit("shard", name=row["name"], planned=row["planned"], reused=row["reused"])
