"""``synthgen bench``: every claim, measured against its rival in the same run."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Measure a claim. With --json, one JSON object on standard output.",
    no_args_is_help=True,
)

BENCHES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "kmeans": (
        "Exact knot-grid k-means against scikit-learn on materialized features.",
        {"quick": False},
    ),
    "capture": (
        "Cost of capturing on a full-size SD 2.1 UNet, against two rivals.",
        {"quick": False, "num_pairs": 9},
    ),
    "scenes": (
        "Quality of the embedded model: VAE, classes and colors of generated images.",
        {"num": 200, "weights": None, "record": False},
    ),
    "m2f": (
        "Quality of the embedded Mask2Former: IoU of classes on scenes nothing was fitted on.",
        {"num": 200, "weights": None, "record": False},
    ),
    "sam": (
        "Quality of the embedded SAM in automatic mode: best IoU of objects and parts.",
        {"num": 200, "weights": None, "record": False},
    ),
    "blip": (
        "Quality of the embedded BLIP: captions that name every object class.",
        {"num": 200, "weights": None, "record": False},
    ),
    "clip": (
        "Quality of the embedded CLIP: the right caption of 50, classes of single objects.",
        {"num": 200, "weights": None, "record": False},
    ),
    "quality": (
        "Masks against ground truth: per-head, head-averaged, and RGB+XY k-means.",
        {"num": 200, "sweep": False},
    ),
    "pipeline": (
        "What masks and files cost behind denoising, and throughput against diffusers alone.",
        {"quick": False},
    ),
    "slime": (
        "Memory of one step of learning parts on a full-size SD 2.1, by construction.",
        {"quick": False},
    ),
    "audit": (
        "Top-n and Hungarian IoU by counted bits, against boolean masks pair by pair.",
        {"quick": False},
    ),
    "verdicts": (
        "What an audit keeps of a good dataset, and of one whose masks were shuffled.",
        {"num": 64, "auditor": "scenes-sam"},
    ),
    "scale": (
        "Simulated: hours and stragglers for 1 to 512 workers, and what limits more.",
        {"directory": ..., "shards": 10_000, "startup": 30.0, "plot": None},
    ),
}
"""Command to its help and the options of its function with their defaults."""

OPTIONS: Mapping[str, Any] = {
    "quick": Annotated[bool, typer.Option("--quick", help="Small: does it run, not how fast.")],
    "num": Annotated[int, typer.Option(min=3, help="Scenes, images or samples measured.")],
    "num_pairs": Annotated[int, typer.Option(min=9, help="Interleaved pairs; at least 9.")],
    "sweep": Annotated[
        bool, typer.Option("--sweep", help="Also other ways to record and cluster.")
    ],
    "weights": Annotated[
        Path | None, typer.Option(help="Folder of exported weights.", show_default="those shipped")
    ],
    "record": Annotated[
        bool, typer.Option("--record", help="Write the figures into the card of the weights.")
    ],
    "auditor": Annotated[str, typer.Option(help="Who looks at the masks.")],
    "directory": Annotated[
        str, typer.Argument(metavar="DIR", help="A dataset whose shards were measured.")
    ],
    "shards": Annotated[int, typer.Option(min=1, help="Shards of the simulated run.")],
    "startup": Annotated[
        float, typer.Option(min=0.0, help="Seconds in which a worker loads the model.")
    ],
    "plot": Annotated[Path | None, typer.Option(help="Picture to write (.png, .svg).")],
    "as_json": Annotated[bool, typer.Option("--json", help="One JSON object.")],
}


def _command(name: str, defaults: Mapping[str, Any]) -> Callable[..., None]:
    """A command whose options are those of ``bench_NAME``, which is imported when it runs."""

    def run(as_json: bool, record: bool = False, **given: Any) -> None:
        bench = getattr(importlib.import_module(f"synthgen.lab.bench.{name}"), f"bench_{name}")
        chosen = {option: value for option, value in given.items() if value is not None}
        result = bench(**chosen)
        if record:
            from synthgen.embedded.card import record_quality

            shipped = inspect.signature(bench).parameters["weights"].default
            record_quality({"num": given["num"], **result}, given["weights"] or shipped)
        typer.echo(json.dumps(result) if as_json else "\n".join(_lines(result)))

    parameters = [
        inspect.Parameter(
            option,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is ... else default,
            annotation=OPTIONS[option],
        )
        for option, default in {**defaults, "as_json": False}.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {option: OPTIONS[option] for option in (*defaults, "as_json")}
    return run


for _name, (_help, _defaults) in BENCHES.items():
    app.command(_name, help=_help)(_command(_name, _defaults))


def _lines(tree: dict[str, Any], indent: int = 0) -> list[str]:
    lines: list[str] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{'  ' * indent}{name}", *_lines(value, indent + 1)]
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            lines.append(f"{'  ' * indent}{name:<24} {shown}")
    return lines
