"""The card of the embedded weights, and the check that the files are the ones it describes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

CARD_NAME = "card.json"
SHIPPED = Path(__file__).parent / "weights"
CURVE_POINTS = 60
"""Points that a card's loss curve is thinned to."""


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder` but the card, by relative path with slashes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CARD_NAME)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def thinned(curve: Sequence[Any]) -> list[Any]:
    """Every n-th point of a curve, so that at most `CURVE_POINTS` remain.

    >>> thinned(range(121))[:3]
    [0, 3, 6]
    """
    return list(curve[:: max(1, -(-len(curve) // CURVE_POINTS))])


@contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """A path for what takes the place of `folder` at the end, unless something is raised."""
    draft = folder.with_name(folder.name + ".new")
    shutil.rmtree(draft, ignore_errors=True)
    yield draft
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def read_card(folder: Path = SHIPPED) -> dict[str, Any]:
    """Card of the weights in `folder`.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = folder / CARD_NAME
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} must hold the embedded weights with a {CARD_NAME}. Got none; reinstall the "
            "package, or run `python -m synthgen.lab.train export`."
        )
    card: dict[str, Any] = json.loads(path.read_text())
    return card


def record_quality(figures: Mapping[str, float], folder: Path = SHIPPED) -> None:
    """Write measured figures into the card; the card itself carries no digest."""
    card = {**read_card(folder), "quality": dict(figures)}
    (folder / CARD_NAME).write_text(json.dumps(card, indent=1))


@cache
def weights_dir(folder: Path = SHIPPED) -> Path:
    """Folder of the embedded pipeline, after comparing every file with the card, once a process.

    Raises:
        FileNotFoundError: If there is no card.
        ValueError: If a file is missing or differs.
    """
    expected: dict[str, str] = read_card(folder)["sha256"]
    for name, digest in expected.items():
        path = folder / name
        got = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no file"
        if got != digest:
            raise ValueError(
                f"{name} in {folder} must have sha256 {digest}. Got {got}; reinstall the package "
                "or export the weights again."
            )
    return folder


def recipe_dir(folder: Path, recipe: str) -> Path:
    """`weights_dir` of a model that one recipe makes; where there is none, how to make it.

    Raises:
        ValueError: If there is none, or a file is missing or differs.
    """
    if not (folder / CARD_NAME).is_file():
        raise ValueError(
            f"{folder} must hold the weights of scenes-{recipe} with a {CARD_NAME}. Got none; run "
            f"`python -m synthgen.lab.train {recipe} --steps N`, then `export-{recipe}`."
        )
    return weights_dir(folder)
