"""``synthgen train`` and ``synthgen evaluate``: what a segmenter learns from the labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthgen.cli.display import JsonLogs, show_progress
from synthgen.cli.options import Set, refuse_unused
from synthgen.cli.training_display import show_training
from synthgen.config import load, load_section
from synthgen.storage.untrusted import quote
from synthgen.storage.urls import scheme_of

if TYPE_CHECKING:
    from synthgen.lab.downstream.labeled_images import LabeledImages

app = typer.Typer(help="What labels are worth, measured.", no_args_is_help=True)

SCENES = "scenes"
NUM_SCENES, NUM_VAL_SCENES = 500, 200
EPOCHS = 20
PROMPT_SEED = 1
"""Of the prompts of `evaluate downstream`, which are not those of the packaged list."""

Labels = Annotated[
    str | None, typer.Option(help="Id of labels made later; default: those in the dataset's tars.")
]
Audited = Annotated[
    str | None, typer.Option(help="Id of an audit; samples that it rejects are left out.")
]
FoundOnly = Annotated[
    bool, typer.Option("--found-only", help="Only samples in which all classes were found.")
]
Backbone = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Begin with a trained encoder (ResNet, Swin, DINOv2, mit-b0, …): its folder of "
        "transformers, or of timm (pip install 'synthgen\\[timm]').",
    ),
]
Where = Annotated[
    str, typer.Option("--device", help="cpu, cuda; auto: a GPU of CUDA where there is one.")
]
Tuning = Annotated[bool, typer.Option("--tuning", help="Tuning scenes, to choose settings.")]
Scenes = Annotated[int, typer.Option("--num", min=1, help="Scenes.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def train(
    data: Annotated[str, typer.Argument(metavar="DIR", help="A labeled dataset, or: scenes.")],
    val: Annotated[str, typer.Option(help="A labeled dataset to measure on, or: scenes.")],
    out: Annotated[Path, typer.Option(help="Output folder; run again to go on.")] = Path(
        "synthgen-train"
    ),
    epochs: Annotated[
        float | None,
        typer.Option(min=0.0, help="Rounds through the data.", show_default=str(EPOCHS)),
    ] = None,
    num: Annotated[int | None, typer.Option(min=1, help="Images; scenes: 500.")] = None,
    val_num: Annotated[int | None, typer.Option(min=1, help="To measure on; scenes: 200.")] = None,
    labels: Labels = None,
    val_labels: Annotated[str | None, typer.Option(help="The same for --val.")] = None,
    audited: Audited = None,
    found_only: FoundOnly = False,
    backbone: Backbone = None,
    device: Where = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Change one of model (segformer, segformer-b0, lraspp, deeplab, "
            "'module:attribute'), steps, batch, lr, size (of the crops), seed, … (repeatable).",
        ),
    ] = None,
    as_json: Json = False,
    json_logs: JsonLogs = False,
) -> None:
    """Train a segmenter on a labeled dataset, from scratch or not, and measure it every epoch.

    Pixels of 255 are ignored. The same command goes on after a stop; OUT holds the averaged
    weights (weights.safetensors, segmenter.json), history.json and curves.png.

    Examples:

      synthgen train data/scenes --val scenes --out runs/ours

      synthgen train data/voc --labels clusters-1 --val data/voc-real --set model=deeplab

      synthgen train data/voc --val data/voc-real --backbone weights/resnet-50
    """
    from synthgen.lab.downstream.labeled_images import with_names
    from synthgen.lab.downstream.report import write_curves
    from synthgen.lab.downstream.trainer import (
        TrainSettings,
        crop_side,
        epoch_steps,
        export_segmenter,
    )
    from synthgen.lab.downstream.trainer import train as run

    of_data = {"--labels": labels, "--audited": audited, "--found-only": found_only}
    refuse_unused(of_data, data == SCENES, "on rendered scenes")
    refuse_unused({"--val-labels": val_labels}, val == SCENES, "on rendered scenes")
    overrides = overrides or []
    has_steps = any(text.strip().startswith("steps=") for text in overrides)
    refuse_unused({"--epochs": epochs}, has_steps, "with --set steps")
    started = {"device": _device(device), "backbone": _folder(backbone)}
    settings = load_section(TrainSettings, overrides, **started)
    asked = {
        "DIR": (data, out / "train", num, labels, audited, found_only),
        "--val": (val, out / "val", val_num, val_labels, None, False),
    }
    scenes_last = sorted(asked, key=lambda option: asked[option][0] == SCENES)
    images = {option: _images(option, *asked[option]) for option in scenes_last}
    known = images["--val"]
    given = with_names(images["DIR"], known.class_names)
    rounds = EPOCHS if epochs is None else epochs
    chosen = {
        "steps": max(1, round(rounds * epoch_steps([given], settings.batch))),
        "size": crop_side(given),
    }
    settings = load_section(TrainSettings, overrides, **started, **chosen)
    with show_training(settings.model, json_logs):
        for _ in run([given], known, out / "checkpoint", settings):
            pass  # progress is reported
    history = export_segmenter(out / "checkpoint", out)
    (out / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    write_curves({settings.model: [history]}, out / "curves.png")
    result = {"images": len(given), "validated_on": len(known), **history[-1]}
    typer.echo(json.dumps(result) if as_json else _said(result, out))


@app.command()
def downstream(
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Labeled dataset of scenes; default: it is made first."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder; run again to go on.")] = Path(
        "synthgen-downstream"
    ),
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Change num (images, 500), times (synthetic per rendered, 1), few (100), "
            "test (scenes, 500), tuning, seeds, arms, synthetic.labels, .audited, .found_only, "
            "training.… (see synthgen train) or, of the dataset that is made, generate.… "
            "(repeatable).",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Trainings at once; 0: in-process.")] = 2,
    as_json: Json = False,
    json_logs: JsonLogs = False,
) -> None:
    r"""The same network and budget on synthetic images, on rendered ones, on few, and on both.

    Prints mIoU on held-out rendered scenes, and the ratio of synthetic to rendered; writes
    downstream.json, .md and .png. Finished trainings are kept: run again to go on.

    Examples:

      synthgen evaluate downstream --set training.steps=600 --set generate.labeling.refiner=none

      synthgen evaluate downstream --data data/scenes --out runs/downstream

      synthgen evaluate downstream --data data/scenes --set synthetic.labels=propagate-1 \
        --set tuning=true --set seeds=[0] --set arms=\[synthetic,rendered]
    """
    from synthgen.lab.downstream.experiment import DownstreamSettings, evaluate_downstream
    from synthgen.lab.downstream.report import markdown, write_downstream

    made = [text for text in overrides or [] if text.strip().startswith("generate.")]
    chosen = [text for text in overrides or [] if text not in made]
    refuse_unused({"--set generate": made}, data is not None, "with --data")
    url = data if data and scheme_of(data) else str(Path(data or out / "synthetic").resolve())
    settings = load_section(
        DownstreamSettings, chosen, synthetic={"url": url}, training={"device": "auto"}
    )
    training = settings.training
    known = {
        "device": _device(training.device, "training.device"),
        "backbone": _folder(training.backbone),
        "validate_every": training.validate_every or max(1, training.steps // 4),
    }
    settings = settings.model_copy(update={"training": training.model_copy(update=known)})
    if data is None:
        of_dataset = [text.strip().removeprefix("generate.") for text in made]
        _generate(out / "synthetic", settings.num * settings.times, of_dataset, json_logs)
    with show_training("run", json_logs):
        result = evaluate_downstream(out, settings, workers)
    written = write_downstream(out, result)
    typer.echo(json.dumps(result) if as_json else markdown(result))
    typer.echo(f"Written: {', '.join(map(str, written))}", err=True)


@app.command()
def refiners(num: Scenes = 100, tuning: Tuning = False, as_json: Json = False) -> None:
    """Edges and IoU of every refiner on true labels that a 32 x 32 grid has spoiled."""
    from synthgen.lab.downstream.labels import measure_refiners, refiner_table

    result = measure_refiners(num, tuning)
    typer.echo(json.dumps(result) if as_json else refiner_table(result))


@app.command()
def labels(
    num: Scenes = 100,
    tuning: Tuning = False,
    drawn: Annotated[
        bool, typer.Option("--drawn", help="Of images of several objects that the model draws.")
    ] = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Labels of every labeler with every refiner against the truth of scenes.

    Scenes are rendered and drawn again through image-to-image, so that their truth is known.
    With --drawn the model draws what captions of two to four objects say, and labels (of
    labeling.method) are compared with what the embedded Mask2Former sees.

    Examples:

      synthgen evaluate labels --num 100

      synthgen evaluate labels --tuning --num 60 --set labeling.background=1.2

      synthgen evaluate labels --drawn --num 72
    """
    from synthgen.lab.downstream.drawn import measure_drawn
    from synthgen.lab.downstream.labels import label_table, measure_labels

    config = load(overrides=overrides or [])
    if drawn:
        typer.echo(json.dumps(measure_drawn(num, tuning, config)))
        return
    result = measure_labels(num, tuning, config)
    typer.echo(json.dumps(result) if as_json else label_table(result))


