"""Outlines of the classes: each class is a short list of painted parts in unit coordinates.

The unit frame has x to the right and y down, and an object fills about [-1, 1]². Parts are listed
from back to front. An outline is a tuple of polygons whose union is the part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Polygon = np.ndarray
"""Corners (x, y) in the unit frame, float64 of shape (corner, 2)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One painted piece of an object.

    Args:
        name: Part name, one of `CLASS_PARTS` of the class.
        polygons: Polygons whose union is the piece.
        paint: `main` for the object's own colors and pattern, or a key of `ACCENTS`.
        holes: Polygons cut out of the piece.
    """

    name: str
    polygons: tuple[Polygon, ...]
    paint: str = "main"
    holes: tuple[Polygon, ...] = ()


def corners(*points: tuple[float, float]) -> Polygon:
    """Polygon of the given corners."""
    return np.array(points, dtype=np.float64)


def ellipse(
    x: float, y: float, a: float, b: float, start: float = 0.0, stop: float = 2 * math.pi
) -> Polygon:
    """Ellipse around (x, y) with half axes a and b, or its segment from `start` to `stop`."""
    angle = np.linspace(start, stop, 40)
    return np.stack([x + a * np.cos(angle), y + b * np.sin(angle)], axis=1)


def _ball() -> tuple[Part, ...]:
    return (Part("ball", (ellipse(0.0, 0.0, 0.92, 0.92),)),)


def _star() -> tuple[Part, ...]:
    angle = np.arange(10) * math.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.05, 0.46)
    outline = np.stack([radius * np.sin(angle), 0.06 - radius * np.cos(angle)], axis=1)
    return (Part("star", (outline,)),)


def _heart() -> tuple[Part, ...]:
    t = np.linspace(0.0, 2 * math.pi, 60)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return (Part("heart", (np.stack([x / 16.5, (y - 2.5) / 15.5], axis=1),)),)


def _car() -> tuple[Part, ...]:
    body = corners(
        (-1.05, 0.0), (-0.66, -0.06), (-0.44, -0.6), (0.4, -0.6), (0.68, -0.06), (1.05, 0.02),
        (1.05, 0.42), (-1.05, 0.42),
    )  # fmt: skip
    rear = corners((-0.46, -0.08), (-0.34, -0.46), (-0.05, -0.46), (-0.05, -0.08))
    front = corners((0.05, -0.08), (0.05, -0.46), (0.31, -0.46), (0.48, -0.08))
    wheels = (ellipse(-0.58, 0.42, 0.27, 0.27), ellipse(0.58, 0.42, 0.27, 0.27))
    return (
        Part("body", (body,)),
        Part("window", (rear, front), "glass"),
        Part("wheel", wheels, "wheel"),
    )


def _house() -> tuple[Part, ...]:
    wall = corners((-0.78, -0.2), (0.78, -0.2), (0.78, 0.95), (-0.78, 0.95))
    roof = corners((-1.02, -0.16), (0.0, -1.0), (1.02, -0.16))
    door = corners((-0.2, 0.32), (0.2, 0.32), (0.2, 0.95), (-0.2, 0.95))
    return (Part("wall", (wall,)), Part("roof", (roof,), "roof"), Part("door", (door,), "door"))


def _tree() -> tuple[Part, ...]:
    trunk = corners((-0.15, 0.4), (0.15, 0.4), (0.17, 1.0), (-0.17, 1.0))
    low = corners((-0.86, 0.56), (0.0, -0.5), (0.86, 0.56))
    high = corners((-0.64, -0.08), (0.0, -1.05), (0.64, -0.08))
    return (Part("trunk", (trunk,), "bark"), Part("crown", (low, high)))


def _face() -> tuple[Part, ...]:
    hair = (
        ellipse(0.0, -0.28, 0.92, 0.74, math.pi, 2 * math.pi),
        corners((-0.92, -0.3), (-0.62, -0.3), (-0.62, 0.35), (-0.92, 0.35)),
        corners((0.62, -0.3), (0.92, -0.3), (0.92, 0.35), (0.62, 0.35)),
    )
    eyes = (ellipse(-0.29, -0.02, 0.14, 0.16), ellipse(0.29, -0.02, 0.14, 0.16))
    mouth = ellipse(0.0, 0.42, 0.36, 0.22, 0.0, math.pi)
    return (
        Part("hair", hair, "hair"),
        Part("head", (ellipse(0.0, 0.12, 0.74, 0.86),)),
        Part("hair", (ellipse(0.0, -0.3, 0.74, 0.5, math.pi, 2 * math.pi),), "hair"),
        Part("eye", eyes, "ink"),
        Part("mouth", (mouth,), "lips"),
    )


def _cup() -> tuple[Part, ...]:
    bowl = corners((-0.84, -0.72), (0.5, -0.72), (0.38, 0.8), (-0.72, 0.8))
    handle = Part(
        "handle", (ellipse(0.5, -0.06, 0.48, 0.5),), "main", (ellipse(0.5, -0.06, 0.24, 0.27),)
    )
    return (handle, Part("bowl", (bowl,)))


def _boat() -> tuple[Part, ...]:
    hull = corners((-1.02, 0.42), (1.02, 0.42), (0.68, 0.95), (-0.68, 0.95))
    sails = (corners((-0.04, -1.02), (-0.04, 0.34), (-0.86, 0.34)),
             corners((0.06, -1.02), (0.06, 0.34), (0.86, 0.34)))  # fmt: skip
    return (Part("hull", (hull,), "wood"), Part("sail", sails))


def _fish() -> tuple[Part, ...]:
    tail = corners((0.42, 0.0), (1.05, -0.56), (0.9, 0.0), (1.05, 0.56))
    return (
        Part("tail", (tail,)),
        Part("body", (ellipse(-0.22, 0.0, 0.82, 0.56),)),
        Part("eye", (ellipse(-0.68, -0.12, 0.11, 0.11),), "ink"),
    )


def _flower() -> tuple[Part, ...]:
    stem = corners((-0.09, 0.0), (0.09, 0.0), (0.09, 1.05), (-0.09, 1.05))
    leaf = ellipse(0.3, 0.78, 0.3, 0.12)
    ring = np.arange(6) * math.pi / 3
    petals = tuple(ellipse(0.47 * math.cos(a), -0.3 + 0.47 * math.sin(a), 0.3, 0.3) for a in ring)
    return (
        Part("stem", (stem, leaf), "leaf"),
        Part("petals", petals),
        Part("center", (ellipse(0.0, -0.3, 0.27, 0.27),), "pollen"),
    )


def _mushroom() -> tuple[Part, ...]:
    stem = corners((-0.26, 0.0), (0.26, 0.0), (0.36, 0.98), (-0.36, 0.98))
    cap = ellipse(0.0, 0.14, 1.02, 1.0, math.pi, 2 * math.pi)
    return (Part("stem", (stem,), "flesh"), Part("cap", (cap,)))


OUTLINES: dict[str, Callable[[], tuple[Part, ...]]] = {
    "ball": _ball,
    "star": _star,
    "heart": _heart,
    "car": _car,
    "house": _house,
    "tree": _tree,
    "face": _face,
    "cup": _cup,
    "boat": _boat,
    "fish": _fish,
    "flower": _flower,
    "mushroom": _mushroom,
}

SHAPES: dict[str, tuple[Part, ...]] = {name: outline() for name, outline in OUTLINES.items()}
"""Class name -> its parts, back to front."""
