"""The labeling flow: labels beside a finished dataset."""

from typing import Any

from prefect import flow

from synthgen.config import LabelConfig
from synthgen.flows.artifacts import put
from synthgen.flows.shards import run_job
from synthgen.jobs import LabelJob


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
    """Label a finished dataset, or finish labels that were cut off; returns their summary.

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
    job = LabelJob(out, settings or LabelConfig(method="clusters"), ks, label_id, num)
    summary = run_job(job, runner, workers, gpu_limit, address)
    classes = [{"class": n, **row} for n, row in summary["statistics"]["classes"].items()]
    put("table", "synthgen-label-classes", classes, job.result_id)
    return summary
