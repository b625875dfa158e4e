"""``synthgen audit``: an independent segmenter looks at a finished dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.display import JsonLogs, show_progress
from synthgen.cli.options import say
from synthgen.config import TOPS, AuditConfig, load_audit

AUDIT_FAILED = 4
MAX_FAILED = 0.5  # half of a dataset rejected: something is wrong with the whole of it


def audit(
    out: Annotated[str, typer.Argument(metavar="DIR", help="A finished dataset.")],
    auditor: Annotated[
        str,
        typer.Option(help="scenes-sam, sam, mask2former, …, or 'module:attribute'."),
    ] = "scenes-sam",
    checkpoint: Annotated[
        str | None, typer.Option(help="File or folder of the auditor's weights.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="What the checkpoint's hash must be.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", help="Change one setting: verdict.min_top_n=0.5 (repeatable)."
        ),
    ] = None,
    audit_id: Annotated[
        str | None, typer.Option("--id", help="Name in audit/; default: auditor and a hash.")
    ] = None,
    num: Annotated[
        int | None, typer.Option(min=1, help="Whole shards until this many samples.")
    ] = None,
    max_failed: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Exit code 4 if a larger share is rejected.")
    ] = MAX_FAILED,
    sa1b: Annotated[
        Path | None,
        typer.Option(help="Also write what was kept here: images, and the auditor's masks."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The summary as one JSON object on standard output.")
    ] = False,
    json_logs: JsonLogs = False,
) -> None:
    """Compare every mask with what an independent segmenter sees, and say what to keep.

    Nothing is deleted: verdicts stand in DIR/audit, and open_dataset(DIR, audited=ID) honors
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
    summary = run_audit(out, settings, audit_id, num, json_logs)
    if as_json:
        print(json.dumps(summary), flush=True)
    else:
        show_summary(summary, out)
    if sa1b is not None:
        _export(summary, out, sa1b)
    conclude(summary, max_failed)


def _export(summary: dict[str, Any], out: str, folder: Path) -> None:
    """Write the auditor's masks of what was kept in the layout of SA-1B."""
    from synthgen.auditing.annotations import export_sa1b

    written = export_sa1b(out, summary["id"], folder)
    say(f"  SA-1B         {folder}  ({written} images)", err=True)


def run_audit(
    out: str | Path,
    settings: AuditConfig,
    audit_id: str | None = None,
    num: int | None = None,
    json_logs: bool = False,
) -> dict[str, Any]:
    """Audit behind a progress display; returns the summary."""
    from synthgen.auditing.audit import audit_shard, begin
    from synthgen.auditing.audit import conclude as finish

    plan = begin(out, settings, audit_id, num=num)
    with show_progress(sum(plan.samples), len(plan.shards), json_logs):
        for shard in plan.shards:
            audit_shard(plan, shard)
    return finish(plan)


def show_summary(summary: dict[str, Any], out: str | Path) -> None:
    """Print what the audit found: ours beside the baselines, verdicts by reason."""
    means, totals = summary["means"], summary["totals"]
    say(f"Audit {summary['id']} of {totals['samples']} samples")
    say(f"  {'':<14}{'ours':>8}{'chance':>8}{'others':>8}")
    names = [*((f"Top-{n}", f"top_{n}") for n in TOPS), ("one-to-one", "hungarian")]
    for label, name in names:
        values = (means.get(prefix + name) for prefix in ("", "chance_", "others_"))
        cells = "".join(f"{'-' if v is None else format(v, '.3f'):>8}" for v in values)
        say(f"  {label:<14}{cells}")
    if "boundary_f" in means:
        say(f"  {'boundary F':<14}{means['boundary_f']:>8.3f}")
    share = totals["kept"] / max(totals["samples"], 1)
    say(f"  kept          {totals['kept']:>8}  ({share:.0%})")
    for reason, count in totals["reasons"].items():
        say(f"  {reason:<16}{count:>6}")
    say(f"  in Python     synthgen.open_dataset({str(out)!r}, audited={summary['id']!r})")


def conclude(summary: dict[str, Any], max_failed: float) -> None:
    """Exit with code 4 when more than the stated share is rejected."""
    totals = summary["totals"]
    if totals["rejected"] > max_failed * totals["samples"]:
        say(
            f"The audit failed: at most {max_failed:.0%} of the samples may be rejected. Got "
            f"{totals['rejected']} of {totals['samples']}.",
            err=True,
        )
        raise typer.Exit(AUDIT_FAILED)
