"""``synthgen doctor``: is this installation healthy, and what does a card do on this machine?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.display import attached
from synthgen.cli.options import Set, refuse_unused
from synthgen.cli.study import read_settings
from synthgen.config import AuditorConfig, Config

if TYPE_CHECKING:
    from synthgen.lab.doctor.install import Finding

CARD = "scenes"
NUM, MAX_BATCH = 8, 64
OUT = Path("synthgen-doctor")


def doctor(
    run: Annotated[
        bool, typer.Option("--run", help="Load the card and try everything; minutes on a GPU.")
    ] = False,
    card: Annotated[
        str | None,
        typer.Option(help="Card, local diffusers folder, or hub id.", show_default=CARD),
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="Local diffusers folder that holds the card's weights.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="SAM's weights, such as sam_vit_h_4b8939.pth.")
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
        --set model.dtype=bfloat16 --set prompts=my.jsonl --set auditor.name=mask2former
    """
    given: dict[str, object] = {"--card": card, "--path": path, "--checkpoint": checkpoint}
    given |= {"--num": num, "--max-batch": max_batch, "--out": out, "--set": overrides}
    refuse_unused(given, not run, "without --run")
    if run:
        name = card or CARD
        config, auditor = settings(name, num or NUM, overrides or [], checkpoint)
        bad = _examine(name, path, config, auditor, out or OUT, max_batch or MAX_BATCH)
    else:
        from synthgen.lab.doctor.install import examine_installation

        bad = _show(examine_installation(Path()))
    if bad:
        raise typer.Exit(1)


def settings(
    card: str, num: int, overrides: Sequence[str], checkpoint: str | None
) -> tuple[Config, AuditorConfig | None]:
    """What is drawn and who looks at it; ``--set auditor.…`` is about the latter.

    Raises:
        ValueError: In one line, for a bad setting, or one of an auditor that there is not.
    """
    own = card == CARD
    given: dict[str, object] = {"prompts": "scenes" if own else "voc", "num": num}
    name = "sam" if checkpoint else "scenes-sam" if own else None
    given |= {"auditor.name": name} if name else {}
    given |= {"auditor.checkpoint": checkpoint} if checkpoint else {}
    config, auditor = read_settings(given, overrides)
    of_auditor = [text.strip() for text in overrides if text.strip().startswith("auditor.")]
    if name or any(text.startswith("auditor.name=") for text in of_auditor):
        return config, auditor
    if of_auditor:
        raise ValueError("settings of an auditor need one. Got none; give --checkpoint FILE.")
    return config, None


def _examine(
    card: str,
    path: Path | None,
    config: Config,
    auditor: AuditorConfig | None,
    out: Path,
    max_batch: int,
) -> bool:
    """Try everything and say what was found; whether something was not as it should be."""
    from synthgen.lab.doctor.machine import prepare
    from synthgen.lab.doctor.steps import examine

    examination = prepare(card, path, config, auditor, out, max_batch)
    with attached(_StepHandler()):
        installation, steps, page = examine(examination)
    bad = _show(steps)
    pictures = [str(page.parent / found.picture) for found in steps if found.picture]
    typer.echo(f"Send back: {' and '.join([str(page), *pictures])}")
    return bad or any(found.status == "failed" for found in installation)


def _show(findings: Sequence[Finding]) -> bool:
    """Print a line each; whether one is bad."""
    for found in findings:
        typer.echo(f"{found.name:>16}  {found.status:<7}  {found.text}")
    return any(found.status in ("failed", "not run") for found in findings)


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
