"""IoU of parts from few annotated scenes (SLiMe's tables 1 to 10), beside rivals; row by row.

A scene shows one object of a class with all of its parts; examples and tests are disjoint, and an
initialization has its own examples, as well as its own seed. IoU is of pixels summed over the
tests, as in the paper, background among the parts. Whatever was measured is kept in OUT/rows, so
that the command goes on where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field

from synthgen import progress
from synthgen.config import load_section
from synthgen.config.settings import Section, digest
from synthgen.diffusion.backbones import origin_of
from synthgen.diffusion.generate import load_model
from synthgen.lab.oneshot.data import Pair, PartImages, part_scenes
from synthgen.lab.oneshot.rivals import (
    head_features,
    labeled_places,
    nearest_centroid,
    train_mlp,
)
from synthgen.lab.tables import markdown_table
from synthgen.labeling.refine import refine
from synthgen.labeling.scores import upsample
from synthgen.oneshot.attending import ClassReader
from synthgen.oneshot.learn import learn_parts
from synthgen.oneshot.settings import FOUND_BY, PartSettings
from synthgen.segmentation.metrics import class_ious, confusion
from synthgen.storage.publish import Storage, dump_json, open_storage
from synthgen.types import IGNORE

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
    if settings.table and settings.table not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}. Got {settings.table!r:.40}.")
    wanted = max(settings.shots) * settings.inits
    all_data = {
        name: part_scenes(name, wanted, settings.num, settings.tuning) for name in settings.classes
    }
    rows: list[dict[str, Any]] = []
    for name, data in all_data.items():
        for shots in settings.shots:
            runs = [
                _run(open_storage(out), settings, data, Place(name, shots, init))
                for init in range(settings.inits)
            ]
            for method in runs[0]:
                ious = np.array([run[method] for run in runs])
                columns = dict(
                    zip((*data.names, "background"), [*ious.T[1:], ious.T[0]], strict=True)
                )
                columns["average"] = np.nanmean(ious, 1)
                of_part = {part: (fmean(own), pstdev(own)) for part, own in columns.items()}
                rows.append({"class": name, "shots": shots, "method": method, "iou": of_part})
    return {"settings": settings.model_dump(mode="json"), "rows": rows}


class Place(NamedTuple):
    """Of a run: its class, number of examples, and initialization."""

    name: str
    shots: int
    init: int

    def __str__(self) -> str:
        return "-".join(map(str, self))

    def examples(self, data: PartImages) -> list[Pair]:
        """Of this initialization."""
        own = slice(self.shots * self.init, self.shots * (self.init + 1))
        return [read() for read in data.examples[own]]


def _run(
    storage: Storage, settings: OneshotSettings, data: PartImages, place: Place
) -> dict[str, list[float]]:
    """IoU of each class by method, of one fit or, in an ablation, of one per row that needs it."""
    found: dict[str, list[float]] = {}
    known = {"tuning": settings.tuning}
    for method, changes in TABLES.get(settings.table, METHODS).items():
        own = _card_settings(settings).changed(**_values(changes), seed=place.init)

        def find_parts(own: PartSettings = own) -> Finder:
            parts = _fitted(storage, own, data, place, known)
            find = {each: getattr(own, each) for each in FOUND_BY}
            return lambda pixels: {"": parts(pixels, **find).semantic}

        key = f"rows/{place}-{digest(known | {'parts': own.model_dump(mode='json')})[:12]}.json"
        found[method] = measured(storage, key, data, find_parts)[""]
        progress.report("samples", count=1)
    if settings.table:
        return found
    timestep = settings.parts.timestep
    key = f"rows/{place}-rivals-{digest(known | {'t': timestep})[:12]}.json"
    return found | measured(storage, key, data, lambda: _rivals(data, place, timestep))


Finder = Callable[[Any], Mapping[str, Any]]
"""The part of each pixel of an image, by method."""


def measured(
    storage: Storage, key: str, data: PartImages, prepare: Callable[[], Finder]
) -> dict[str, list[float]]:
    """IoU of each class by method; tests that a row does not have yet are measured and kept."""
    content, num = storage.read(key), len(data.names) + 1
    rows = [] if content is None else json.loads(content)["tests"]
    if len(rows) < len(data.tests):
        find = prepare()
        try:
            for read in data.tests[len(rows) :]:
                pixels, mask = read()
                seen, found = mask != IGNORE, find(pixels)
                rows.append(
                    {
                        method: confusion(mask[seen], semantic[seen], num).tolist()
                        for method, semantic in found.items()
                    }
                )
                progress.report("step", step=len(rows), steps=len(data.tests))
        finally:
            storage.publish_bytes(dump_json({"tests": rows}), key)
    own = rows[: len(data.tests)]
    return {
        method: class_ious(np.sum([row[method] for row in own], axis=0)).tolist()
        for method in own[0]
    }


def _card_settings(settings: OneshotSettings) -> PartSettings:
    """The settings of the model's card, changed by those that were given."""
    given = {name: getattr(settings.parts, name) for name in settings.parts.model_fields_set}
    origin = origin_of(_model())
    assert origin is not None
    return PartSettings.model_validate({**origin.card.parts, **given})


def _fitted(
    storage: Storage,
    own: PartSettings,
    data: PartImages,
    place: Place,
    known: Mapping[str, Any],
) -> Any:
    """A fit in OUT/fits, which goes on if it was interrupted; found settings do not matter."""
    learned = {k: v for k, v in dict(own).items() if k not in FOUND_BY or k == "seed"}
    settings = PartSettings(**learned).model_dump(mode="json")
    examples = place.examples(data)
    return learn_parts(
        _model(),
        [pixels for pixels, _ in examples],
        [mask for _, mask in examples],
        names=data.names,
        folder=f"{storage.root}/fits/{place}-{digest({**settings, **known})[:12]}",
        **learned,
    )


def _rivals(data: PartImages, place: Place, timestep: int) -> Finder:
    """Rivals that learned from the same examples, with and without refined borders."""
    reader, num = ClassReader(_model(), PartSettings()), len(data.names) + 1

    def features(pixels: Any) -> Any:
        return head_features(reader, pixels, timestep, place.init)

    examples = [(features(pixels), mask) for pixels, mask in place.examples(data)]
    places = labeled_places(examples)
    rivals = {
        "centroid": nearest_centroid(*places, num),
        "MLP": train_mlp(*places, num, place.init),
    }

    def find(pixels: Any) -> dict[str, Any]:
        seen, found = features(pixels), {}
        for rival, classify in rivals.items():
            maps = upsample(classify(seen).numpy(), pixels.shape[:2])
            labels = maps.argmax(0).astype(np.uint8)
            planes = dict(enumerate(maps - maps.min()))
            found[rival] = labels
            found[f"{rival}, refined"] = refine("pamr", labels, pixels, planes)
        return found

    return find


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
