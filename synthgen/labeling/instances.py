"""Instances: connected components of what a label map gives to one class, taken apart at joints.

A component is 8-connected. Where two objects of one class touch it holds both, and the clusters
tell: at some k each of them is a connected piece of its own. But so are the roof and the wall of a
house. Two objects of one class look alike, though, and meet in a notch. So a component falls into
the pieces of a k if

- 2 to 4 of them have at least `LEAST_SHARE` of it each, together `COVERED`,
- what is left going to the nearest one, they fill their convex hulls better than the component
  does, by `NOTCH` on average,
- any two of them, moved and scaled onto each other, mirrored or not, have an IoU of `ALIKE`.

Where several k allow it, the one whose pieces fill their hulls best decides. Limits, known and not
hidden: half of what touches stays together, an object that something occludes into two pieces is
two, and components below 0.05 % of the image are none at all (they stay in the semantic map).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool
from scipy import ndimage
from scipy.spatial import ConvexHull

from synthgen.segmentation.masks import label_components
from synthgen.types import BACKGROUND, IGNORE, LabelMap, MaskSet

MIN_AREA = 0.0005
"""Share of the image below which a component is no instance: `MaskConfig.min_area`'s default."""

LEAST_SHARE, COVERED, MOST_PIECES = 0.15, 0.7, 4
"""Of a component: the least share of a piece, of all pieces, and how many there may be."""

NOTCH = 0.06
"""Gain in solidity, the share of its convex hull that a region fills."""

ALIKE = 0.6
"""Least IoU of two pieces laid onto each other; with the others chosen on tuning scenes."""

Mask = Bool[np.ndarray, "height width"]


@dataclass(frozen=True, slots=True)
class Instance:
    """One object of a class, as far as pixels can tell.

    Args:
        label: Its class in the label map, from 1.
        mask: Its pixels.
        score: Mean score of its pixels, 0 to 1.
    """

    label: int
    mask: Mask
    score: float


def find_instances(
    label_map: LabelMap, mask_set: MaskSet | None = None, min_area: float = MIN_AREA
) -> tuple[Instance, ...]:
    """Instances of every class, largest first; equal ones by class, then by first pixel.

    Args:
        label_map: Semantic map and scores.
        mask_set: The image's masks, whose pieces tell apart what touches; None: components.
        min_area: Smaller components are left out (share of the image).

    >>> semantic = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.uint8)
    >>> scores, none = np.full((2, 3), 0.5), np.zeros(0)
    >>> labels = LabelMap(("cat",), semantic, scores, none.astype(np.uint8), none, ())
    >>> [(i.label, i.score, int(i.mask.sum())) for i in find_instances(labels)]
    [(1, 0.5, 1), (1, 0.5, 1)]
    """
    least = max(1.0, min_area * label_map.semantic.size)
    found = [
        Instance(label, piece, float(label_map.scores[piece].mean()))
        for label, component in _components(label_map, least)
        for piece in ([component] if mask_set is None else split_touching(component, mask_set))
    ]
    return tuple(sorted(found, key=lambda instance: -int(instance.mask.sum())))


def _components(label_map: LabelMap, least: float) -> Iterator[tuple[int, Mask]]:
    for label in np.unique(label_map.semantic).tolist():
        if label in (BACKGROUND, IGNORE):
            continue
        components, _ = label_components(label_map.semantic == label)
        areas = np.bincount(components.ravel())[1:]
        for number in np.flatnonzero(areas >= least) + 1:
            yield label, components == number


def split_touching(component: Mask, mask_set: MaskSet) -> list[Mask]:
    """The objects that a connected component of one class holds; itself where it is one."""
    area = np.count_nonzero(component)
    window = ndimage.find_objects(component.astype(np.uint8))[0]
    inside = component[window]
    most, best = solidity(inside) + NOTCH, [inside]
    cut = mask_set.masks[:, window[0], window[1]] & inside
    large = [np.count_nonzero(mask) >= LEAST_SHARE * area for mask in cut]
    owners: defaultdict[int, list[int]] = defaultdict(list)
    for index in np.flatnonzero(large).tolist():
        for k in {k for k, _ in mask_set.members[index]}:
            owners[k].append(index)
    for _, own in sorted(owners.items()):
        pieces = _pieces(cut[own], LEAST_SHARE * area)
        covered = sum(np.count_nonzero(piece) for piece in pieces)
        if not 2 <= len(pieces) <= MOST_PIECES or covered < COVERED * area:
            continue
        objects = _share_out(inside, pieces)
        filled = sum(np.count_nonzero(one) * solidity(one) for one in objects) / area
        if filled >= most and all(likeness(a, b) >= ALIKE for a, b in combinations(objects, 2)):
            most, best = filled, objects
    whole = []
    for one in best:
        mask = np.zeros_like(component)
        mask[window] = one
        whole.append(mask)
    return whole


def _pieces(masks: Bool[np.ndarray, "mask height width"], least: float) -> list[Mask]:
    """Connected pieces of at least so many pixels; one that overlaps an earlier one is none."""
    pieces: list[Mask] = []
    for mask in masks:
        components, _ = label_components(mask)
        areas = np.bincount(components.ravel())[1:]
        for number in np.flatnonzero(areas >= least) + 1:
            piece = components == number
            if not any((piece & other).any() for other in pieces):
                pieces.append(piece)
    return pieces


def _share_out(component: Mask, pieces: Sequence[Mask]) -> list[Mask]:
    """The component, each pixel with the nearest piece."""
    far = np.stack([ndimage.distance_transform_edt(~piece) for piece in pieces])
    nearest = far.argmin(0)
    return [component & (nearest == number) for number in range(len(pieces))]


def solidity(mask: Mask) -> float:
    """The share of its convex hull that a region fills.

    >>> solidity(np.ones((3, 4), dtype=bool))
    1.0
    """
    y = np.flatnonzero(mask.any(1))  # a row's first and last pixel span what is between them
    left, right = mask[y].argmax(1), mask.shape[1] - mask[y, ::-1].argmax(1)
    corners = np.concatenate([np.stack([y + a, x], 1) for a in (0, 1) for x in (left, right)])
    return round(float(mask.sum() / ConvexHull(corners).volume), 9)


def likeness(a: Mask, b: Mask) -> float:
    """IoU of two regions, center on center and scaled to one area, b mirrored if that is better.

    >>> square, bar = np.zeros((2, 20, 20), dtype=bool)
    >>> square[5:11, 5:11] = bar[5:7, 1:19] = True
    >>> likeness(square, square), likeness(square, bar) < 0.5
    (1.0, True)
    """
    one, other = _centered(a), _centered(b)
    both = (other, other[:, ::-1])
    return max(float((one & view).sum() / (one | view).sum()) for view in both)


def _centered(mask: Mask, side: int = 24) -> Bool[np.ndarray, "side side"]:
    """The region on a grid that reaches 1.2 times the root of its area from its center."""
    center = [places.mean() for places in np.nonzero(mask)]
    grid = ((np.arange(side) + 0.5) / side * 2.4 - 1.2) * np.sqrt(mask.sum())
    rows, columns = (
        np.clip(np.round(middle + grid).astype(int) + 1, 0, length + 1)
        for middle, length in zip(center, mask.shape, strict=True)
    )
    view: Bool[np.ndarray, "side side"] = np.pad(mask, 1)[rows[:, None], columns]
    return view
