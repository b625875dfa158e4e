"""Commands that look at a dataset: ``verify``, ``status``, ``replay``, ``gc``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.command import Result
from synthgen.cli.options import Folder

if TYPE_CHECKING:
    from synthgen.jobs import DatasetStatus

MAX_PROBLEMS = 100
"""Problems that are shown; the rest is counted."""


def verify(
    directory: Folder,
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every sample.")] = False,
) -> Result:
    """Check every shard: truncation, duplicates, foreign members, bad ids, hashes.

    Of an export, every file is compared with the hash that was written last.

    Exit code 0: nothing is wrong, 1: something is.

    Examples:

      synthgen verify data/scenes

      synthgen verify s3://bucket/scenes --deep --json

      synthgen verify data/coco
    """
    from synthgen.dataset.manifest import IDENTITY, MANIFEST, TAR_NAME
    from synthgen.dataset.verify import find_problems
    from synthgen.export.checksums import is_export, verify_export
    from synthgen.storage.publish import open_storage

    storage = open_storage(directory)
    if is_export(storage):
        found = iter(verify_export(storage))
    else:
        described = any(storage.size(name) is not None for name in (IDENTITY, MANIFEST))
        if not described and not any(TAR_NAME.fullmatch(n) for n in storage.names("data")):
            raise ValueError(f"{storage.root} must be a dataset. Got no {IDENTITY} there.")
        found = find_problems(directory, deep=deep)
    problems = list(islice(found, MAX_PROBLEMS))
    kinds = Counter(problem.kind for problem in problems)
    kinds.update(problem.kind for problem in found)  # the rest is counted alone
    tree = {
        "correct": not problems,
        "total": kinds.total(),
        "kinds": dict(kinds),
        "problems": [asdict(problem) for problem in problems],
    }
    if not problems:
        return Result(tree, [f"{directory} is complete and correct."])
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    shown = f" ({len(problems)} shown)" if len(problems) < kinds.total() else ""
    problem = f"{kinds.total()} problems in {directory}{shown}: {counted}."
    return Result(tree, problems, problem, 1)


def status(directory: Folder) -> Result:
    """Say how far a dataset is: samples planned, done, and failed by reason.

    Loads no model and may be asked while the dataset is made; only complete shards count. It is
    finalized once every planned shard is complete and the manifest says so.

    Examples:

      synthgen status data/scenes

      synthgen status s3://bucket/scenes --json
    """
    from synthgen.jobs.status import status as look

    found = look(directory)
    return Result(asdict(found), status_lines(found))


def status_lines(found: DatasetStatus) -> list[str]:
    """A dataset's status for people."""
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


def replay(
    directory: Folder,
    key: Annotated[str, typer.Argument(help="Key of the sample, 10 digits or more.")],
) -> Result:
    """Make one sample again from its provenance and compare every member's bytes."""
    from synthgen.jobs.replay import replay as make_again

    found = make_again(directory, key)
    lines = [f"{'same' if same else 'DIFFERENT':>9}  {name}" for name, same in found.items()]
    return Result(found, lines, code=0 if all(found.values()) else 1)


def gc(
    directory: Folder,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list, remove nothing.")] = False,
) -> Result:
    """Clear what interrupted runs left behind; complete and listed shards are never touched."""
    from synthgen.jobs.status import gc as clear

    removed = clear(directory, dry_run=dry_run)
    verb = "would be removed" if dry_run else "removed"
    lines = [*(f"{verb}  {path}" for path in removed), f"{len(removed)} files {verb}."]
    return Result({verb: removed}, lines)
