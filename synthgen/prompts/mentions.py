"""Where a text speaks of a class: names, synonyms and plurals, at word boundaries.

Works on characters; `tokens` turns the places into token positions. "lane" is not in "aeroplane"
and "car" is not in "carpet", a trap that word-by-word matching on CLIP tokens falls into. Texts
and names are compared in Unicode's NFKC form, places are those of the text as it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

ALIASES: tuple[tuple[str, ...], ...] = (
    ("aeroplane", "airplane", "plane"),
    ("bicycle", "bike"),
    ("motorbike", "motorcycle"),
    ("sofa", "couch"),
    ("tv monitor", "tv", "television", "t.v.", "t.v"),
    ("potted plant", "houseplant"),
    ("dining table",),
)
"""Names of one and the same class; joined spellings (tvmonitor, dining-table) are understood."""

_WORKERS = (
    *("police", "fire", "fisher", "sports", "business", "sales", "gentle", "chair", "mail"),
    *("post", "camera", "crafts", "horse", "service", "repair", "country", "sea", "work"),
)

KINDS: dict[str, tuple[str, ...]] = {
    "person": (
        *("man", "woman", "boy", "girl", "child", "kid", "baby", "lady", "guy", "toddler"),
        *("family", "crowd", "teenager", "officer", "rider", "cyclist", "player", "surfer"),
        *("snowboarder", "skateboarder", "pedestrian"),
        *(f"{work}{end}" for work in _WORKERS for end in ("man", "woman")),
    ),
    "aeroplane": ("jet",),
    "bus": ("minibus",),
    "chair": ("armchair", "highchair", "deckchair"),
    "dog": ("puppy", "sheep dog", "bulldog"),
    "cat": ("kitten",),
    "cow": ("calf", "bull", "cattle"),
    "sheep": ("lamb",),
    "horse": ("pony", "foal"),
    "boat": ("ship", "sailboat", "rowboat", "speedboat", "motorboat", "canoe", "kayak"),
    "motorbike": ("dirt bike", "scooter"),
    "tv monitor": ("monitor",),
    "potted plant": ("plant", "potted flower"),
    "dining table": ("table",),
}
"""Class to words that speak of it but are no names of it (a class "man" is not a "woman")."""

_OTHERS: tuple[str, ...] = (
    *("hot dog", "corn dog", "dog house", "sheep dog", "teddy bear", "dirt bike", "motorbike"),
    *(f"{kind} plant" for kind in ("power", "nuclear", "industrial", "chemical", "treatment")),
    *("bird cage", "bird house", "bird bath", "bird feeder", "boat house", "cable car"),
    *("rocking horse", "sea horse", "saw horse", "chair lift", "child seat", "baby carriage"),
)
"""Things named by the word of another: a mention inside one of them is none ("hot dog")."""

_APART: dict[str, str] = {
    word.replace(" ", ""): word
    for word in (
        *("motor bike", "motor cycle", "air plane", "aero plane", "sail boat", "row boat"),
        *("speed boat", "motor boat", "arm chair", "high chair", "deck chair", "house plant"),
        *("surf board", "skate board", "snow board", "key board", "hand bag", "suit case"),
        *("tooth brush", "police man", "police woman", "fire man", "bull dog", "mini bus"),
    )
}
"""Words that are also written as two."""

_IRREGULAR: dict[str, tuple[str, ...]] = {
    "person": ("people", "persons"),
    "bus": ("buses", "busses"),
    "child": ("children",),
    "mouse": ("mice",),
    "goose": ("geese",),
    "tooth": ("teeth",),
    "foot": ("feet",),
    "ox": ("oxen",),
    **{f"{stem}man": (f"{stem}mans",) for stem in ("hu", "ger", "ro", "otto", "sha", "cai")},
    **{word: (word,) for word in ("sheep", "fish", "deer", "cattle", "aircraft", "scissors")},
    **{f"{stem}f": (f"{stem}ves",) for stem in ("cal", "hal", "lea", "loa", "shel", "wol")},
    **{f"{stem}fe": (f"{stem}ves",) for stem in ("kni", "li", "wi")},
}

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese: no space stands between words."""

