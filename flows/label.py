"""The labeling flow: begin, label the shards as tasks, conclude. The library does the work."""

from __future__ import annotations

from typing import Any

from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture

from flows.limits import slot
from flows.runners import completed, inherited_tags, task_runner
from synthgen.config import LabelConfig
from synthgen.dataset.redaction import redact
from synthgen.run import label as labeling
from synthgen.run.label import LabelPlan


def may_pass_again(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether to try again: not after a ValueError, which a shard made again only repeats."""
    return not isinstance(state.result(raise_on_failure=False), ValueError)


@task(
    retries=2,
    retry_delay_seconds=1,
    retry_condition_fn=may_pass_again,
    cache_policy=NO_CACHE,
    task_run_name="label-{shard}",
    tags=["synthgen"],
    persist_result=False,
)
def label_shard(plan: LabelPlan, shard: str, gpu_limit: str | None = None) -> dict[str, Any]:
    """Label one shard; one that is done costs nothing."""
    with slot(gpu_limit):
        marker = labeling.label_shard(plan, shard)
    classes = marker.statistics["classes"].values()
    found = sum(row["images"] > 0 for row in classes)
    return {"shard": shard, "samples": marker.samples, "classes": found, "bytes": marker.bytes}


@flow(name="synthgen-label-shards", retries=0, persist_result=False)  # the outer one is retried
def label_shards(
    plan: LabelPlan, workers: int = 1, gpu_limit: str | None = None
) -> list[dict[str, Any]]:
    """Label every planned shard; one that crashes is reported, and labeled by the next run."""

    def submit(shard: str) -> PrefectFuture[dict[str, Any]]:
        return label_shard.submit(plan, shard, gpu_limit)

    rows = [_result(*done) for done in completed(plan.shards, submit, workers)]
    return sorted(rows, key=lambda row: str(row["shard"]))


@flow(name="label", persist_result=False)
def label(
    out: str,
    settings: LabelConfig | None = None,
    ks: tuple[int, ...] | None = None,
    label_id: str | None = None,
    num: int | None = None,
    runner: str = "threads",
    workers: int = 1,
    gpu_limit: str | None = None,
    address: str | None = None,
) -> dict[str, Any]:
    """Label a finished dataset, or finish labels that were cut off.

    Args:
        out: The dataset's folder or URL.
        settings: Method, text, thresholds, refiner; None: ``clusters`` with its defaults.
        ks: Other numbers of clusters than the dataset's; the labels then bring their masks.
        label_id: Name of the labels; None: the method's name and a hash of all settings.
        num: Label whole shards until this many samples; None: all.
        runner: Where shards run: a row of RUNNERS or ``module:attribute``.
        workers: Shards in flight at once.
        gpu_limit: Name of a global concurrency limit of which every shard takes a slot.
        address: Cluster of the runner: ``auto`` or ``host:port``; None: this machine.
    """
    settings = settings or LabelConfig(method="clusters")
    plan = labeling.begin(out, settings, ks, label_id, num)
    shards = label_shards.with_options(task_runner=task_runner(runner, workers, address))
    with inherited_tags():
        rows = shards(plan, workers, gpu_limit)
    crashed = [row for row in rows if row.get("error")]
    if crashed:
        names = ", ".join(str(row["shard"]) for row in crashed[:5])
        raise RuntimeError(
            f"Every shard must be labeled before labels are concluded. Got {len(crashed)} "
            f"crashed ({names}): {crashed[0]['error']} Run the same command again."
        )
    summary = labeling.conclude(plan)
    create_table_artifact(table=rows, key="synthgen-label-shards", description=plan.label_id)
    classes = [{"class": n, **row} for n, row in summary["statistics"]["classes"].items()]
    create_table_artifact(table=classes, key="synthgen-label-classes", description=plan.label_id)
    return summary


def _result(shard: str, future: PrefectFuture[dict[str, Any]]) -> dict[str, Any]:
    try:
        return future.result()
    except Exception as error:
        get_run_logger().error("%s crashed: %s", shard, redact(str(error)))
        return {"shard": shard, "error": redact(f"{type(error).__name__}: {error}")}
