"""Where a text speaks of a class: names, synonyms and plurals, at word boundaries.

Works on characters; `tokens` turns the places into token positions. "lane" is not in "aeroplane"
and "car" is not in "carpet", a trap that word-by-word matching on CLIP tokens falls into.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

ALIASES: tuple[tuple[str, ...], ...] = (
    ("aeroplane", "airplane", "plane"),
    ("bicycle", "bike"),
    ("motorbike", "motorcycle"),
    ("sofa", "couch"),
    ("tv monitor", "tv", "television"),
    ("potted plant", "houseplant"),
    ("dining table",),
)
"""Names of one and the same class; joined spellings (tvmonitor, dining-table) are understood."""

KINDS: dict[str, tuple[str, ...]] = {
    "person": (
        *("man", "woman", "boy", "girl", "child", "kid", "baby", "lady", "guy", "toddler"),
        *("family", "crowd", "teenager", "officer", "rider", "cyclist", "player"),
    ),
    "aeroplane": ("jet",),
    "dog": ("puppy",),
    "cat": ("kitten",),
    "cow": ("calf", "bull", "cattle"),
    "sheep": ("lamb",),
    "horse": ("pony", "foal"),
    "boat": ("ship", "sailboat", "canoe", "kayak"),
    "motorbike": ("dirt bike", "scooter"),
    "tv monitor": ("monitor",),
    "potted plant": ("plant", "potted flower"),
    "dining table": ("table",),
}
"""Class to words that speak of it but are no names of it (a class "man" is not a "woman")."""

_IRREGULAR: dict[str, tuple[str, ...]] = {
    "person": ("people", "persons"),
    "man": ("men",),
    "woman": ("women",),
    "child": ("children",),
    "mouse": ("mice",),
    "goose": ("geese",),
    "tooth": ("teeth",),
    "foot": ("feet",),
    "ox": ("oxen",),
    **{word: (word,) for word in ("sheep", "fish", "deer", "cattle", "aircraft", "scissors")},
    **{f"{stem}f": (f"{stem}ves",) for stem in ("cal", "hal", "lea", "loa", "shel", "wol")},
    **{f"{stem}fe": (f"{stem}ves",) for stem in ("kni", "li", "wi")},
}


@dataclass(frozen=True, slots=True, order=True)
class Mention:
    """A place in a text, in characters; rank 0 is the class's own name, 1 an alias, 2 a kind."""

    start: int
    end: int
    rank: int

    def yields_to(self, other: Mention) -> bool:
        """Whether ``other``, of another class, takes this place: it is longer, or ranks first."""
        inside = other.start <= self.start and self.end <= other.end
        longer = other.end - other.start > self.end - self.start
        return inside and (longer or other.rank < self.rank)


def find_mentions(text: str, class_names: Sequence[str]) -> dict[str, tuple[Mention, ...]]:
    """Places of every class in a text, in order; a class that is not mentioned has none.

    A place inside a longer name of another listed class belongs to that class alone ("hot dog"
    is no dog), and so does a word that is another listed class's own name.

    Raises:
        ValueError: If a class name is empty.

    >>> [m.start for m in find_mentions("Two buses and a car on a carpet", ["car"])["car"]]
    [16]
    """
    found = {
        name: [Mention(*m.span(), rank) for rank, rx in _patterns(name) for m in rx.finditer(text)]
        for name in class_names
    }
    return {
        name: tuple(sorted(m for m in own if not any(map(m.yields_to, _others(found, name)))))
        for name, own in found.items()
    }


def mentioned_classes(text: str, class_names: Sequence[str]) -> tuple[str, ...]:
    """The classes that a text speaks of, in the order of ``class_names``.

    >>> mentioned_classes("a woman on a couch", ["sofa", "dog", "person"])
    ('sofa', 'person')
    """
    return tuple(name for name, places in find_mentions(text, class_names).items() if places)


def spoken(class_name: str) -> str:
    """A class name as one says it: words apart, no underscores.

    >>> spoken("tvmonitor"), spoken("traffic_light"), spoken("sofa")
    ('tv monitor', 'traffic light', 'sofa')
    """
    words = re.sub(r"[\s_]+", " ", class_name).strip()
    joined = _joined(words)
    return next((a for row in ALIASES for a in row if " " in a and _joined(a) == joined), words)


def plurals(word: str) -> tuple[str, ...]:
    """Plural forms of an English noun, by rule or by table.

    >>> plurals("bus"), plurals("pony"), plurals("knife"), plurals("person")
    (('buses',), ('ponies',), ('knives',), ('people', 'persons'))
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if re.search(r"(s|x|z|ch|sh)$", word):
        return (f"{word}es",)
    if re.search(r"[^aeiou]y$", word):
        return (f"{word[:-1]}ies",)
    return (f"{word}s", f"{word}es") if word.endswith("o") else (f"{word}s",)


def _others(found: dict[str, list[Mention]], name: str) -> list[Mention]:
    return [m for other, places in found.items() if other != name for m in places]


def _joined(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


@lru_cache(maxsize=4096)
def _patterns(class_name: str) -> tuple[tuple[int, re.Pattern[str]], ...]:
    """Ranked patterns of a class: its own name, its aliases, its kinds."""
    own = spoken(class_name)
    if not own:
        raise ValueError("a class name must not be empty. Got an empty string.")
    row = next((row for row in ALIASES if _joined(own) in map(_joined, row)), (own,))
    aliases = tuple(alias for alias in row if _joined(alias) != _joined(own))
    ranked = ((0, (own,)), (1, aliases), (2, KINDS.get(row[0].lower(), ())))
    return tuple((rank, _any_of(names)) for rank, names in ranked if names)


def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the names, singular or plural, as whole words; spaces may be missing or hyphens."""
    forms = {form for name in names for form in _forms(name.lower())}
    ways = (r"[\s_-]*".join(map(re.escape, form.split())) for form in sorted(forms, key=len)[::-1])
    return re.compile(rf"(?<!\w)(?:{'|'.join(ways)})(?!\w)", re.IGNORECASE)


def _forms(name: str) -> tuple[str, ...]:
    *front, last = name.split()
    return (name, *(" ".join([*front, plural]) for plural in plurals(last)))
