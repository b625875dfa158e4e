"""``synthgen merge``: several datasets become one."""

from __future__ import annotations

from typing import Annotated

import typer

from synthgen.cli.display import JsonLogs, show_progress
from synthgen.cli.options import say


def merge(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="DIR DIR...", help="Finished datasets, folders or URLs, in order."),
    ],
    out: Annotated[
        str, typer.Option(help="The new dataset, a folder or URL; run again to go on.")
    ],
    json_logs: JsonLogs = False,
) -> None:
    """Write the samples of several datasets into a new one, under new keys.

    Image format, ks and whether there are labels must be equal; models, prompts and sizes may
    differ, and class ids are made to agree. Images and masks are copied byte for byte;
    metadata/*.parquet names the old dataset and key of every sample. Audits are about their own
    dataset: audit the new one.

    Examples:

      synthgen merge data/day data/night --out data/both
    """
    from synthgen import jobs
    from synthgen.jobs.merge_plan import plan_merge

    plan = plan_merge(sources)
    with show_progress(plan.planned, len(plan.shards), json_logs):
        totals = jobs.merge(sources, out)["totals"]
    say(f"  dataset        {out}  ({totals['samples']} samples, {totals['shards']} shards)")
