"""Instances: connected components of what a label map gives to one class.

A component is 8-connected. Limits, known and not hidden: two objects of one class that touch are
one instance, an object that something occludes into two pieces is two, and components below
0.05 % of the image are none at all (they stay in the semantic map).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from synthgen.segmentation.masks import label_components
from synthgen.types import BACKGROUND, IGNORE, LabelMap

MIN_AREA = 0.0005
"""Share of the image below which a component is no instance: `MaskConfig.min_area`'s default."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One object of a class, as far as pixels can tell.

    Args:
        label: Its class in the label map, from 1.
        mask: Its pixels.
        score: Mean score of its pixels, 0 to 1.
    """

    label: int
    mask: Bool[np.ndarray, "height width"]
    score: float


def find_instances(label_map: LabelMap, min_area: float = MIN_AREA) -> tuple[Instance, ...]:
    """Instances of every class, largest first; equal ones by class, then by first pixel.

    Args:
        label_map: Semantic map and scores.
        min_area: Smaller components are left out (share of the image).

    >>> semantic = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.uint8)
    >>> scores, none = np.full((2, 3), 0.5), np.zeros(0)
    >>> labels = LabelMap(("cat",), semantic, scores, none.astype(np.uint8), none, ())
    >>> [(i.label, i.score, int(i.mask.sum())) for i in find_instances(labels)]
    [(1, 0.5, 1), (1, 0.5, 1)]
    """
    found = list(_components(label_map, max(1.0, min_area * label_map.semantic.size)))
    return tuple(sorted(found, key=lambda instance: -int(instance.mask.sum())))


def _components(label_map: LabelMap, least: float) -> Iterator[Instance]:
    for label in np.unique(label_map.semantic).tolist():
        if label in (BACKGROUND, IGNORE):
            continue
        components, num = label_components(label_map.semantic == label)
        for number in range(1, num + 1):
            mask = components == number
            if mask.sum() >= least:
                yield Instance(label, mask, float(label_map.scores[mask].mean()))
