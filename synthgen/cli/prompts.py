"""``synthgen prompts``: lists of prompts out of images, or out of other lists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthgen.cli.command import Result, command
from synthgen.cli.display import show_progress

app = typer.Typer(help="Make lists of prompts.", no_args_is_help=True)

Named = Annotated[
    str | None, typer.Option("--classes", help="Look for cat,dog or the names in a file.")
]


def caption(
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="As of 'annotate'.")],
    out: Annotated[Path, typer.Option(help="JSON lines; what it has of these images is kept.")],
    model: Annotated[
        str, typer.Option(help="Folder of a BLIP for captions, its hub id, or scenes-blip.")
    ] = "Salesforce/blip-image-captioning-base",
    classes: Named = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> Result:
    """Describe images with BLIP: captions for 'annotate --captions', or prompts to draw.

    Classes are those of --classes that a caption speaks of. Run again to go on.

    Examples:

      synthgen prompts caption photos/ --out captions.jsonl

      synthgen prompts caption photos/ --model models/blip --classes cat,dog --out prompts.jsonl
    """
    from synthgen.dataset.photos import open_photos
    from synthgen.jobs.prompt_lists import caption as describe
    from synthgen.prompts.class_list import read_classes

    names = None if classes is None else list(read_classes(classes))
    planned = len(open_photos(images, None, names).prompts)
    with show_progress(planned, 0):
        found = describe(
            images, out, model=model, classes=names, batch_size=batch_size, device=device
        )
    lines = [f"{found['captions']} captions ({found['kept']} from before) in {out}"]
    problem = f"{found['failed']} image(s) could not be read." if found["failed"] else ""
    return Result(found, lines, problem, 3 if problem else 0)


def build(
    source: Annotated[
        str, typer.Argument(help="Any list of prompts, such as captions.json+instances.json.")
    ],
    out: Annotated[Path, typer.Option(help="JSON lines.")],
    num: Annotated[int | None, typer.Option(min=1, help="Prompts.", show_default="all")] = None,
    classes: Named = None,
    append_classes: Annotated[
        bool, typer.Option("--append-classes", help="Texts become 'caption; class, class'.")
    ] = False,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share held out, by a hash of the text.")
    ] = 0.0,
) -> Result:
    """Build a list whose classes come as evenly as a source allows, equal prompts once.

    With --held-out, prompts to measure on are left out of OUT, and stand in a file beside it.

    Examples:

      synthgen prompts build captions.json+instances.json --num 20000 --out p.jsonl

      synthgen prompts build captions.json --classes cat,dog --held-out 0.1 --out p.jsonl
    """
    from synthgen.jobs.prompt_lists import build as build_list
    from synthgen.prompts.class_list import read_classes

    found = build_list(
        source,
        out,
        num=num,
        classes=None if classes is None else list(read_classes(classes)),
        append_classes=append_classes,
        held_out=held_out,
    )
    lines = [f"{found['written']} prompts in {out}, {found['held_out']} held out"]
    lines += [f"  {name:<20}{count:>8}" for name, count in found["classes"].items()]
    return Result(found, lines)


for _made in (caption, build):
    app.command()(command(_made, tells=True))
