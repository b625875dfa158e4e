"""The audit flow: an independent segmenter looks at a finished dataset."""

from typing import Any

from prefect import flow

from synthgen.config import AuditConfig
from synthgen.flows.artifacts import publish_audit
from synthgen.flows.shards import run_job
from synthgen.jobs import AuditJob


@flow(name="audit", persist_result=False)
def audit(
    out: str,
    settings: AuditConfig | None = None,
    audit_id: str | None = None,
    num: int | None = None,
    runner: str = "threads",
    workers: int = 1,
    max_failed: float | None = None,
    gpu_limit: str | None = None,
    address: str | None = None,
) -> dict[str, Any]:
    """Audit a finished dataset, or finish an audit that was cut off; returns its summary.

    Args:
        out: The dataset's folder or URL.
        settings: Auditor, comparison, thresholds.
        audit_id: Name of the audit; None: the auditor's name and a hash of all settings.
        num: Audit whole shards until this many samples; None: all.
        runner: Where shards run: a row of RUNNERS or ``module:attribute``.
        workers: Shards in flight at once.
        max_failed: Fail if a larger share of the samples is rejected; None: only report.
        gpu_limit: Name of a global concurrency limit of which every shard takes a slot.
        address: Cluster of the runner: ``auto`` or ``host:port``; None: this machine.
    """
    job = AuditJob(out, settings, audit_id, num)
    summary = run_job(job, runner, workers, gpu_limit, address)
    publish_audit(summary)
    totals = summary["totals"]
    if max_failed is not None and totals["rejected"] > max_failed * totals["samples"]:
        raise RuntimeError(  # so that automations see it; the audit itself is finalized
            f"At most {max_failed:.0%} of the samples may be rejected. Got {totals['rejected']} "
            f"of {totals['samples']}: {totals['reasons']}. Look at the report."
        )
    return summary
