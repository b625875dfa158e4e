"""IoU of parts from few annotated scenes (SLiMe's tables 1 to 10), beside rivals; row by row.

A scene shows one object of a class with all of its parts; examples and tests are disjoint, and an
initialization has its own examples, as well as its own seed. IoU is of pixels summed over the
tests, as in the paper, background among the parts. Whatever was measured is kept in OUT/rows, so
that the command goes on where it was stopped.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from pydantic import Field

from synthgen import progress
from synthgen.config import load_section
from synthgen.config.settings import Section, digest
from synthgen.diffusion.backbones import origin_of
from synthgen.diffusion.generate import load_model
from synthgen.embedded.vocabulary import CLASS_PARTS, PARTS, TUNING_SEEDS, VALIDATION_SEEDS
from synthgen.lab.oneshot.rivals import (
    head_features,
    labeled_places,
    nearest_centroid,
    train_mlp,
)
from synthgen.lab.tables import markdown_table
from synthgen.lab.world.render import Scene, render
from synthgen.labeling.refine import refine
from synthgen.labeling.scores import upsample
from synthgen.oneshot.attending import ClassReader
from synthgen.oneshot.learn import learn_parts
from synthgen.oneshot.settings import FOUND_BY, PartSettings
from synthgen.segmentation.metrics import class_ious, confusion
from synthgen.storage.publish import dump_json, open_storage

FIRST = 20_000
"""Of the seeds of a range that scenes with parts are taken from."""

METHODS: Mapping[str, Sequence[str]] = {
    "WAS": ("was=true", "clusters=false", "refiner=none"),
    "WAS, rescaled": ("was=true", "rescale=true", "clusters=false", "refiner=none"),
    "WAS, rescaled, refined": ("was=true", "rescale=true", "clusters=false", "refiner=pamr"),
    "cross": ("was=false", "clusters=false", "refiner=none"),
    "cross, refined": ("was=false", "clusters=false", "refiner=pamr"),
    "masks": ("was=false", "clusters=true", "refiner=none"),
}
"""Ways to find the parts of one fit: the paper's, without WAS maps, on our mask hierarchy."""

TABLES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "1": {"cross": ("was=false",), "WAS": ("was=true",)},
    "5": {"part": ("text=part",), "part names": ("text=names",), "empty": ('text=""',)},
    "6": {
        f"alpha {a}, beta {b}": (f"alpha={a}", f"beta={b}")
        for a, b in ((1, 0.5), (1, 0.05), (1, 0.005), (1, 0), (0, 0.005))
    },
    "7": {
        f"t in {low}..{high}": (f"timesteps=[{low},{high}]",)
        for low, high in ((5, 20), (5, 100), (5, 900))
    },
    "8": {f"t_test {t}": (f"timestep={t}",) for t in (5, 20, 100)},
    "9": {f"lr {lr}": (f"lr={lr}",) for lr in (1, 0.3, 0.1, 0.01, 0.001)},
    "10": {
        "1st to 7th": ("cross_layers=[down_blocks,mid_block]",),
        "8th to 12th": ("cross_layers=null",),
        "13th to 16th": ("cross_layers=[up_blocks.2.attentions.2,up_blocks.3]",),
    },
}
"""SLiMe's ablations by table: name of a row and what it changes."""


class OneshotSettings(Section):
    """What `evaluate_oneshot` measures."""

    classes: tuple[str, ...] = Field(
        ("car", "house", "tree", "face", "cup"), description="Classes of scenes, each with parts."
    )
    shots: tuple[int, ...] = Field((1, 10), description="Numbers of examples.")
    inits: int = Field(3, ge=1, description="Initializations: other examples and seeds.")
    num: int = Field(50, ge=1, description="Scenes that parts are found in.")
    tuning: bool = Field(False, description="Tuning scenes, to choose settings.")
    table: str = Field("", description="An ablation of the paper (1, 5 to 10) in place of rivals.")
    parts: PartSettings = PartSettings()


def num_rows(settings: OneshotSettings) -> int:
    """Rows that are measured, over classes, examples and initializations; rivals aside."""
    methods = len(TABLES.get(settings.table, METHODS))
    return methods * len(settings.classes) * len(settings.shots) * settings.inits


