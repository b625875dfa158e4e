"""``synthgen oneshot``: parts from one annotated example (SLiMe)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.command import Result, command
from synthgen.cli.display import JsonLogs, show_progress
from synthgen.cli.options import Set
from synthgen.cli.training_display import show_training

app = typer.Typer(help="Find parts that one annotated image shows.", no_args_is_help=True)

Parts = Annotated[str, typer.Argument(metavar="PARTS", help="Folder that fit has written.")]
Card = Annotated[
    str | None, typer.Option("--model", help="Card, folder in diffusers' layout, or hub id.")
]


def fit(
    image: Annotated[list[Path], typer.Option(help="Annotated image, or a folder (repeatable).")],
    mask: Annotated[
        list[Path],
        typer.Option(
            help="Its annotation: PNG of class numbers or colors, npy, COCO json; or a folder."
        ),
    ],
    classes: Annotated[
        str,
        typer.Option(
            help="Parts in the order of their numbers, 1 first: body,window; in a mask of colors "
            "body=#c80000,window=#0000ff. Or a file of them."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Output folder; run again to go on.")] = Path("parts"),
    validate: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="IMAGE MASK", help="Keep the epoch that finds these parts best."),
    ] = None,
    model: Card = None,
    overrides: Set = None,
    json_logs: JsonLogs = False,
) -> Result:
    """Learn parts from one or a few annotated images.

    0 and black are background, 255 is not annotated; a part may be a single pixel. OUT holds the
    learned embeddings (parts.safetensors, parts.json), losses.png and picture.png.

    Examples:

      synthgen oneshot fit --image car.png --mask car-parts.png --classes body,window,wheel

      synthgen oneshot fit --image images --mask instances.json --classes body,window \
        --model sd21-base --set epochs=200 --set augmentation=car
    """
    from synthgen.oneshot.learn import learn_parts
    from synthgen.oneshot.masks import pair_files, read_legend, read_mask
    from synthgen.oneshot.pictures import draw_losses, draw_parts, legend_of
    from synthgen.storage.images import read_photo
    from synthgen.storage.publish import dump_json, open_storage

    legend, pairs = read_legend(classes), pair_files(image, mask)
    pipe, settings = _model_and_settings(model or "scenes", overrides or [])

    def read(photo: Path, annotation: Path) -> tuple[Any, Any]:
        pixels = read_photo(photo)
        size = (pixels.shape[0], pixels.shape[1])
        return pixels, read_mask(annotation, legend, photo, size)

    examples = [read(*pair) for pair in pairs]
    with show_training("parts", json_logs):
        parts = learn_parts(
            pipe,
            [pixels for pixels, _ in examples],
            [own for _, own in examples],
            names=legend.names,
            validation=None if validate is None else read(*validate),
            folder=out,
            **settings,
        )
    parts.save(out)
    storage = open_storage(out)
    (pixels, own), found = examples[0], parts(examples[0][0])
    rows = [
        ("example", pixels, own, None),
        ("found in it", pixels, found.semantic, parts.maps(pixels)),
    ]
    storage.publish_bytes(draw_parts(parts.names, rows), "picture.png")
    storage.publish_bytes(draw_losses(parts.losses), "losses.png")
    storage.publish_bytes(dump_json(legend_of(parts.names)), "legend.json")
    last = parts.losses[-1]
    said = ", ".join(f"{name} {value:.3f}" for name, value in last.items())
    lines = [
        f"{parts!r} of {len(examples)} image(s)",
        f"  last epoch  {said}",
        f"  look at it  {out / 'picture.png'}",
        f"  find them   synthgen oneshot predict {out} IMAGES",
    ]
    tree = {"names": list(parts.names), "examples": len(examples), "epochs": len(parts.losses)}
    return Result({**tree, "last": dict(last), "out": str(out)}, lines)


def predict(
    parts: Parts,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Output folder; run again to go on.")] = Path(
        "synthgen-parts"
    ),
    model: Card = None,
    overrides: Set = None,
) -> Result:
    """Find learned parts in images.

    OUT holds labels/NAME.png (class numbers), colors/NAME.png with legend.json, annotations.json
    (COCO) and picture.png.

    Examples:

      synthgen oneshot predict parts photos --out found

      synthgen oneshot predict parts car.jpg --set refiner=pamr --set noises=4
    """
    from synthgen.diffusion.generate import load_model
    from synthgen.oneshot.files import image_files, predict_files
    from synthgen.oneshot.parts import load_parts

    paths = image_files(images)
    pipe = None if model is None else load_model(model)
    learned, changes = load_parts(parts, pipe), _asked(overrides or [])
    with show_progress(len(paths), 1, words=("images", "runs")):
        summary = predict_files(learned, paths, out, **changes)
    lines = [
        f"Parts in {summary['images']} image(s)",
        f"  {'part':<20}{'images':>8}{'pixels':>9}{'score':>7}",
    ]
    lines += [
        f"  {name:<20}{row['images']:>8}{row['share']:>9.2%}{row['score']:>7.2f}"
        for name, row in summary["parts"].items()
    ]
    lines.append(f"  look at them  {out / 'picture.png'}")
    return Result(summary, lines)


def evaluate(
    data: Annotated[str, typer.Option(help="scenes, pascal-part, celebamask.")] = "scenes",
    root: Annotated[
        Path | None, typer.Option(help="Folder of the data set, as it was published.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder; run again to go on.")] = Path(
        "synthgen-oneshot"
    ),
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Change classes, shots (\\[1,10]), inits (3), num (images, 50), tuning, table "
            "(1, 5 to 10 of the paper), figures (true), parts.epochs, model.card … (repeatable).",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output.")
    ] = False,
) -> None:
    r"""IoU of parts from 1 and 10 annotated images, beside rivals; or SLiMe's tables and figures.

    OUT holds the table (md, json); rows that were measured are kept in it: run again to go on.

    Examples:

      synthgen evaluate oneshot --set num=20 --set inits=2 \
        --set classes=\[car,house]

      synthgen evaluate oneshot --data pascal-part --root VOC2010 --set model.card=sd21-base

      synthgen evaluate oneshot --set figures=true --set inits=1

      synthgen evaluate oneshot --set table=7 --set tuning=true --set shots=[1]
    """
    import json

    from synthgen.config import load_section
    from synthgen.lab.oneshot.evaluate import (
        OneshotSettings,
        evaluate_oneshot,
        num_rows,
        oneshot_table,
    )
    from synthgen.lab.oneshot.figures import evaluate_figures, figures_table, num_measured

    settings = load_section(OneshotSettings, overrides or [], data=data, root=root)
    measure, table, num = (
        (evaluate_figures, figures_table, num_measured)
        if settings.figures
        else (evaluate_oneshot, oneshot_table, num_rows)
    )
    with show_progress(num(settings), 1, words=("rows", "tables")):
        result = measure(out, settings)
    typer.echo(json.dumps(result) if as_json else table(result))


def _model_and_settings(card: str, overrides: list[str]) -> tuple[Any, dict[str, Any]]:
    """The pipeline, and the settings of a fit that are asked for."""
    from synthgen.config import ModelConfig, load_section
    from synthgen.diffusion.generate import load_model

    asked = [text.strip() for text in overrides]
    of_model = [text.removeprefix("model.") for text in asked if text.startswith("model.")]
    settings = _asked([text for text in asked if not text.startswith("model.")])
    return load_model(**dict(load_section(ModelConfig, of_model, card=card))), settings


def _asked(overrides: list[str]) -> dict[str, Any]:
    """Settings of parts that are asked for, by name; the others are the card's or the paper's."""
    from synthgen.config import load_section
    from synthgen.oneshot.settings import PartSettings

    asked = load_section(PartSettings, overrides)
    return {name: getattr(asked, name) for name in asked.model_fields_set}


app.command()(command(fit, tells=True))
app.command()(command(predict, runs=True, tells=True))
