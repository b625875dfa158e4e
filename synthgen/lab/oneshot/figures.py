"""SLiMe's figures 5 and 9 to 13 as measurements: scenes that differ from ordinary ones in one way.

A changed scene has the background, the object and the place of the ordinary one of its seed. What
is no part of the class but of another object there is counted as a class of its own, so that parts
that are found in it are seen.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from synthgen import progress
from synthgen.config.settings import digest
from synthgen.drawing import magnify, png, tint_classes
from synthgen.embedded.vocabulary import CLASS_PARTS, COLORS, IMAGE_SIZE
from synthgen.lab.oneshot.data import (
    TESTS,
    Maker,
    Pair,
    PartImages,
    class_seeds,
    part_mask,
    part_scenes,
    single,
)
from synthgen.lab.oneshot.evaluate import (
    Finder,
    OneshotSettings,
    Place,
    fitted,
    measured,
    part_settings,
)
from synthgen.lab.tables import markdown_table
from synthgen.lab.world.captions import ObjectPhrase
from synthgen.lab.world.render import Arranged, Change, Pose, Scene, render
from synthgen.oneshot.settings import FOUND_BY
from synthgen.segmentation.metrics import class_ious
from synthgen.storage.publish import Storage, dump_json, open_storage

TINY = 0.4
"""Size of tiny objects, as a share of the ordinary."""

SIMILAR = {"car": "boat", "house": "boat", "tree": "mushroom", "face": "ball", "cup": "ball"}
"""What stands beside an object, in its colors and its pattern; ball beside all others."""

CARRIED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "face": ("fish", {"eye": "eye"}),
    "fish": ("face", {"eye": "eye"}),
    "flower": ("mushroom", {"stem": "stem"}),
    "mushroom": ("tree", {"stem": "trunk", "cap": "crown"}),
    "tree": ("mushroom", {"trunk": "stem", "crown": "cap"}),
}
"""Another class with parts like those of a class, and what it calls them."""


def camouflaged(seed: int) -> Scene:
    """The object has the background's own pixels."""
    return render(seed, 1, change=Change(camouflaged=True))


def tiny(seed: int) -> Scene:
    """The object is small."""

    def arrange(items: list[ObjectPhrase], poses: list[Pose]) -> Arranged:
        return items, [replace(pose, radius=TINY * pose.radius) for pose in poses]

    return render(seed, 1, change=Change(arrange))


def occluded(seed: int) -> Scene:
    """A ball of another color lies in front of a side of the object."""

    def arrange(items: list[ObjectPhrase], poses: list[Pose]) -> Arranged:
        (item,), (pose,) = items, poses
        colors = [color for color in COLORS if color not in item.colors]
        turn, radius = 13.0 * pose.x, 0.5 * pose.radius
        x, y = pose.x + 1.3 * radius * math.cos(turn), pose.y + 1.3 * radius * math.sin(turn)
        ball = ObjectPhrase("ball", (colors[seed % len(colors)],), "solid")
        return [item, ball], [pose, replace(pose, x=x, y=y, radius=radius)]

    return render(seed, 1, change=Change(arrange, min_visible=0.3))


def beside_similar(seed: int) -> Scene:
    """Another object stands beside, in the same colors and pattern."""

    def arrange(items: list[ObjectPhrase], poses: list[Pose]) -> Arranged:
        (item,), (pose,) = items, poses
        places = [0.26 * IMAGE_SIZE, 0.74 * IMAGE_SIZE][:: 1 if seed % 2 else -1]
        y = min(max(pose.y, 0.3 * IMAGE_SIZE), 0.7 * IMAGE_SIZE)
        other = replace(item, class_name=SIMILAR.get(item.class_name, "ball"))
        both = [replace(pose, x=x, y=y, radius=0.23 * IMAGE_SIZE) for x in places]
        return [item, other], both

    return render(seed, 1, change=Change(arrange))


@dataclass(frozen=True, slots=True)
class Condition:
    """What is measured: scenes that parts are learned from, and found in.

    Args:
        figure: Number in the paper.
        title: In words.
        learned: Makes examples.
        found: Makes tests.
        carried: Tests are of the other class in `CARRIED`.
    """

    figure: str
    title: str
    learned: Maker = single
    found: Maker = single
    carried: bool = False

    def tests(self, name: str, num: int, tuning: bool) -> PartImages:
        """Tests of a class; pixels of other objects, and parts that it lacks, are of the last."""
        cls, theirs = CARRIED[name] if self.carried else (name, {p: p for p in CLASS_PARTS[name]})
        own = {theirs[p]: i for i, p in enumerate(CLASS_PARTS[name], 1) if p in theirs}
        last = len(CLASS_PARTS[name]) + 1

        def read(seed: int) -> Pair:
            scene = self.found(seed)
            mask = part_mask(scene, cls, {p: own.get(p, last) for p in CLASS_PARTS[cls]})
            return scene.image, np.where((mask == 0) & (scene.semantic > 0), np.uint8(last), mask)

        seeds = islice(class_seeds(cls, tuning, TESTS), num)
        names = (*CLASS_PARTS[name], "others")
        return PartImages(names, [], [functools.partial(read, seed) for seed in seeds])


CONDITIONS = (
    Condition("–", "ordinary"),
    Condition("5", "camouflaged", found=camouflaged),
    Condition("5", "camouflaged, and the example, too", camouflaged, camouflaged),
    Condition("9", "another class with these parts", carried=True),
    Condition("10", "beside a similar object", found=beside_similar),
    Condition("10", "beside it, and the example, too", beside_similar, beside_similar),
    Condition("11", "the example is occluded", learned=occluded),
    Condition("12", "occluded", found=occluded),
    Condition("13", f"{TINY:g} of the size", found=tiny),
)


