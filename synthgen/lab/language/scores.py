"""What predictions of classes are worth, and LS's figures beside it.

Protocol of LS section 4.1: classes are compared at 320 x 320, intersections and unions are summed
over images (mIoU). Table 3 asks which classes a prediction shows at all: precision and recall of
each class over images, averaged over classes. Background is a class where the data set has one,
but none of table 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from synthgen.lab.segment.rows import shown
from synthgen.lab.tables import escape, markdown_table
from synthgen.types import IGNORE

SIZE = (320, 320)
"""What predictions and annotations are compared at (LS section 4.1)."""

SCORES = {
    "miou": "mIoU",
    "precision": "AP",
    "recall": "AR",
    "seconds": "core-s",
    "megabytes": "peak MB",
}

_REPORTED = {
    "table 2": (
        "GEM",
        "GEMW",
        "AggGEM",
        "AggSD",
        "AggGEMW",
        "DiffSegClust",
        "SpecClust",
        "GTClust",
    ),
    "table 4": ("GEM", "AggGEM", "DiffSegClust", "SpecClust", "AggSD"),
}
PUBLISHED: Mapping[tuple[str, str], Mapping[str, float]] = {
    key: dict(zip(_REPORTED[table], values, strict=True))
    for key, table, values in (
        (("voc", "train"), "table 2", (0.558, 0.611, 0.566, 0.575, 0.607, 0.567, 0.572, 0.699)),
        (
            ("context", "train"),
            "table 2",
            (0.365, 0.505, 0.378, 0.438, 0.512, 0.367, 0.373, 0.449),
        ),
        (("voc", "val"), "table 4", (0.557, 0.567, 0.560, 0.571, 0.583)),
        (("context", "val"), "table 4", (0.373, 0.386, 0.374, 0.383, 0.451)),
        (("cocostuff-171", "val"), "table 4", (0.382, 0.396, 0.387, 0.393, 0.364)),
        (("cityscapes-27", "val"), "table 4", (0.104, 0.075, 0.076, 0.083, 0.112)),
    )
}
"""mIoU as reported by LS, MetaCLIP ViT-B/16 and SD 1.5."""


def resized(
    labels: Integer[np.ndarray, "_height _width"], size: tuple[int, int]
) -> Integer[np.ndarray, "height width"]:
    """A label map at another size: every pixel takes that of its place.

    >>> resized(np.array([[1, 2]]), (2, 4)).tolist()
    [[1, 1, 2, 2], [1, 1, 2, 2]]
    """
    rows, columns = (
        ((np.arange(out) + 0.5) * side / out).astype(np.int64)
        for out, side in zip(size, labels.shape, strict=True)
    )
    found: Integer[np.ndarray, "height width"] = labels[rows[:, None], columns]
    return found


def counts_of(
    truth: Int[np.ndarray, "height width"], predicted: Int[np.ndarray, "height width"]
) -> dict[str, list[int]]:
    """Per class pixels that are right, predicted, and true; of those that somebody labeled.

    >>> counts_of(np.array([[1, 1, 2, 255]]), np.array([[1, 2, 2, 2]]))
    {'1': [1, 1, 2], '2': [1, 2, 1]}
    """
    seen = truth != IGNORE
    truth, predicted = truth[seen], predicted[seen]
    return {
        str(number): [
            int(((truth == number) & (predicted == number)).sum()),
            int((predicted == number).sum()),
            int((truth == number).sum()),
        ]
        for number in sorted({*np.unique(truth).tolist(), *np.unique(predicted).tolist()})
    }


def summarize(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[int], background: Sequence[int] = ()
) -> dict[str, Any]:
    """Scores of one method over images.

    Args:
        rows: Per image ``counts`` (see `counts_of`), ``seconds``, ``megabytes``.
        classes: Numbers of the classes.
        background: Numbers that count for mIoU, too, but not for precision and recall.

    >>> row = {"counts": {"1": [1, 1, 2], "2": [1, 2, 1]}, "seconds": 1.0, "megabytes": 1.0}
    >>> found = summarize([row], [1, 2, 3])
    >>> found["miou"], found["precision"], found["recall"], found["per_class"]
    (0.5, 1.0, 1.0, {'1': 0.5, '2': 0.5})
    """
    per_class, precisions, recalls = {}, [], []
    for number in sorted({*classes, *background}):
        own = np.array([row["counts"].get(str(number), (0, 0, 0)) for row in rows])
        hits, predicted, true = own.sum(0).tolist()
        if predicted + true:
            per_class[str(number)] = hits / (predicted + true - hits)
        if number in background or not predicted + true:
            continue
        said, there = own[:, 1] > 0, own[:, 2] > 0
        precisions.append(float((said & there).sum() / max(1, said.sum())))
        if there.any():
            recalls.append(float((said & there).sum() / there.sum()))
    return {
        "miou": fmean(per_class.values()) if per_class else None,
        "precision": fmean(precisions) if precisions else None,
        "recall": fmean(recalls) if recalls else None,
        "seconds": fmean(row["seconds"] for row in rows),
        "megabytes": fmean(row["megabytes"] for row in rows),
        "per_class": per_class,
    }


def language_table(result: Mapping[str, Any]) -> str:
    """Markdown: methods with what LS reports beside them, and IoU per class."""
    table, settings = result["table"], result["settings"]
    head = [settings["data"], *SCORES.values(), "mIoU, LS"]
    lines = [
        [
            escape(name),
            *(shown(scores[key]) for key in SCORES),
            shown(result["published"].get(name)),
        ]
        for name, scores in table.items()
    ]
    classes = sorted({cls for s in table.values() for cls in s["per_class"]}, key=int)
    by_class = [
        [
            escape(result["names"].get(cls, cls)),
            *(shown(s["per_class"].get(cls)) for s in table.values()),
        ]
        for cls in classes
    ]
    of = f"{result['num']} images" + (f", {n} failed" if (n := len(result["failed"])) else "")
    return "\n\n".join(
        [
            f"{of}; {settings['clip']} and {settings['model']['card']}.",
            markdown_table(head, lines),
            markdown_table(["IoU", *map(escape, table)], by_class),
            "",
        ]
    )
