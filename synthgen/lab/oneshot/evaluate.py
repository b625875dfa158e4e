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
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field

from synthgen import progress
from synthgen.config import ModelConfig, load_section
from synthgen.config.settings import Section, digest
from synthgen.diffusion.backbones import origin_of
from synthgen.diffusion.generate import load_model
from synthgen.lab.oneshot.data import Pair, PartImages, part_scenes
from synthgen.lab.oneshot.layouts import PUBLISHED, celebamask, pascal_part
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
from synthgen.oneshot.parts import Parts
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

    data: Literal["scenes", "pascal-part", "celebamask"] = "scenes"
    root: Path | None = Field(None, description="Folder of the data set, as it was published.")
    classes: tuple[str, ...] | None = Field(
        None, description="With parts; null: all, of scenes car, house, tree, face, cup."
    )
    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 10), min_length=1, description="Numbers of examples."
    )
    inits: int = Field(3, ge=1, description="Initializations: other examples and seeds.")
    num: int = Field(50, ge=1, description="Images that parts are found in.")
    tuning: bool = Field(False, description="Tuning scenes, to choose settings.")
    table: str = Field(
        "",
        coerce_numbers_to_str=True,  # --set table=7
        description="An ablation of the paper (1, 5 to 10) in place of rivals.",
    )
    figures: bool = Field(False, description="The paper's figures 5, 9 to 13, in place of rivals.")
    parts: PartSettings = PartSettings()
    model: ModelConfig = ModelConfig()

    def part_images(self) -> dict[str, PartImages]:
        """Annotated images by class.

        Raises:
            ValueError: In one line, for a class without parts, or too few images.
        """
        classes = self.part_classes()
        wanted = max(self.shots) * self.inits
        if self.data == "scenes":
            return {name: part_scenes(name, wanted, self.num, self.tuning) for name in classes}
        if self.root is None:
            raise ValueError(f"root must be the folder of {self.data}. Got none.")
        opened = pascal_part if self.data == "pascal-part" else celebamask
        found = {name: opened(self.root, name, wanted, self.num) for name in classes}
        for name, data in found.items():
            if len(data.examples) < wanted or not data.tests:
                raise ValueError(
                    f"root must hold {wanted} examples of {name} with all parts, and tests. Got "
                    f"{len(data.examples)} and {len(data.tests)}; change shots or inits."
                )
        return found

    def part_classes(self) -> tuple[str, ...]:
        """Classes that are asked for, or all."""
        return CLASSES[self.data] if self.classes is None else self.classes

    def known(self) -> dict[str, Any]:
        """What rows of different runs differ by, beside the settings of parts."""
        given = self.model_dump(
            mode="json", include={"data", "root", "model"}, exclude_defaults=True
        )
        return {"tuning": self.tuning, **given}


CLASSES = {
    "scenes": ("car", "house", "tree", "face", "cup"),
    "pascal-part": ("car", "horse"),
    "celebamask": ("face",),
}


def num_rows(settings: OneshotSettings) -> int:
    """Rows that are measured, over classes, examples and initializations; rivals aside."""
    methods = len(TABLES.get(settings.table, METHODS))
    return methods * len(settings.part_classes()) * len(settings.shots) * settings.inits