@app.command()
def instances(
    num: Scenes = 100, tuning: Tuning = False, overrides: Set = None, as_json: Json = False
) -> None:
    """Mean AP of instances, as connected components and with what touches taken apart.

    On scenes like those of the prompts, and on scenes of two or three objects of one class that
    stand into each other.

    Examples:

      synthgen evaluate instances --num 100

      synthgen evaluate instances --tuning --set labeling.refiner=pamr
    """
    from synthgen.lab.downstream.instances import instance_table, measure_instances

    result = measure_instances(num, tuning, load(overrides=overrides or []))
    typer.echo(json.dumps(result) if as_json else instance_table(result))


def _said(result: dict[str, Any], out: Path) -> str:
    classes = "\n".join(f"  {name:<16}{iou:.3f}" for name, iou in result["class_iou"].items())
    return (
        f"mIoU {result['miou']:.3f} after {result['step']} steps on {result['images']} images "
        f"(measured on {result['validated_on']}; {result['object_miou']:.3f} without "
        f"background)\n{classes}\n  weights, history, curves: {out}"
    )


def _images(
    option: str,
    source: str,
    folder: Path,
    num: int | None,
    labels: str | None,
    audited: str | None,
    found_only: bool,
) -> LabeledImages:
    """Labeled images of a dataset, or rendered scenes that are kept in a folder.

    Raises:
        ValueError: If there are none; it says which option is about them.
    """
    from synthgen.embedded.vocabulary import TUNING_SEEDS
    from synthgen.lab.downstream.experiment import FIRST_RENDERED
    from synthgen.lab.downstream.labeled_images import dataset_images, rendered_images

    if source != SCENES:
        name = "--labels" if option == "DIR" else f"{option}-labels"
        try:
            return dataset_images(source, labels, num, audited, found_only)
        except ValueError as error:
            how = f"no {name}" if labels is None else f"{name} {quote(labels, 40)}"
            raise ValueError(f"{option} ({how}): {error}") from None
    if option == "DIR":
        return rendered_images(folder, num or NUM_SCENES, FIRST_RENDERED)
    return rendered_images(folder, num or NUM_VAL_SCENES, TUNING_SEEDS.start)


