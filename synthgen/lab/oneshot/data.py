"""Annotated images that parts are learned from and found in; those of scenes are made here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
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


Maker = Callable[[int], Scene]
"""Makes a scene of a seed."""


def single(seed: int) -> Scene:
    """A scene of one object."""
    return render(seed, 1)


def part_scenes(
    name: str,
    examples: int,
    tests: int,
    tuning: bool,
    learned: Maker = single,
    found: Maker = single,
) -> PartImages:
    """Scenes of one object of a class, with all of its parts.

    Args:
        name: The class.
        examples: Number of scenes to learn from.
        tests: Number of scenes that parts are found in.
        tuning: Whether of seeds that settings are chosen on.
        learned: Makes examples; those that do not show all parts any more are left out.
        found: Makes tests.

    Raises:
        ValueError: In one line, for a class without parts.
    """
    if len(CLASS_PARTS.get(name, ())) < 2:
        known = [cls for cls, parts in CLASS_PARTS.items() if len(parts) > 1]
        raise ValueError(f"classes must be of {', '.join(known)}. Got {name!r:.40}.")

    def read(make: Maker, seed: int) -> Pair:
        scene = make(seed)
        return scene.image, part_mask(scene, name)

    complete = (
        seed
        for seed in class_seeds(name, tuning, EXAMPLES)
        if learned is single
        or len(np.unique(part_mask(learned(seed), name))) == len(CLASS_PARTS[name]) + 1
    )
    tested = class_seeds(name, tuning, TESTS)
    return PartImages(
        CLASS_PARTS[name],
        [functools.partial(read, learned, seed) for seed in islice(complete, examples)],
        [functools.partial(read, found, seed) for seed in islice(tested, tests)],
    )


def part_mask(
    scene: Scene, name: str, numbers: Mapping[str, int] | None = None
) -> UInt8[np.ndarray, "height width"]:
    """0 background, i the i-th part of a class, or the number that is said of a part."""
    mask = np.zeros(scene.part.shape, dtype=np.uint8)
    for place, part in enumerate(CLASS_PARTS[name], start=1):
        number = place if numbers is None else numbers[part]
        mask[scene.part == PARTS.index((name, part)) + 1] = number
    return mask


def class_seeds(name: str, tuning: bool, part: slice) -> Iterator[int]:
    """Seeds of scenes of one object, of a class, that shows all of its parts."""
    for seed in (TUNING_SEEDS if tuning else VALIDATION_SEEDS)[part]:
        if _shown(seed) == name:
            yield seed


@functools.cache
def _shown(seed: int) -> str | None:
    """The class of a scene's object, if it shows all of its parts."""
    item = single(seed).objects[0]
    complete = len(item.parts) == len(CLASS_PARTS[item.class_name])
    return item.class_name if complete else None
