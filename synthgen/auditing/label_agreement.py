"""Whether a sample's labels are what an auditor that knows classes sees: IoU class by class.

Only classes that the auditor can name are compared, by name, synonym and spelling. Undecided
pixels (255) count for nobody. A class that was prompted, that the auditor sees and that no pixel
is labeled with has an IoU of 0: its object was left out, or labeled as another class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from synthgen.prompts.mentions import find_mentions, spoken
from synthgen.segmentation.packed import PackedMasks
from synthgen.types import IGNORE

LEAST_SHARE = 0.002
"""Of the image: what neither side has more of is too small to be compared."""

KIND = 2
"""Rank of a mention from which it is no name of the class (a man is a person, not its name)."""


def label_metric(class_name: str) -> str:
    """Name of the metric of one class.

    >>> label_metric("car")
    'label_iou of car'
    """
    return f"label_iou of {class_name}"


def known_classes(
    class_names: Sequence[str], auditor_names: Sequence[str]
) -> dict[str, frozenset[str]]:
    """Of a dataset's classes those that an auditor knows, and what it calls them.

    >>> known_classes(["tvmonitor", "man"], ["television, tv", "person", "door;double door"])
    {'tvmonitor': frozenset({'television, tv'})}
    """
    found: dict[str, frozenset[str]] = {}
    for name in class_names:
        text = spoken(name)
        places = {theirs: find_mentions(text, [theirs])[theirs] for theirs in auditor_names}
        same = frozenset(
            theirs
            for theirs, mentions in places.items()
            if any((m.start, m.end) == (0, len(text)) and m.rank < KIND for m in mentions)
        )
        found |= {name: same} if same else {}
    return found


def label_agreement(
    semantic: UInt8[np.ndarray, "height width"],
    ids: Mapping[str, int],
    prompted: Sequence[str],
    seen: PackedMasks,
    labels: Sequence[str],
    known: Mapping[str, frozenset[str]],
) -> dict[str, float]:
    """IoU of each prompted class that is compared, and their mean and least value.

    Args:
        semantic: The sample's labels.
        ids: Ids of classes.json by name.
        prompted: The classes of its prompt.
        seen: The masks that the auditor sees in its image.
        labels: What it calls them.
        known: See `known_classes`.
    """
    decided = semantic != IGNORE
    metrics: dict[str, float] = {}
    for name in prompted:
        if name not in known or name not in ids:
            continue
        ours = semantic == ids[name]
        rows = [row for row, label in enumerate(labels) if label in known[name]]
        theirs = seen.union(rows) & decided
        union = int((ours | theirs).sum())
        if union >= LEAST_SHARE * semantic.size:
            metrics[label_metric(name)] = float((ours & theirs).sum()) / union
    if metrics:
        values = [*metrics.values()]
        metrics |= {"label_mean_iou": float(np.mean(values)), "label_least_iou": min(values)}
    return metrics
