"""The labeling flow: begin, label the shards as tasks, conclude. The library does the work."""

from operator import itemgetter
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture

from synthgen.config import LabelConfig
from synthgen.flows.artifacts import put
from synthgen.flows.limits import slot
from synthgen.flows.runners import inherited_tags, task_runner
from synthgen.flows.shards import collect, refuse_crashed, shard_task
from synthgen.jobs import label as labeling
from synthgen.jobs.label import LabelPlan


@shard_task("label-{shard}")
def label_shard(plan: LabelPlan, shard: str, gpu_limit: str | None = None) -> dict[str, Any]:
    """Label one shard; one that is done costs nothing."""
    with slot(gpu_limit):
        marker = labeling.label_shard(plan, shard)
    classes = marker.statistics["classes"].values()
    found = sum(row["images"] > 0 for row in classes)
    return {"samples": marker.samples, "classes": found, "bytes": marker.bytes}


@flow(name="synthgen-label-shards", retries=0, persist_result=False)  # the outer one is retried
def label_shards(
    plan: LabelPlan, workers: int = 1, gpu_limit: str | None = None
) -> list[dict[str, Any]]:
    """Label every planned shard; one that crashes is reported, and labeled by the next run."""

    def submit(shard: str) -> PrefectFuture[dict[str, Any]]:
        return label_shard.submit(plan, shard, gpu_limit)

    rows = collect(plan.shards, submit, workers, "synthgen-label-progress")
    return sorted(rows, key=itemgetter("shard"))


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
    refuse_crashed(rows, "labeled before labels are concluded")
    summary = labeling.conclude(plan)
    put("table", "synthgen-label-shards", rows, plan.label_id)
    classes = [{"class": n, **row} for n, row in summary["statistics"]["classes"].items()]
    put("table", "synthgen-label-classes", classes, plan.label_id)
    return summary
