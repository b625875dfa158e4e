"""Prompts for the embedded model, in which classes, colors and backgrounds come equally often.

    python -m synthgen.lab.world.prompt_list > prompts/scenes.jsonl
    python -m synthgen.lab.world.prompt_list --name demo --num 48 --objects 1 > prompts/demo.jsonl

Half of the prompts name one object, the others two to four of different classes; with
``--objects 1`` all name one, which is what the model draws best. Every prompt is of the renderer's
grammar and keeps its rules of which colors go together.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from synthgen.embedded.vocabulary import BACKGROUNDS, CLASSES, COLORS, PATTERNS, SIMILAR_COLORS
from synthgen.lab.world.captions import CaptionMeaning, ObjectPhrase, compose_caption
from synthgen.types import Prompt

OBJECT_COUNTS = {1: 10, 2: 5, 3: 3, 4: 2}
"""Number of objects -> prompts out of 20."""

Card = TypeVar("Card", bound=Hashable)


class _Deck(Generic[Card]):
    """Cards in shuffled rounds: however many are dealt, all come about equally often."""

    def __init__(self, cards: Sequence[Card], rng: random.Random):
        self._cards, self._rng, self._rest = list(cards), rng, list[Card]()

    def deal(self, excluded: Collection[Card] = ()) -> Card:
        """The next card that is not excluded; the ones passed over stay on top."""
        assert not set(self._cards) <= set(excluded), "every card is excluded"
        while all(card in excluded for card in self._rest):
            self._rest += self._rng.sample(self._cards, len(self._cards))
        return self._rest.pop(next(i for i, c in enumerate(self._rest) if c not in excluded))


class _Dealer:
    """The decks of one prompt list."""

    def __init__(self, seed: int, object_counts: Mapping[int, int]):
        rng = random.Random(seed)
        patterns = [name for name, share in PATTERNS.items() for _ in range(round(100 * share))]
        counts = [number for number, times in object_counts.items() for _ in range(times)]
        self.counts, self.patterns = _Deck(counts, rng), _Deck(patterns, rng)
        self.classes, self.colors = _Deck(CLASSES, rng), _Deck(list(COLORS), rng)
        self.backgrounds = _Deck(list(BACKGROUNDS), rng)

    def meaning(self) -> CaptionMeaning:
        """Objects of different classes on a background."""
        background = self.backgrounds.deal()
        objects: list[ObjectPhrase] = []
        for _ in range(self.counts.deal()):
            name = self.classes.deal([item.class_name for item in objects])
            pattern = self.patterns.deal()
            objects.append(ObjectPhrase(name, self._colors(pattern, background), pattern))
        return CaptionMeaning(tuple(objects), background)

    def _colors(self, pattern: str, background: str) -> tuple[str, ...]:
        """One color that the background does not have; patterns add one that differs clearly."""
        first = self.colors.deal([BACKGROUNDS[background].palette])
        if pattern == "solid":
            return (first,)
        unlike = {first, *(c for pair in SIMILAR_COLORS if first in pair for c in pair)}
        return (first, self.colors.deal(unlike))


def scene_prompts(
    num: int = 600,
    seed: int = 0,
    object_counts: Mapping[int, int] = OBJECT_COUNTS,
    name: str = "scenes",
) -> list[Prompt]:
    """Different prompts in the renderer's grammar, with ids ``scenes-0001`` and on.

    Args:
        num: How many.
        seed: Of the decks and of the wording.
        object_counts: Number of objects to how often prompts name so many.
        name: What the ids begin with.
    """
    dealer, wording = _Dealer(seed, object_counts), np.random.default_rng(seed)
    meanings: dict[str, CaptionMeaning] = {}
    while len(meanings) < num:
        meaning = dealer.meaning()
        meanings.setdefault(compose_caption(meaning, wording), meaning)
    return [
        Prompt(f"{name}-{i:04d}", text, tuple(item.class_name for item in meaning.objects))
        for i, (text, meaning) in enumerate(meanings.items(), start=1)
    ]


def jsonl(prompts: Iterable[Prompt]) -> str:
    """Prompts as the lines of a prompt file."""
    rows = ({"id": p.id, "prompt": p.text, "classes": list(p.class_names)} for p in prompts)
    return "".join(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    """Print the list as JSONL."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--num", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--objects", type=int, help="objects per prompt; default: one to four")
    parser.add_argument("--name", default="scenes", help="what the ids begin with")
    args = parser.parse_args()
    counts = OBJECT_COUNTS if args.objects is None else {args.objects: 1}
    print(jsonl(scene_prompts(args.num, args.seed, counts, args.name)), end="")


if __name__ == "__main__":
    main()
