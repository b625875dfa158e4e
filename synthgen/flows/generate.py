"""The generation flow: make a dataset, then audit it and write its report if asked to."""

from typing import Any

from prefect import flow

from synthgen.config import AuditConfig, Config
from synthgen.flows.artifacts import publish_dataset, publish_report
from synthgen.flows.audit import audit as audit_flow
from synthgen.flows.runners import inherited_tags
from synthgen.flows.shards import run_job
from synthgen.jobs import GenerateJob, as_extended
from synthgen.report.page import write_report


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
    """Make a dataset from prompts, or finish one that was cut off; returns its manifest.

    Args:
        config: The dataset's configuration.
        out: Output folder or URL.
        runner: Where shards run: a row of RUNNERS or ``module:attribute``.
        workers: Shards in flight at once.
        strict: Refuse to resume with other library versions instead of warning.
        audit: Then audit the dataset, in a flow of its own, with these settings.
        report: Then write ``report/index.html``.
        gpu_limit: Name of a global concurrency limit of which every shard takes a slot.
        address: Cluster of the runner: ``auto`` or ``host:port``; None: this machine.
    """
    job = GenerateJob(as_extended(config, out), out, strict)
    manifest = run_job(job, runner, workers, gpu_limit, address)
    publish_dataset(manifest, out)
    if audit is not None:
        where: Any = {"runner": runner, "workers": workers, "address": address}
        with inherited_tags():
            audit_flow.with_options(retries=0)(out, audit, gpu_limit=gpu_limit, **where)
    if report:
        publish_report(write_report(out), out)
    return manifest
