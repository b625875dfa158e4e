"""The audit flow: begin, audit the shards as tasks, conclude. The library does the work."""

from operator import itemgetter
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture

from synthgen.auditing import audit as auditing
from synthgen.auditing.plan import AuditPlan
from synthgen.config import AuditConfig
from synthgen.flows.artifacts import publish_audit
from synthgen.flows.limits import slot
from synthgen.flows.runners import inherited_tags, task_runner
from synthgen.flows.shards import collect, refuse_crashed, shard_task


@shard_task("audit-{shard}")
def audit_shard(plan: AuditPlan, shard: str, gpu_limit: str | None = None) -> dict[str, Any]:
    """Audit one shard; one that is done costs nothing."""
    with slot(gpu_limit):
        marker = auditing.audit_shard(plan, shard)
    return {"samples": marker.samples, "rejected": marker.rejected}


@flow(name="synthgen-audit-shards", retries=0, persist_result=False)  # the outer one is retried
def audit_shards(
    plan: AuditPlan, workers: int = 1, gpu_limit: str | None = None
) -> list[dict[str, Any]]:
    """Audit every planned shard; one that crashes is reported, and audited by the next run."""

    def submit(shard: str) -> PrefectFuture[dict[str, Any]]:
        return audit_shard.submit(plan, shard, gpu_limit)

    rows = collect(plan.shards, submit, workers, "synthgen-audit-progress")
    return sorted(rows, key=itemgetter("shard"))


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
    """Audit a finished dataset, or finish an audit that was cut off.

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
    plan = auditing.begin(out, settings or AuditConfig(), audit_id, num=num)
    shards = audit_shards.with_options(task_runner=task_runner(runner, workers, address))
    with inherited_tags():
        rows = shards(plan, workers, gpu_limit)
    refuse_crashed(rows, "audited before the audit is concluded")
    summary = auditing.conclude(plan)
    publish_audit(rows, summary)
    _check_share(summary["totals"], max_failed)
    return summary


def _check_share(totals: dict[str, Any], max_failed: float | None) -> None:
    """Fail the run, so that automations see it; the audit itself is concluded and stands."""
    if max_failed is not None and totals["rejected"] > max_failed * totals["samples"]:
        raise RuntimeError(
            f"At most {max_failed:.0%} of the samples may be rejected. Got {totals['rejected']} "
            f"of {totals['samples']}: {totals['reasons']}. Look at the report."
        )
