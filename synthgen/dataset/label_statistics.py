"""How many pixels of which class, and how sure: of one image, of a shard, of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from synthgen.types import BACKGROUND, IGNORE, LabelMap


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """What one image's semantic map holds."""

    class_names: tuple[str, ...]  # classes that have pixels
    pixels: tuple[int, ...]  # pixels of each
    scores: tuple[float, ...]  # mean score of the pixels of each
    not_found: tuple[str, ...]  # prompted classes without a pixel
    background: int  # pixels of the background
    undecided: int  # pixels of no decided class


def count_labels(labels: LabelMap) -> LabelCounts:
    """Pixels and mean scores of each class of an image.

    >>> import numpy as np
    >>> semantic = np.array([[1, 1, 0, 255]], dtype=np.uint8)
    >>> none = np.zeros(0)
    >>> scores = np.array([[0.5, 0.7, 0.9, 0.1]])
    >>> labels = LabelMap(("cat",), semantic, scores, none.astype(np.uint8), none, ())
    >>> count_labels(labels).pixels, count_labels(labels).scores
    ((2,), (0.6,))
    """
    found = [
        (name, int(where.sum()), round(float(labels.scores[where].mean()), 4))
        for label, name in enumerate(labels.class_names, start=1)
        if (where := labels.semantic == label).any()
    ]
    names, pixels, scores = zip(*found, strict=True) if found else ((), (), ())
    background, undecided = ((labels.semantic == label).sum() for label in (BACKGROUND, IGNORE))
    rest = (labels.not_found, int(background), int(undecided))
    return LabelCounts(names, pixels, scores, *rest)


def summarize_counts(counts: Iterable[LabelCounts]) -> dict[str, Any]:
    """Statistics over images.

    Returns:
        ``images``, ``background`` and ``undecided`` (pixels), and under ``classes`` by name:
        ``images`` and ``pixels`` that show it, ``score`` (mean over those pixels), ``not_found``
        (images that were to show it and do not).
    """
    return merge_statistics(map(of_one, counts))


def merge_statistics(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics of several shards as one.

    >>> cat = {"images": 1, "pixels": 10, "score": 0.5, "not_found": 0}
    >>> part = {"images": 1, "background": 4, "undecided": 2, "classes": {"cat": cat}}
    >>> merge_statistics([part, part])["classes"]["cat"]["pixels"]
    20
    """
    return rounded_statistics(sum_statistics(parts))


def sum_statistics(
    parts: Iterable[Mapping[str, Any]], before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Sums over parts, which may be gone on with; each ``score`` is that of all pixels together.

    Args:
        parts: Statistics of images or shards.
        before: Sums to go on with, from an earlier call; they are left as they are.
    """
    before = before or {"images": 0, "background": 0, "undecided": 0, "classes": {}}
    totals = {name: before[name] for name in ("images", "background", "undecided")}
    classes = {name: dict(row) for name, row in before["classes"].items()}
    for part in parts:
        for name in totals:
            totals[name] += int(part[name])
        for name, row in part["classes"].items():
            sums = classes.setdefault(
                name, {"images": 0, "pixels": 0, "score": 0.0, "not_found": 0}
            )
            sums["score"] += row["score"] * row["pixels"]
            for column in ("images", "pixels", "not_found"):
                sums[column] += row[column]
    return {**totals, "classes": dict(sorted(classes.items()))}


def rounded_statistics(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics from sums: the mean score of each class in place of that of all its pixels."""
    classes = {
        name: {**row, "score": round(row["score"] / row["pixels"], 4) if row["pixels"] else 0.0}
        for name, row in sums["classes"].items()
    }
    return {**sums, "classes": classes}


def of_one(counts: LabelCounts) -> dict[str, Any]:
    """Statistics of one image."""
    rows = zip(counts.class_names, counts.pixels, counts.scores, strict=True)
    found = {
        name: {"images": 1, "pixels": pixels, "score": score, "not_found": 0}
        for name, pixels, score in rows
    }
    missed = {"images": 0, "pixels": 0, "score": 0.0, "not_found": 1}
    classes = {**{name: dict(missed) for name in counts.not_found}, **found}
    totals = {"images": 1, "background": counts.background, "undecided": counts.undecided}
    return {**totals, "classes": classes}
