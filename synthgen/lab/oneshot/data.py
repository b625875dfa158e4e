"""Annotated images that parts are learned from and found in; those of scenes are made here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.embedded.vocabulary import CLASS_PARTS, PARTS, TUNING_SEEDS, VALIDATION_SEEDS
from synthgen.lab.world.render import Scene, render

Pair = tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"]]
"""An image, and the part of each pixel: 0 background, 255 nobody says."""

EXAMPLES, TESTS = slice(20_000, 50_000), slice(50_000, None)
"""Of the seeds of a range: scenes that are learned from, and those that parts are found in."""


@dataclass(frozen=True, slots=True)
class PartImages:
    """Annotated images of one class, none of them read yet.

    Args:
        names: Its parts; part i is ``names[i - 1]``.
        examples: That parts may be learned from.
        tests: That they are found in.
        settings: Of `PartSettings`, that such images are learned with.
    """

    names: tuple[str, ...]
    examples: Sequence[Callable[[], Pair]]
    tests: Sequence[Callable[[], Pair]]
    settings: Mapping[str, Any] = field(default_factory=dict)


def part_scenes(name: str, examples: int, tests: int, tuning: bool) -> PartImages:
    """Scenes of one object of a class, with all of its parts.

    Raises:
        ValueError: In one line, for a class without parts.
    """
    if len(CLASS_PARTS.get(name, ())) < 2:
        known = [cls for cls, parts in CLASS_PARTS.items() if len(parts) > 1]
        raise ValueError(f"classes must be of {', '.join(known)}. Got {name!r:.40}.")

    def read(part: str, num: int) -> list[Callable[[], Pair]]:
        scenes = _stream(tuning, part).scenes(name, num)
        return [functools.partial(_pair, scene, name) for scene in scenes]

    return PartImages(CLASS_PARTS[name], read("examples", examples), read("tests", tests))


def _pair(scene: Scene, name: str) -> Pair:
    return scene.image, part_mask(scene, name)


def part_mask(
    scene: Scene, name: str, numbers: Mapping[str, int] | None = None
) -> UInt8[np.ndarray, "height width"]:
    """0 background, i the i-th part of a class, or the number that is said of it."""
    mask = np.zeros(scene.part.shape, dtype=np.uint8)
    for place, part in enumerate(CLASS_PARTS[name], start=1):
        number = place if numbers is None else numbers.get(part, 0)
        mask[scene.part == PARTS.index((name, part)) + 1] = number
    return mask


class _Stream:
    """Scenes of one object with all of its parts, by class, rendered once."""

    def __init__(self, seeds: Iterator[int]) -> None:
        self.seeds = seeds
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
def _stream(tuning: bool, part: str) -> _Stream:
    seeds = TUNING_SEEDS if tuning else VALIDATION_SEEDS
    return _Stream(iter(seeds[EXAMPLES if part == "examples" else TESTS]))
