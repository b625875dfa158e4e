"""Splits by a hash of the prompt: all images of one prompt are on one side. Photos are split by
the hash of their bytes, whatever they are called.

A sample's split depends on its prompt and the fractions alone, so it stays when the dataset
grows. Fractions are met on average, not exactly: counts stand in the export's card.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Any

from synthgen.types import Photo

NAMES = ("train", "val", "test")


def parse_split(text: str) -> tuple[Fraction, ...]:
    """The shares of train, val and test.

    Args:
        text: One to three decimals with slashes between them; their sum is 1.

    Raises:
        ValueError: If it is anything else.

    >>> [str(share) for share in parse_split("0.9/0.1")]
    ['9/10', '1/10']
    """
    try:
        shares = tuple(Fraction(part.strip()) for part in text.split("/"))
    except (ValueError, ZeroDivisionError):
        shares = ()
    if not 1 <= len(shares) <= len(NAMES) or min(shares) <= 0 or sum(shares) != 1:
        raise ValueError(
            f"split must be one to three positive shares that sum to 1, such as 0.9/0.1 (train, "
            f"val) or 0.8/0.1/0.1 (train, val, test). Got {text!r:.60}."
        )
    return shares


def split_names(shares: tuple[Fraction, ...]) -> tuple[str, ...]:
    """Names of the splits in use.

    >>> split_names((Fraction(9, 10), Fraction(1, 10)))
    ('train', 'val')
    """
    return NAMES[: len(shares)]


def assign_split(prompt: str, shares: tuple[Fraction, ...]) -> str:
    """The split of all images of a prompt.

    Args:
        prompt: The prompt's text; two ids with one text are one prompt.
        shares: See `parse_split`.

    >>> assign_split("a photo of a cat", (Fraction(1),))
    'train'
    """
    number = int.from_bytes(hashlib.blake2b(prompt.encode("utf-8"), digest_size=8).digest(), "big")
    limits = accumulate(shares)
    return next(n for n, limit in zip(NAMES, limits, strict=False) if number < limit * 2**64)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a split by prompts.

    Raises:
        ValueError: If the shares have no such side.
    """

    name: str
    shares: str

    def __post_init__(self) -> None:
        names = split_names(parse_split(self.shares))
        if self.name not in names:
            raise ValueError(
                f"split must be one of {', '.join(names)} with the shares {self.shares}. Got "
                f"{self.name!r:.40}."
            )

    def holds(self, group: str) -> bool:
        """Whether the images of a group are on this side; see `split_group`."""
        return assign_split(group, parse_split(self.shares)) == self.name


def split_group(prompt: str, photo: Photo | None) -> str:
    """What is never split: the images of a text, or copies of one photo."""
    return prompt if photo is None else f"photo {photo.sha256}"


def photo_of(info: Mapping[str, Any]) -> Photo | None:
    """The photo that a sample's json says it is of; None: it was drawn."""
    found = info.get("provenance")
    found = found.get("photo") if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return None
    return Photo(str(found.get("name", "")), str(found.get("sha256", "")))
