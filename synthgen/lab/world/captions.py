"""BLIP-like captions and the grammar that reads them back.

caption    = [opening] objects place
objects    = object {" and " | " next to " | ", " object}
object     = "a" color ["and" color] [pattern] class
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from synthgen.embedded.vocabulary import BACKGROUNDS, CLASSES, COLORS, PATTERNS

OPENINGS = ("", "", "", "a photo of ", "a picture of ", "there is ")
JOINTS = (" and ", " and ", " next to ")


@dataclass(frozen=True, slots=True)
class ObjectPhrase:
    """What a caption says about one object: class, one or two colors, pattern."""

    class_name: str
    colors: tuple[str, ...]
    pattern: str


@dataclass(frozen=True, slots=True)
class CaptionMeaning:
    """What a caption says: its objects in order, and the background's name."""

    objects: tuple[ObjectPhrase, ...]
    background: str


def article(word: str) -> str:
    """The indefinite article in front of a word.

    >>> article("orange"), article("red")
    ('an', 'a')
    """
    return "an" if word[0] in "aeiou" else "a"


def phrase(item: ObjectPhrase) -> str:
    """Words for one object.

    >>> phrase(ObjectPhrase("ball", ("red", "white"), "striped"))
    'a red and white striped ball'
    """
    kind = "" if item.pattern in ("solid", "halves") else f"{item.pattern} "
    return f"{article(item.colors[0])} {' and '.join(item.colors)} {kind}{item.class_name}"


def compose_caption(meaning: CaptionMeaning, rng: np.random.Generator | None = None) -> str:
    """Caption of a scene; without a generator, the plainest wording.

    Args:
        meaning: Objects and background.
        rng: Draws opening and joints.
    """
    opening = OPENINGS[rng.integers(len(OPENINGS))] if rng else ""
    text = phrase(meaning.objects[0])
    for item in meaning.objects[1:]:
        joint = JOINTS[rng.integers(len(JOINTS))] if rng else " and "
        text += joint + phrase(item)
    return f"{opening}{text} {BACKGROUNDS[meaning.background].phrase}"


_COLOR = "|".join(COLORS)
_KIND = "|".join(kind for kind in PATTERNS if kind not in ("solid", "halves"))
_OBJECT = re.compile(
    rf"\ban? ({_COLOR})(?: and ({_COLOR}))?(?: ({_KIND}))? ({'|'.join(CLASSES)})\b"
)


def parse_caption(text: str) -> CaptionMeaning:
    """Objects and background that a caption names.

    Raises:
        ValueError: If the text is not of the grammar.

    >>> parse_caption("a photo of a red ball on the grass").background
    'grass'
    """
    places = [name for name, place in BACKGROUNDS.items() if text.endswith(place.phrase)]
    objects = tuple(
        ObjectPhrase(
            match[4],
            (match[1], match[2]) if match[2] else (match[1],),
            match[3] or ("halves" if match[2] else "solid"),
        )
        for match in _OBJECT.finditer(text)
    )
    if len(places) != 1 or not objects:
        raise ValueError(
            "a scene caption must name at least one colored object and end with a background, "
            f"as in 'a red ball on the grass'. Got {text!r}."
        )
    return CaptionMeaning(objects, places[0])