def evaluate_oneshot(out: Path, settings: OneshotSettings) -> dict[str, Any]:
    """Measure what is missing in a folder.

    Returns:
        ``rows``: a list of class, shots, method and, per part, mean and deviation of IoU over the
        initializations.

    Raises:
        ValueError: In one line, for a class without parts or an unknown table.
    """
    for name in settings.classes:
        if len(CLASS_PARTS.get(name, ())) < 2:
            known = [cls for cls, parts in CLASS_PARTS.items() if len(parts) > 1]
            raise ValueError(f"classes must be of {', '.join(known)}. Got {name!r:.40}.")
    if settings.table and settings.table not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}. Got {settings.table!r:.40}.")
    rows: list[dict[str, Any]] = []
    for name in settings.classes:
        for shots in settings.shots:
            runs = [_run(out, settings, name, shots, init) for init in range(settings.inits)]
            for method in runs[0]:
                ious = np.array([run[method] for run in runs])
                columns = dict(
                    zip((*CLASS_PARTS[name], "background"), [*ious.T[1:], ious.T[0]], strict=True)
                )
                columns["average"] = ious.mean(1)
                of_part = {part: (fmean(own), pstdev(own)) for part, own in columns.items()}
                rows.append({"class": name, "shots": shots, "method": method, "iou": of_part})
    return {"settings": settings.model_dump(mode="json"), "rows": rows}


def _run(
    out: Path, settings: OneshotSettings, name: str, shots: int, init: int
) -> dict[str, list[float]]:
    """IoU of each class by method, of one fit or, in an ablation, of one per row that needs it."""
    storage = open_storage(out)
    found: dict[str, list[float]] = {}
    asked = TABLES.get(settings.table, METHODS)
    for method, changes in asked.items():
        own = _card_settings(settings).changed(**_values(changes), seed=init)
        known = {
            "parts": own.model_dump(mode="json"),
            "tuning": settings.tuning,
            "num": settings.num,
        }
        key = f"rows/{name}-{shots}-{init}-{digest(known)[:12]}.json"
        content = storage.read(key)
        if content is None:
            examples, tests = part_scenes(name, shots, init, settings)
            parts = _fitted(out, own, name, shots, init, examples, settings.tuning)
            find = {each: getattr(own, each) for each in FOUND_BY}
            counts = sum(
                (_count(scene, name, parts(scene.image, **find).semantic) for scene in tests),
                start=_zeros(name),
            )
            content = dump_json({"ious": class_ious(counts).tolist()})
            storage.publish_bytes(content, key)
        found[method] = json.loads(content)["ious"]
        progress.report("samples", count=1)
    if not settings.table:
        found |= _rivals(out, settings, name, shots, init)
    return found


def _card_settings(settings: OneshotSettings) -> PartSettings:
    """The settings of the model's card, changed by those that were given."""
    given = {name: getattr(settings.parts, name) for name in settings.parts.model_fields_set}
    origin = origin_of(_model())
    assert origin is not None
    return PartSettings.model_validate({**origin.card.parts, **given})


def _fitted(
    out: Path,
    own: PartSettings,
    name: str,
    shots: int,
    init: int,
    examples: Sequence[Scene],
    tuning: bool,
) -> Any:
    """A fit in OUT/fits, which goes on if it was interrupted; found settings do not matter."""
    learned = {k: v for k, v in dict(own).items() if k not in FOUND_BY or k == "seed"}
    known = {**PartSettings(**learned).model_dump(mode="json"), "tuning": tuning}
    folder = out / "fits" / f"{name}-{shots}-{init}-{digest(known)[:12]}"
    return learn_parts(
        _model(),
        [scene.image for scene in examples],
        [part_mask(scene, name) for scene in examples],
        names=CLASS_PARTS[name],
        folder=folder,
        **learned,
    )