def evaluate_oneshot(out: Path, settings: OneshotSettings) -> dict[str, Any]:
    """Measure what is missing in a folder; the table is written beside, as md and json.

    Returns:
        ``rows``: a list of class, shots, method and, per part, mean and deviation of IoU over the
        initializations, or null if no test shows it.

    Raises:
        ValueError: In one line, for a class without parts, an unknown table, or data that are not
            there.
    """
    if settings.table and settings.table not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}. Got {settings.table!r:.40}.")
    storage = open_storage(out)
    rows: list[dict[str, Any]] = []
    for name, data in settings.part_images().items():
        for shots in settings.shots:
            runs = [
                _run(storage, settings, data, Place(name, shots, init))
                for init in range(settings.inits)
            ]
            for method in runs[0]:
                ious = np.array([run[method] for run in runs])
                columns = dict(
                    zip((*data.names, "background"), [*ious.T[1:], ious.T[0]], strict=True)
                )
                columns["average"] = np.nanmean(ious, 1)
                of_part = {
                    part: None if np.isnan(own).any() else (fmean(own), pstdev(own))
                    for part, own in columns.items()
                }
                rows.append({"class": name, "shots": shots, "method": method, "iou": of_part})
    result = {"settings": settings.model_dump(mode="json"), "rows": rows}
    stem = "-".join(("table", settings.table) if settings.table else ("oneshot",))
    stem = "-".join((stem, *map(str, settings.shots)))
    storage.publish_bytes(dump_json(result), f"{stem}.json")
    storage.publish_bytes(oneshot_table(result).encode(), f"{stem}.md")
    return result


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
    found, known = dict[str, list[float]](), settings.known()
    for method, changes in TABLES.get(settings.table, METHODS).items():
        own = part_settings(settings, data).changed(**_values(changes), seed=place.init)

        def find_parts(own: PartSettings = own) -> Finder:
            parts = fitted(storage, settings, own, data, place)
            find = {each: getattr(own, each) for each in FOUND_BY}
            return lambda pixels: {"": parts(pixels, **find).semantic}

        key = f"rows/{place}-{digest(known | {'parts': own.model_dump(mode='json')})[:12]}.json"
        found |= _ious({method: measured(storage, key, data, find_parts)[""]})
        progress.report("samples", count=1)
    if settings.table:
        return found
    timestep = settings.parts.timestep
    key = f"rows/{place}-rivals-{digest(known | {'t': timestep})[:12]}.json"
    return found | _ious(
        measured(storage, key, data, lambda: _rivals(_model(settings), data, place, timestep))
    )


def _ious(counts: Mapping[str, Any]) -> dict[str, list[float]]:
    return {method: class_ious(own).tolist() for method, own in counts.items()}


Finder = Callable[[Any], Mapping[str, Any]]
"""The part of each pixel of an image, by method."""


def measured(
    storage: Storage, key: str, data: PartImages, prepare: Callable[[], Finder]
) -> dict[str, Int[np.ndarray, "cls cls"]]:
    """Pixels by true and found class, by method; tests that a row lacks are measured and kept."""
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
    return {method: np.sum([row[method] for row in own], axis=0) for method in own[0]}


def part_settings(settings: OneshotSettings, data: PartImages) -> PartSettings:
    """Settings of the model's card, changed by the data's, and by those that were given."""
    given = {name: getattr(settings.parts, name) for name in settings.parts.model_fields_set}
    origin = origin_of(_model(settings))
    assert origin is not None
    return PartSettings.model_validate({**origin.card.parts, **data.settings, **given})


def fitted(
    storage: Storage,
    settings: OneshotSettings,
    own: PartSettings,
    data: PartImages,
    place: Place,
    kind: str = "",
) -> Parts:
    """A fit in OUT/fits, which goes on if it was interrupted; found settings do not matter.

    Args:
        storage: OUT.
        settings: Of the evaluation.
        own: Of the fit.
        data: Its examples.
        place: Of the run.
        kind: Of examples that differ from the ordinary.
    """
    learned = {k: v for k, v in dict(own).items() if k not in FOUND_BY or k == "seed"}
    known = {**PartSettings(**learned).model_dump(mode="json"), **settings.known()}
    known |= {"examples": kind} if kind else {}
    examples = place.examples(data)
    return learn_parts(
        _model(settings),
        [pixels for pixels, _ in examples],
        [mask for _, mask in examples],
        names=data.names,
        folder=f"{storage.root}/fits/{place}-{digest(known)[:12]}",
        **learned,
    )


def _rivals(pipe: Any, data: PartImages, place: Place, timestep: int) -> Finder:
    """Rivals that learned from the same examples, with and without refined borders."""
    reader, num = ClassReader(pipe, PartSettings()), len(data.names) + 1

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


def _model(settings: OneshotSettings) -> Any:
    torch.set_num_threads(1)
    return load_model(**dict(settings.model))


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
                *(_percent(own) for own in row["iou"].values()),
            ]
            for row in own
        ]
        reported = PUBLISHED.get(name, {}) if result["settings"]["data"] != "scenes" else {}
        lines += [
            ["SLiMe, as reported", str(shots), *["–"] * (len(head) - 3), f"{100 * iou:.1f}"]
            for shots, iou in reported.items()
        ]
        tables.append(markdown_table(head, lines))
    return "\n\n".join(tables)


def _percent(found: tuple[float, float] | None) -> str:
    return "–" if found is None else f"{100 * found[0]:.1f} ± {100 * found[1]:.1f}"