def num_measured(settings: OneshotSettings) -> int:
    """Rows that are measured, over classes and initializations."""
    names = settings.part_classes()
    num = sum(not c.carried or name in CARRIED for c in CONDITIONS for name in names)
    return num * settings.inits


def evaluate_figures(out: Path, settings: OneshotSettings) -> dict[str, Any]:
    """Measure what is missing in a folder, and write figures.md, figures.json and figures.png.

    Returns:
        ``rows``: figure, title, class, IoU of each part that is sought (mean over
        initializations), and ``taken``, the share of other objects' pixels taken for parts, or
        null if there are none.

    Raises:
        ValueError: In one line, for a class without parts, or other data than scenes.
    """
    if settings.data != "scenes":
        raise ValueError(f"data must be scenes for figures. Got {settings.data}.")
    storage, names, shots = open_storage(out), settings.part_classes(), settings.shots[0]
    rows: list[dict[str, Any]] = []
    drawn: dict[str, list[tuple[Any, Any]]] = {condition.title: [] for condition in CONDITIONS}
    for condition, name in itertools.product(CONDITIONS, names):
        if condition.carried and name not in CARRIED:
            continue
        tests = condition.tests(name, settings.num, settings.tuning)
        counts = []
        for init in range(settings.inits):
            place = Place(name, shots, init)
            find = functools.partial(_finder, storage, settings, condition, place)
            known = {**settings.known(), "parts": settings.parts.model_dump(mode="json")}
            known |= {"learned": condition.learned.__name__, "found": condition.found.__name__}
            key = f"figures/{place}-{digest(known | {'carried': condition.carried})[:12]}.json"
            counts.append(measured(storage, key, tests, find)[""])
            progress.report("samples", count=1)
            if not init and len(drawn[condition.title]) < _DRAWN:
                pixels, _ = tests.tests[0]()
                drawn[condition.title].append((pixels, find()(pixels)[""]))
        rows.append(
            {
                "figure": condition.figure,
                "title": condition.title,
                "class": name,
                **_scores(name, counts),
            }
        )
    result = {"settings": settings.model_dump(mode="json"), "rows": rows}
    storage.publish_bytes(dump_json(result), "figures.json")
    storage.publish_bytes(figures_table(result).encode(), "figures.md")
    storage.publish_bytes(_draw(drawn), "figures.png")
    return result


_DRAWN = 3
"""Classes in the picture."""


def _finder(
    storage: Storage, settings: OneshotSettings, condition: Condition, place: Place
) -> Finder:
    wanted = place.shots * (place.init + 1)
    data = part_scenes(place.name, wanted, 0, settings.tuning, condition.learned)
    own = part_settings(settings, data).changed(seed=place.init)
    kind = "" if condition.learned is single else condition.learned.__name__
    parts = fitted(storage, settings, own, data, place, kind)
    find = {each: getattr(own, each) for each in FOUND_BY}
    return lambda pixels: {"": parts(pixels, **find).semantic}


def _scores(name: str, counts: list[Int[np.ndarray, "cls cls"]]) -> dict[str, Any]:
    """IoU of the parts that any test shows, and what is taken of others, over initializations."""
    ious = {
        part: fmean(float(class_ious(own)[cls]) for own in counts)
        for cls, part in enumerate(CLASS_PARTS[name], start=1)
        if counts[0][cls].any()
    }
    others = [own[-1] for own in counts if own[-1].any()]
    taken = fmean(1 - float(own[0] / own.sum()) for own in others) if others else None
    return {"ious": ious, "taken": taken}


def figures_table(result: Mapping[str, Any]) -> str:
    """Markdown: mean IoU of the parts, the same parts on ordinary scenes, what others lose."""
    rows = result["rows"]
    ordinary = {row["class"]: row["ious"] for row in rows if row["figure"] == "–"}

    def cells(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return "–"
        home = [ordinary[row["class"]][part] for part in row["ious"]]
        text = f"{100 * fmean(row['ious'].values()):.1f}"
        text += f" : {100 * fmean(home):.1f}" if row["figure"] == "9" else ""
        return text + ("" if row["taken"] is None else f" ({100 * row['taken']:.0f} %)")

    names = list(ordinary)
    lines = []
    for title in dict.fromkeys(row["title"] for row in rows):
        own = {row["class"]: row for row in rows if row["title"] == title}
        mean = fmean(fmean(row["ious"].values()) for row in own.values())
        figure = next(iter(own.values()))["figure"]
        lines.append([figure, title, *(cells(own.get(n)) for n in names), f"{100 * mean:.1f}"])
    return markdown_table(["figure", "scenes", *names, "mean"], lines)


def _draw(drawn: Mapping[str, list[tuple[Any, Any]]]) -> bytes:
    """A row for each condition: image and found parts, by class."""
    columns = 2 * max(map(len, drawn.values()))
    figure = Figure(figsize=(1.5 * columns, 1.62 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), columns, squeeze=False)
    for own, (title, pairs) in zip(axes, drawn.items(), strict=True):
        own[0].set_title(title, fontsize=8, loc="left")
        shown = [each for p, found in pairs for each in (magnify(p), tint_classes(p, found))]
        for place, each in enumerate(own):
            each.set_axis_off()
            if place < len(shown):
                each.imshow(shown[place], interpolation="nearest")
    return png(figure)