def _generate(out: Path, num: int, overrides: list[str], json_logs: bool) -> None:
    """The labeled dataset that this comparison makes for itself, or finishes.

    Half of its prompts name one object, the others two to four.
    """
    from synthgen import jobs
    from synthgen.lab.world.prompt_list import jsonl, scene_prompts

    prompts = out.with_name("prompts.jsonl")
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text(jsonl(scene_prompts(num, seed=PROMPT_SEED)), "utf-8")
    made = [f"num={num}", "labeling.method=clusters", f"prompts={prompts}"]
    config = load(overrides=[*made, *overrides])
    specs = jobs.plan(config)
    with show_progress(config.planned, len(specs), json_logs):
        jobs.generate(config, out)


def _folder(backbone: Path | str | None) -> str | None:
    """The encoder's folder, wherever the process goes; looked at before any image is made.

    Raises:
        ValueError: If there is no encoder in it.
    """
    from synthgen.lab.downstream.segmenters import build_segmenter

    if backbone is None:
        return None
    folder = str(Path(backbone).resolve())
    build_segmenter("segformer", 2, folder)
    return folder


def _device(name: str, setting: str = "--device") -> str:
    """The device's name; ``cuda`` for auto where there is one.

    Raises:
        ValueError: If this machine has none of that name.
    """
    from synthgen.devices import pick_device  # of torch, late

    return str(pick_device(name, setting, gpus=("cuda",)))
