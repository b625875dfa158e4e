"""``synthgen doctor``: is this installation healthy, and what does a card do on this machine?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.display import attached
from synthgen.cli.generate import Set
from synthgen.cli.options import refuse_unused
from synthgen.config import AuditorConfig, Config, load, load_audit

if TYPE_CHECKING:
    from synthgen.lab.doctor.findings import Finding, StepReport

CARD = "scenes"
NUM, MAX_BATCH = 8, 64
OUT = Path("synthgen-doctor")


def doctor(
    run: Annotated[
        bool, typer.Option("--run", help="Load the card and try everything; minutes on a GPU.")
    ] = False,
    card: Annotated[
        str | None,
        typer.Option(help="Card, local diffusers folder, or hub id.", show_default="scenes"),
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="Local diffusers folder that holds the card's weights.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="SAM's weights, such as sam_vit_h_4b8939.pth.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="Their hash, where Meta did not publish them.")
    ] = None,
    auditor: Annotated[
        str | None,
        typer.Option(
            help="Who sees the images.", show_default="sam with --checkpoint; scenes: its own"
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Prompt file or name.", show_default="voc; scenes: scenes"),
    ] = None,
    num: Annotated[
        int | None, typer.Option(min=1, help="Images; BL took 41 to 50.", show_default=str(NUM))
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="Largest batch that is tried.", show_default=str(MAX_BATCH)
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder.", show_default=str(OUT))] = None,
    overrides: Set = None,
) -> None:
    r"""Look at this installation; with --run, try a model on this machine and write a page of it.

    Alone it takes seconds and loads no model: versions against the bounds that keep the server
    starting and schedules firing, torch and GPU, hashes of the embedded weights, disk, offline
    variables. Exit code 0: healthy, 1: not.

    With --run it draws images: hashes of the weights, heads and grids (195 heads for SD 2.1),
    batch sizes until memory is full, images per second with and without masks, bit-identity
    with and without capture, a contact sheet, and Top-n by SAM beside the paper's row. A step
    that fails says why and the others go on. Send back doctor.md and contact-sheet.png.

    Examples:

      synthgen doctor

      synthgen doctor --run

      synthgen doctor --card sd21-base --checkpoint sam_vit_h_4b8939.pth --run --out doctor

      synthgen doctor --card sd21-base --path models/sd21-base --run \
        --set model.dtype=bfloat16 --set auditor.generator.points_per_side=16
    """
    from synthgen.lab.doctor.install import examine_installation

    given: dict[str, object]
    given = {"--card": card, "--path": path, "--checkpoint": checkpoint, "--sha256": sha256}
    given |= {"--auditor": auditor, "--prompts": prompts, "--out": out, "--set": overrides}
    given |= {"--num": num, "--max-batch": max_batch}
    refuse_unused(given, not run, "without --run")
    if not run:
        _show_findings(examine_installation(Path()))
        return
    name = card or CARD
    config, judge = settings(
        name, prompts, num or NUM, overrides or [], auditor, checkpoint, sha256
    )
    _examine(name, path, config, judge, out or OUT, max_batch or MAX_BATCH)


def settings(
    card: str,
    prompts: str | None,
    num: int,
    overrides: Sequence[str],
    auditor: str | None,
    checkpoint: str | None,
    sha256: str | None,
) -> tuple[Config, AuditorConfig | None]:
    """What is drawn and who looks at it; ``--set auditor.…`` is about the latter.

    Raises:
        ValueError: In one line, for a bad setting, or one of an auditor that there is not.
    """
    of_auditor = [text for text in overrides if text.strip().startswith("auditor.")]
    others = [text for text in overrides if text not in of_auditor]
    source = prompts or ("scenes" if card == CARD else "voc")
    config = load(overrides=[f"num={num}", *others]).model_copy(update={"prompts": source})
    name = auditor or ("sam" if checkpoint else "scenes-sam" if card == CARD else None)
    if name is None:
        if of_auditor or sha256:
            raise ValueError("settings of an auditor need one. Got none; give --checkpoint FILE.")
        return config, None
    judge = load_audit(of_auditor).auditor
    chosen = {"name": name, "checkpoint": checkpoint, "sha256": sha256}
    return config, judge.model_copy(update={k: v for k, v in chosen.items() if v is not None})


def _examine(
    card: str,
    path: Path | None,
    config: Config,
    auditor: AuditorConfig | None,
    out: Path,
    max_batch: int,
) -> None:
    from synthgen.lab.doctor.examine import examine
    from synthgen.lab.doctor.machine import prepare

    examination = prepare(card, path, config, auditor, out, max_batch)
    with attached(_StepHandler()):
        findings, reports, page = examine(examination)
    for report in reports:
        typer.echo(f"{report.name:>16}  {report.status:<7}  {report.outcome.text}")
    typer.echo(f"Send back: {page}" + _picture(reports, page.parent))
    bad = [report for report in reports if report.status != "ok"]
    if bad or any(finding.status == "failed" for finding in findings):
        raise typer.Exit(1)


def _picture(reports: Sequence[StepReport], folder: Path) -> str:
    pictures = [report.outcome.picture for report in reports if report.outcome.picture]
    return "".join(f" and {folder / picture}" for picture in pictures)


def _show_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        typer.echo(f"{finding.name:>16}  {finding.status:<6}  {finding.text}")
    if any(finding.status == "failed" for finding in findings):
        raise typer.Exit(1)


class _StepHandler(logging.Handler):
    """A line per step on standard error, when it begins and when it ends."""

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, "fields", {})
        if getattr(record, "event", "") != "step":
            return
        if fields["state"] == "begun":
            typer.echo(f"{fields['number']}/{fields['of']} {fields['name']} …", err=True)
        else:
            typer.echo(f"    {fields['state']}, {fields['seconds']} s: {fields['text']}", err=True)