def _rivals(
    out: Path, settings: OneshotSettings, name: str, shots: int, init: int
) -> dict[str, list[float]]:
    """IoU of each class by rival, with and without refined borders."""
    storage = open_storage(out)
    known = {"tuning": settings.tuning, "num": settings.num, "t": settings.parts.timestep}
    key = f"rows/{name}-{shots}-{init}-rivals-{digest(known)[:12]}.json"
    content = storage.read(key)
    if content is None:
        examples, tests = part_scenes(name, shots, init, settings)
        reader, num = ClassReader(_model(), PartSettings()), len(CLASS_PARTS[name]) + 1

        def features(scene: Scene) -> Any:
            return head_features(reader, scene.image, settings.parts.timestep, init)

        places = labeled_places([(features(s), part_mask(s, name)) for s in examples])
        rivals = {
            "centroid": nearest_centroid(*places, num),
            "MLP": train_mlp(*places, num, init),
        }
        counts: dict[str, Any] = {}
        for scene in tests:
            seen = features(scene)
            for rival, classify in rivals.items():
                maps = upsample(classify(seen).numpy(), scene.part.shape)
                labels = maps.argmax(0).astype(np.uint8)
                planes = dict(enumerate(maps - maps.min()))
                for kind, semantic in (
                    (rival, labels),
                    (f"{rival}, refined", refine("pamr", labels, scene.image, planes)),
                ):
                    counts[kind] = counts.get(kind, _zeros(name)) + _count(scene, name, semantic)
        content = dump_json({kind: class_ious(own).tolist() for kind, own in counts.items()})
        storage.publish_bytes(content, key)
    found: dict[str, list[float]] = json.loads(content)
    return found


def part_scenes(
    name: str, shots: int, init: int, settings: OneshotSettings
) -> tuple[list[Scene], list[Scene]]:
    """Examples of an initialization, and the scenes that all of them are tested on."""
    stream = _stream(settings.tuning)
    num = settings.num
    examples = stream.scenes(name, num + shots * (init + 1))[num + shots * init :]
    return examples, stream.scenes(name, num)


class _Stream:
    """Scenes of one object with all of its parts, by class, rendered once."""

    def __init__(self, tuning: bool) -> None:
        self.seeds = iter((TUNING_SEEDS if tuning else VALIDATION_SEEDS)[FIRST:])
        self.found: dict[str, list[Scene]] = {name: [] for name in CLASS_PARTS}

    def scenes(self, name: str, num: int) -> list[Scene]:
        """The first ``num`` of a class."""
        while len(self.found[name]) < num:
            scene = render(next(self.seeds), 1)
            item = scene.objects[0]
            if len(item.parts) == len(CLASS_PARTS[item.class_name]):
                self.found[item.class_name].append(scene)
        return self.found[name][:num]


@functools.cache
def _stream(tuning: bool) -> _Stream:
    return _Stream(tuning)


def part_mask(scene: Scene, name: str) -> UInt8[np.ndarray, "height width"]:
    """0 background, i the i-th part of a class."""
    mask = np.zeros(scene.part.shape, dtype=np.uint8)
    for number, part in enumerate(CLASS_PARTS[name], start=1):
        mask[scene.part == PARTS.index((name, part)) + 1] = number
    return mask


def _count(
    scene: Scene, name: str, semantic: UInt8[np.ndarray, "height width"]
) -> Int[np.ndarray, "cls cls"]:
    return confusion(part_mask(scene, name), semantic, len(CLASS_PARTS[name]) + 1)


def _zeros(name: str) -> Int[np.ndarray, "cls cls"]:
    num = len(CLASS_PARTS[name]) + 1
    return np.zeros((num, num), dtype=np.int64)


def _values(changes: Sequence[str]) -> dict[str, Any]:
    asked = load_section(PartSettings, changes)
    return {name: getattr(asked, name) for name in asked.model_fields_set}


def _model() -> Any:
    torch.set_num_threads(1)
    return load_model()


def oneshot_table(result: Mapping[str, Any]) -> str:
    """Markdown in the layout of the paper's tables 2 to 4, one table per class."""
    tables = []
    for name in dict.fromkeys(row["class"] for row in result["rows"]):
        own = [row for row in result["rows"] if row["class"] == name]
        head = [name, "examples", *own[0]["iou"]]
        lines = [
            [
                row["method"],
                str(row["shots"]),
                *(_percent(*own) for own in row["iou"].values()),
            ]
            for row in own
        ]
        tables.append(markdown_table(head, lines))
    return "\n\n".join(tables)


def _percent(mean: float, deviation: float) -> str:
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}"
