"""``synthgen status``: how far a dataset is."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.options import say

if TYPE_CHECKING:
    from synthgen.jobs import DatasetStatus


def status(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Dataset folder or URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
) -> None:
    """Say how far a dataset is: samples planned, done, and failed by reason.

    Loads no model and may be asked while the dataset is made; only complete shards count. It is
    finalized once every planned shard is complete and the manifest says so.

    Examples:

      synthgen status data/scenes

      synthgen status s3://bucket/scenes --json
    """
    from synthgen.jobs import status as look

    found = look(directory)
    say(json.dumps(asdict(found)) if as_json else "\n".join(_lines(found)))


def _lines(found: DatasetStatus) -> list[str]:
    stopped = "samples whose k-means needs more than segmentation.clusters.max_iterations"
    going_on = "" if found.finalized else "; run the command that made it again to go on"
    return [
        f"  {'planned':<12}{found.planned:>10,} samples in {found.planned_shards:,} shards",
        f"  {'done':<12}{found.samples:>10,} samples in {found.complete_shards:,} shards",
        f"  {'failed':<12}{found.failed:>10,} samples",
        *(f"    {reason:<10}{count:>10,}" for reason, count in sorted(found.reasons.items())),
        *[f"  {'unconverged':<12}{found.unconverged:>10,} {stopped}"] * (found.unconverged > 0),
        f"  {'size':<12}{found.num_bytes / 1e6:>10,.1f} MB",
        f"  {'finalized':<12}{'yes' if found.finalized else 'no':>10}{going_on}",
    ]
