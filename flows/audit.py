"""The audit flow: begin, audit the shards as tasks, conclude. The library does the work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from flows.runners import task_runner
from synthgen.auditing import audit as auditing
from synthgen.auditing.plan import AuditPlan
from synthgen.config import AuditConfig

WINDOW = 32  # submissions in flight: a dataset of many shards must not flood the server


@task(
    retries=2,
    retry_delay_seconds=1,
    cache_policy=NO_CACHE,
    task_run_name="audit-{shard}",
    tags=["synthgen"],
    persist_result=False,
)
def audit_shard(plan: AuditPlan, shard: str) -> dict[str, Any]:
    """Audit one shard; one that is done costs nothing."""
    marker = auditing.audit_shard(plan, shard)
    return {"shard": shard, "samples": marker.samples, "rejected": marker.rejected}


@flow(name="synthgen-audit-shards", persist_result=False)
def audit_shards(plan: AuditPlan) -> list[dict[str, Any]]:
    """Audit every planned shard; one that crashes is reported, and audited by the next run."""
    return sorted(_collect(plan), key=lambda row: str(row["shard"]))


@flow(name="audit", persist_result=False)
def audit(
    out: str,
    settings: AuditConfig | None = None,
    audit_id: str | None = None,
    num: int | None = None,
    runner: str = "threads",
    workers: int = 1,
) -> dict[str, Any]:
    """Audit a finished dataset, or finish an audit that was cut off.

    Args:
        out: The dataset's folder or URL.
        settings: Auditor, comparison, thresholds.
        audit_id: Name of the audit; None: the auditor's name and a hash of all settings.
        num: Audit whole shards until this many samples; None: all.
        runner: Where shards run: a row of RUNNERS or ``module:attribute``.
        workers: Shards in flight at once.
    """
    plan = auditing.begin(out, settings or AuditConfig(), audit_id, num=num)
    rows = audit_shards.with_options(task_runner=task_runner(runner, workers))(plan)
    crashed = [row for row in rows if row.get("error")]
    if crashed:
        names = ", ".join(str(row["shard"]) for row in crashed[:5])
        raise RuntimeError(
            f"Every shard must be audited before the audit is concluded. Got {len(crashed)} "
            f"crashed ({names}): {crashed[0]['error']} Run the same command again."
        )
    summary = auditing.conclude(plan)
    create_table_artifact(table=rows, key="synthgen-audit-shards", description=plan.audit_id)
    totals = "\n".join(f"- {name}: {value}" for name, value in summary["totals"].items())
    create_markdown_artifact(key="synthgen-audit", markdown=f"# Audit\n\n{totals}\n")
    return summary


def _collect(plan: AuditPlan) -> Iterator[dict[str, Any]]:
    waiting: deque[tuple[str, PrefectFuture[dict[str, Any]]]] = deque()
    for shard in plan.shards:
        waiting.append((shard, audit_shard.submit(plan, shard)))
        if len(waiting) >= WINDOW:
            yield _result(*waiting.popleft())
    while waiting:
        yield _result(*waiting.popleft())


def _result(shard: str, future: PrefectFuture[dict[str, Any]]) -> dict[str, Any]:
    try:
        return future.result()
    except Exception as error:
        get_run_logger().error("%s crashed: %s", shard, error)
        return {"shard": shard, "error": f"{type(error).__name__}: {error}"}
