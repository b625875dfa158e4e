"""The objects of a sample as exports give them: by class, or every mask of the hierarchy.

Objects of classes do not overlap: what is below the least area joins what it borders on most, in
the semantic map as among the objects, so that no format loses a pixel. Masks overlap: what is
below it is left out, and its children hang below the next larger mask that holds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from synthgen.export.format import Instance
from synthgen.segmentation.masks import label_components
from synthgen.types import BACKGROUND, IGNORE

_EIGHT = np.ones((3, 3), dtype=bool)
_Map = UInt8[np.ndarray, "height width"]


def mask_objects(
    entries: Sequence[Mapping[str, Any]],
    masks: Bool[np.ndarray, "mask height width"],
    classes: Mapping[int, str],
    least: float,
    least_score: float,
) -> tuple[Instance, ...]:
    """Every mask of at least ``least`` pixels, each with the position of its parent.

    Args:
        entries: Segments of a sample, largest first; ``parent`` is the number of an earlier one.
        classes: The last one is that of masks without a class, or of one that scores less than
            ``least_score``.

    Raises:
        ValueError: If a parent is no earlier mask.
    """
    numbers = {name: number for number, name in classes.items()}
    *_, bare = classes
    found: list[Instance] = []
    above: list[int | None] = []  # position among those found: the mask itself or its ancestor
    for entry, mask in zip(entries, masks, strict=True):
        if entry["parent"] > len(above):
            raise ValueError(f"parent must be an earlier mask. Got {entry['parent']}.")
        parent = above[entry["parent"] - 1] if entry["parent"] else None
        if mask.sum() < max(1.0, least):
            above.append(parent)
            continue
        above.append(len(found))
        label, score = entry["label"], float(entry["label_score"])
        sure = label in numbers and score >= least_score
        found.append(Instance(*((numbers[label], score) if sure else (bare, 1.0)), mask, parent))
    return tuple(found)


def join_small(
    semantic: _Map, instances: tuple[Instance, ...], least: float
) -> tuple[_Map, tuple[Instance, ...]]:
    """Objects and specks of fewer than ``least`` pixels join what they border on most.

    The smallest first; what has grown to ``least`` pixels by then stays.

    >>> speck = Instance(2, 1.0, np.array([[False, True, False]]))
    >>> join_small(np.array([[1, 2, 1]], dtype=np.uint8), (speck,), 2.0)
    (array([[1, 1, 1]], dtype=uint8), ())
    """
    objects = np.zeros(semantic.shape, dtype=np.int64)
    for number, instance in enumerate(instances, start=1):
        objects[instance.mask] = number
    for label in set(np.unique(semantic[objects == 0]).tolist()) - {BACKGROUND, IGNORE}:
        specks, _ = label_components((semantic == label) & (objects == 0))
        objects = np.where(specks > 0, specks + objects.max(), objects)
    semantic = semantic.copy()
    areas = np.bincount(objects.ravel())
    small = [number for number in range(1, len(areas)) if areas[number] < least]
    for number in sorted(small, key=lambda number: int(areas[number])):
        region = objects == number
        border = ndimage.binary_dilation(region, structure=_EIGHT) & ~region
        if region.sum() < least and border.any():
            pairs = np.stack([semantic[border].astype(np.int64), objects[border]])
            found, counts = np.unique(pairs, axis=1, return_counts=True)
            semantic[region], objects[region] = found[:, counts.argmax()]
    grown = (replace(item, mask=objects == i) for i, item in enumerate(instances, start=1))
    return semantic, tuple(item for item in grown if item.mask.sum() >= max(1.0, least))
