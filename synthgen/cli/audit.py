"""``synthgen audit``: an independent segmenter looks at a finished dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.command import Result, run_job
from synthgen.cli.options import Checkpoint, Finished, FirstNum, Set, Sha256, say
from synthgen.config import TOPS, AuditConfig, load_audit

AUDIT_FAILED = 4
MAX_FAILED = 0.5  # half of a dataset rejected: something is wrong with the whole of it


def audit(
    out: Finished,
    auditor: Annotated[
        str,
        typer.Option(help="scenes-sam, sam, mask2former, …, or 'module:attribute'."),
    ] = "scenes-sam",
    checkpoint: Checkpoint = None,
    sha256: Sha256 = None,
    overrides: Set = None,
    audit_id: Annotated[
        str | None, typer.Option("--id", help="Name in audit/; default: auditor and a hash.")
    ] = None,
    num: FirstNum = None,
    max_failed: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Exit code 4 if a larger share is rejected.")
    ] = MAX_FAILED,
    sa1b: Annotated[
        Path | None,
        typer.Option(help="Also write what was kept here: images, and the auditor's masks."),
    ] = None,
) -> Result:
    """Compare every mask with what an independent segmenter sees, and say what to keep.

    Nothing is deleted: verdicts are in DIR/audit, and open_dataset(DIR, audited=ID) honors
    them. Run again to go on; another --id with other thresholds looks at no image again.

    Examples:

      synthgen audit data/scenes

      synthgen audit data/voc --auditor sam --checkpoint sam_vit_h_4b8939.pth

      synthgen audit data/scenes --set verdict.min_top_n=0.5 --id strict --sa1b data/sa1b
    """
    given = {"name": auditor, "checkpoint": checkpoint, "sha256": sha256}
    settings = load_audit(
        [f"auditor.{k}={json.dumps(v)}" for k, v in given.items() if v] + (overrides or [])
    )
    summary = run_audit(out, settings, audit_id, num)
    if sa1b is not None:
        from synthgen.auditing.annotations import export_sa1b

        written = export_sa1b(out, summary["id"], sa1b)
        say(f"  SA-1B         {sa1b}  ({written} images)", err=True)
    return verdict(summary, out, max_failed)


def run_audit(
    out: str | Path, settings: AuditConfig, audit_id: str | None = None, num: int | None = None
) -> dict[str, Any]:
    """Audit behind a progress display; returns the summary."""
    from synthgen.jobs import AuditJob

    return run_job(lambda: AuditJob(out, settings, audit_id, num))[0]


def verdict(summary: dict[str, Any], out: str | Path, max_failed: float) -> Result:
    """What an audit found: ours beside the baselines; exit code 4 if too much is rejected."""
    means, totals = summary["means"], summary["totals"]
    lines = [
        f"Audit {summary['id']} of {totals['samples']} samples",
        f"  {'':<14}{'ours':>8}{'color':>8}{'others':>8}",
    ]
    for label, name in (*((f"Top-{n}", f"top_{n}") for n in TOPS), ("one-to-one", "hungarian")):
        values = (
            means.get(prefix + name) for prefix in ("", "color_baseline_", "shuffled_masks_")
        )
        cells = "".join(f"{'-' if v is None else format(v, '.3f'):>8}" for v in values)
        lines.append(f"  {label:<14}{cells}")
    if "boundary_f" in means:
        lines.append(f"  {'boundary F':<14}{means['boundary_f']:>8.3f}")
    share = totals["kept"] / max(totals["samples"], 1)
    lines.append(f"  kept          {totals['kept']:>8}  ({share:.0%})")
    lines += [f"  {reason:<16}{count:>6}" for reason, count in totals["reasons"].items()]
    lines.append(f"  in Python     synthgen.open_dataset({str(out)!r}, audited={summary['id']!r})")
    if totals["rejected"] <= max_failed * totals["samples"]:
        return Result(summary, lines)
    problem = (
        f"The audit failed: at most {max_failed:.0%} of the samples may be rejected. Got "
        f"{totals['rejected']} of {totals['samples']}."
    )
    return Result(summary, lines, problem, AUDIT_FAILED)
