"""``synthgen doctor``: is this installation healthy, and what does a card do on this machine?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.options import Checkpoint, Set, refuse_unused, say
from synthgen.cli.study import read_settings
from synthgen.config import AuditorConfig, Config

if TYPE_CHECKING:
    from synthgen.lab.doctor.install import Finding

CARD, NUM = "scenes", 8
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
    checkpoint: Checkpoint = None,
    out: Annotated[Path | None, typer.Option(help="Folder.", show_default=str(OUT))] = None,
    overrides: Set = None,
) -> None:
    r"""Look at this installation; with --run, try a model on this machine and write a page of it.

    Alone it takes seconds and loads no model: versions against the bounds that keep the server
    starting and schedules firing, torch and GPU, hashes of the embedded weights, disk, offline
    variables. Exit code 0: healthy, 1: not.

    With --run it draws 8 images (--set num=8): hashes of the weights, heads and grids (195 heads
    for SD 2.1), batch sizes until memory is full, images per second, bit-identity with and
    without capture, a contact sheet, and Top-n by SAM beside the paper's row. A step that fails
    says why and the others go on. Send back doctor.md and contact-sheet.png.

    Examples:

      synthgen doctor

      synthgen doctor --run

      synthgen doctor --card sd21-base --checkpoint sam_vit_h_4b8939.pth --run --out doctor

      synthgen doctor --card sd21-base --path models/sd21-base --run \
        --set model.dtype=bfloat16 --set prompts=my.jsonl --set auditor.name=mask2former
    """
    given: dict[str, object] = {"--card": card, "--path": path, "--checkpoint": checkpoint}
    refuse_unused({**given, "--out": out, "--set": overrides}, not run, "without --run")
    if run:
        from synthgen.lab.doctor.examine import PAGE, examine, prepare

        out = out or OUT
        config, auditor = settings(card or CARD, overrides or [], checkpoint)
        known, config = prepare(card or CARD, path, config, auditor, out)
        found = examine(known, config, auditor, out, _show)
        pictures = [str(out / each.picture) for each in found if each.picture]
        say(f"Send back: {' and '.join([str(out / PAGE), *pictures])}")
    else:
        from synthgen.lab.doctor.install import examine_installation

        found = examine_installation(Path())
        for each in found:
            _show(each)
    if any(each.status in ("failed", "not run") for each in found):
        raise typer.Exit(1)


def settings(
    card: str, overrides: Sequence[str], checkpoint: str | None
) -> tuple[Config, AuditorConfig | None]:
    """What is drawn and who looks at it; ``--set auditor.…`` is about the latter.

    Raises:
        ValueError: In one line, for a bad setting, or one of an auditor that there is not.
    """
    own = card == CARD
    given: dict[str, object] = {"prompts": "scenes" if own else "voc", "num": NUM}
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


def _show(found: Finding) -> None:
    say(f"{found.name:>16}  {found.status:<7}  {found.text}")
