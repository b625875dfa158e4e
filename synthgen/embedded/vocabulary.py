"""The words of the embedded world: classes and parts, colors, patterns, backgrounds, seed ranges.

Everything that a caption can say and that a ground-truth map can hold is a row of a table here,
so that renderer, caption grammar, tokenizer, classifier and tests cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_SIZE = 128
"""Side of every scene, in pixels."""

CLASS_PARTS: dict[str, tuple[str, ...]] = {
    "ball": ("ball",),
    "star": ("star",),
    "heart": ("heart",),
    "car": ("body", "window", "wheel"),
    "house": ("wall", "roof", "door"),
    "tree": ("trunk", "crown"),
    "face": ("head", "eye", "mouth", "hair"),
    "cup": ("bowl", "handle"),
    "boat": ("hull", "sail"),
    "fish": ("body", "tail", "eye"),
    "flower": ("petals", "center", "stem"),
    "mushroom": ("cap", "stem"),
}
"""Parts of each class; a class without distinct parts is its own single part."""

CLASSES: tuple[str, ...] = tuple(CLASS_PARTS)
"""Class names; the semantic map holds `index + 1`, background is 0."""

PARTS: tuple[tuple[str, str], ...] = tuple(
    (name, part) for name, parts in CLASS_PARTS.items() for part in parts
)
"""(class, part) pairs; the part map holds `index + 1`, background is 0."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (208, 40, 44),
    "blue": (44, 84, 210),
    "green": (40, 156, 66),
    "yellow": (240, 208, 44),
    "purple": (140, 62, 176),
    "orange": (240, 132, 30),
    "white": (238, 238, 238),
    "black": (34, 34, 40),
}
"""Colors that captions name, sRGB in 0-255."""

ACCENTS: dict[str, tuple[int, int, int]] = {
    "wheel": (30, 30, 34),
    "glass": (172, 214, 232),
    "bark": (112, 74, 44),
    "door": (84, 54, 38),
    "roof": (120, 62, 54),
    "hair": (72, 46, 34),
    "ink": (24, 22, 26),
    "lips": (150, 30, 44),
    "wood": (134, 88, 50),
    "pollen": (246, 196, 40),
    "leaf": (46, 116, 48),
    "flesh": (232, 220, 196),
}
"""Colors of secondary parts, never named by a caption, sRGB in 0-255."""

PATTERNS: dict[str, float] = {
    "solid": 0.13,
    "halves": 0.33,
    "striped": 0.28,
    "dotted": 0.10,
    "checkered": 0.16,
}
"""Pattern -> share of the objects. `halves` is said as two colors without a pattern word."""


@dataclass(frozen=True, slots=True)
class Background:
    """Where a scene plays.

    Args:
        phrase: How a caption says it.
        palette: The named color that it comes closest to, which objects on it may share.
    """

    phrase: str
    palette: str


BACKGROUNDS: dict[str, Background] = {
    "grass": Background("on the grass", "green"),
    "road": Background("on the road", "black"),
    "water": Background("on the water", "blue"),
    "sand": Background("on the sand", "yellow"),
    "snow": Background("in the snow", "white"),
    "night": Background("at night", "black"),
    "wall": Background("in front of a brick wall", "red"),
    "floor": Background("on a wooden floor", "orange"),
    "sky": Background("in the sky", "blue"),
}

SIMILAR_COLORS: tuple[frozenset[str], ...] = (
    frozenset({"orange", "yellow"}),
    frozenset({"orange", "red"}),
    frozenset({"blue", "purple"}),
    frozenset({"yellow", "white"}),
    frozenset({"black", "purple"}),
    frozenset({"black", "blue"}),
)
"""Pairs too close to make a pattern; no object has both."""

TRAIN_SEEDS = range(1_000_000, 2_000_000)
"""Seeds of scenes that models may be fitted on."""

TUNING_SEEDS = range(2_000_000, 2_100_000)
"""Seeds of scenes that settings may be chosen on."""

VALIDATION_SEEDS = range(3_000_000, 3_100_000)
"""Seeds of scenes that only measure; nothing is chosen on them."""