_BEFORE, _BEHIND = rf"(?<![^\W{_UNSPACED}])", rf"(?![^\W{_UNSPACED}])"


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

    A place inside a longer name, of another listed class or of a thing that borrows the word,
    belongs to that alone ("hot dog" is no dog), and so does a word that is another listed class's
    own name.

    Raises:
        ValueError: If a class name is empty.

    >>> [m.start for m in find_mentions("Two buses and a car on a carpet", ["car"])["car"]]
    [16]
    """
    normal, places = _normalized(text)
    lower = normal.lower()
    found = {
        name: [
            Mention(*_place(m, places), rank)
            for rank, words in _words(name)
            for m in words.find(normal, lower)
        ]
        for name in class_names
    }
    others = [Mention(*_place(m, places), 2) for m in _borrowed().find(normal, lower)]
    return {
        name: tuple(
            sorted(m for m in own if not any(map(m.yields_to, [*_others(found, name), *others])))
        )
        for name, own in found.items()
    }


def mentioned_classes(text: str, class_names: Sequence[str]) -> tuple[str, ...]:
    """The classes that a text speaks of, in the order of ``class_names``.

    >>> mentioned_classes("a woman on a couch", ["sofa", "dog", "person"])
    ('sofa', 'person')
    """
    return tuple(name for name, places in find_mentions(text, class_names).items() if places)


def synonyms(class_name: str) -> tuple[str, ...]:
    """The names in a class name, as ADE20K writes several into one; words apart, no underscores.

    >>> synonyms("door;double_door"), synonyms("bed ")
    (('door', 'double door'), ('bed',))
    """
    names = (re.sub(r"[\s_]+", " ", name).strip() for name in re.split("[;,]", class_name))
    return tuple(name for name in names if name)


def spoken(class_name: str) -> str:
    """A class name as one says it: the first of its synonyms, words apart.

    >>> spoken("tvmonitor"), spoken("traffic_light"), spoken("door, double door")
    ('tv monitor', 'traffic light', 'door')
    """
    words = next(iter(synonyms(class_name)), "")
    joined = _joined(words)
    return next((a for row in ALIASES for a in row if " " in a and _joined(a) == joined), words)


def plurals(word: str) -> tuple[str, ...]:
    """Plural forms of an English noun, by rule or by table.

    >>> plurals("bus"), plurals("pony"), plurals("knife"), plurals("policeman")
    (('buses', 'busses'), ('ponies',), ('knives',), ('policemen',))
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("man"):
        return (f"{word[:-3]}men",)
    if re.search(r"(s|x|z|ch|sh)$", word):
        return (f"{word}es",)
    if re.search(r"[^aeiou]y$", word):
        return (f"{word[:-1]}ies",)
    return (f"{word}s", f"{word}es") if word.endswith("o") else (f"{word}s",)


def _normalized(text: str) -> tuple[str, list[tuple[int, int]] | None]:
    """A text in NFKC form and the place of each of its characters; None: where they stand."""
    if text.isascii() or unicodedata.is_normalized("NFKC", text):
        return text, None
    starts = [
        i
        for i, c in enumerate(text)
        if not (unicodedata.combining(c) or "\u1160" <= c <= "\u11ff")  # parts of a syllable
    ]
    normal, places = "", []
    for start, end in zip([0, *starts[1:]], [*starts[1:], len(text)], strict=True):
        piece = unicodedata.normalize("NFKC", text[start:end])
        normal += piece
        places += [(start, end)] * len(piece)
    return normal, places


def _place(found: re.Match[str], places: list[tuple[int, int]] | None) -> tuple[int, int]:
    start, end = found.span()
    return (start, end) if places is None else (places[start][0], places[end - 1][1])


def _others(found: dict[str, list[Mention]], name: str) -> list[Mention]:
    return [m for other, places in found.items() if other != name for m in places]


def _joined(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


@dataclass(frozen=True, slots=True)
class _Words:
    """Words as a pattern, and how each begins: most texts hold no beginning, seen at once."""

    beginnings: tuple[str, ...]
    pattern: re.Pattern[str]

    def find(self, text: str, lower: str) -> Iterable[re.Match[str]]:
        if any(beginning in lower for beginning in self.beginnings):
            return self.pattern.finditer(text)
        return ()


@lru_cache(maxsize=4096)
def _words(class_name: str) -> tuple[tuple[int, _Words], ...]:
    """Ranked words of a class: its own name, its aliases, its kinds."""
    names = synonyms(unicodedata.normalize("NFKC", class_name))
    if not names:
        raise ValueError("a class name must not be empty. Got an empty string.")
    own = spoken(names[0])
    known = [row for row in ALIASES if {*map(_joined, names)} & {*map(_joined, row)}]
    aliases = dict.fromkeys(
        alias for row in (names[1:], *known) for alias in row if _joined(alias) != _joined(own)
    )
    heads = (own, *names[1:], *(row[0] for row in known))
    kinds = dict.fromkeys(kind for head in heads for kind in KINDS.get(head.lower(), ()))
    ranked = enumerate(((own,), tuple(aliases), tuple(kinds)))
    return tuple((rank, _any_of(words)) for rank, words in ranked if words)


@lru_cache(maxsize=1)
def _borrowed() -> _Words:
    return _any_of(_OTHERS)


def _any_of(names: tuple[str, ...]) -> _Words:
    """Any of the names, singular or plural, as whole words; spaces may be missing or hyphens."""
    forms = sorted({form for name in names for form in _forms(name.lower())}, key=len)[::-1]
    spaced = [form for form in forms if not re.search(f"^[{_UNSPACED}]|[{_UNSPACED}]$", form)]
    bounded = rf"{_BEFORE}(?:{'|'.join(map(_loose, spaced))}){_BEHIND}" if spaced else ""
    ways = [bounded, *map(_loose, (form for form in forms if form not in spaced))]
    pattern = re.compile("|".join(filter(None, ways)), re.IGNORECASE)
    return _Words(tuple({form.split()[0] for form in forms}), pattern)


def _loose(form: str) -> str:
    return r"[\s_-]*".join(map(re.escape, form.split()))


def _forms(name: str) -> tuple[str, ...]:
    """A name in the singular and in the plural, as two words where it may be written so."""
    apart = _APART.get(name, name)
    *front, last = apart.split()
    return (apart, *(" ".join([*front, plural]) for plural in plurals(last)))
