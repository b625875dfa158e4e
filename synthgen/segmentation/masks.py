"""From clusters to a hierarchy of masks (BL section 4.1: merge masks with a high IoU into one).

BL gives neither rule nor threshold. Here masks whose IoU reaches the threshold are linked, and
each connected group becomes one mask: the member of the smallest k, the first of equals (coarse
clusters are the least fragmented, and the choice does not depend on the order of the masks).
The representatives of two groups are never linked, so merging again changes nothing.

The hierarchy: the parent of a mask is the smallest larger mask that holds at least 95 % of it.
Masks of equal area cannot be each other's parents; of equal masks only one is left by merging.
"""

from __future__ import annotations

import numpy as np
import scipy  # its parts load when they are asked for
from jaxtyping import Bool, Int, UInt8

from synthgen.segmentation.packed import iou_matrix, pack_masks, shared_pixels
from synthgen.types import MaskSet

Members = tuple[tuple[int, int], ...]

MAX_MASKS = 254
"""Ids 1..254 of an 8-bit id map; 0 is unassigned, 255 is ignore."""


def build_masks(
    labels: UInt8[np.ndarray, "k height width"],
    ks: tuple[int, ...],
    *,
    merge_iou: float = 0.9,
    min_area: float = 0.0005,
    split_components: bool = False,
    fill_holes: bool = False,
    containment: float = 0.95,
) -> MaskSet:
    """Masks of all clusters, merged, cleaned and ordered largest first; see `segment.segment`."""
    masks, members = cluster_masks(labels, ks)
    if split_components:
        masks, members = connected_masks(masks, members)
    if fill_holes:
        masks = np.stack([scipy.ndimage.binary_fill_holes(mask) for mask in masks])
    areas = np.array([np.count_nonzero(mask) for mask in masks])  # a sum takes ten times as long
    large = areas >= max(1.0, min_area * masks[0].size)
    masks, members = masks[large], tuple(m for m, kept in zip(members, large, strict=True) if kept)
    masks, members = merge_by_iou(masks, members, merge_iou)
    order = sorted(range(len(masks)), key=lambda i: (-np.count_nonzero(masks[i]), members[i]))
    masks, members = masks[order], tuple(members[i] for i in order)
    return MaskSet(masks, members, find_parents(masks, containment))


def cluster_masks(
    labels: UInt8[np.ndarray, "k height width"], ks: tuple[int, ...]
) -> tuple[Bool[np.ndarray, "mask height width"], tuple[Members, ...]]:
    """One mask per cluster of every k, with the (k, cluster) it is; empty ones too.

    >>> masks, members = cluster_masks(np.array([[[0, 1]]], dtype=np.uint8), (2,))
    >>> masks.tolist(), members
    ([[[True, False]], [[False, True]]], (((2, 0),), ((2, 1),)))
    """
    masks = [label_map == c for k, label_map in zip(ks, labels, strict=True) for c in range(k)]
    return np.stack(masks), tuple(((k, c),) for k in ks for c in range(k))


def merge_by_iou(
    masks: Bool[np.ndarray, "mask height width"], members: tuple[Members, ...], threshold: float
) -> tuple[Bool[np.ndarray, "merged height width"], tuple[Members, ...]]:
    """One mask per connected group of masks whose IoU is at least ``threshold``.

    The group's mask is that of its first member (smallest k, then cluster, then topmost pixel);
    its members are all of them, ascending. A threshold of 1 removes exact duplicates only.
    Groups are ordered by their first members; empty masks are left out.
    """
    kept = [i for i in range(len(masks)) if masks[i].any()]
    kept.sort(key=lambda i: (members[i][0], int(masks[i].argmax())))
    masks, members = masks[kept], tuple(members[i] for i in kept)
    if not kept:
        return masks, members
    # IoU is a ratio of integers below 2^53: equal masks give exactly 1
    num, group = scipy.sparse.csgraph.connected_components(
        iou_matrix(masks, masks) >= threshold, directed=False
    )
    first = [int(np.flatnonzero(group == g)[0]) for g in range(num)]
    merged = [
        tuple(sorted({pair for i in np.flatnonzero(group == g) for pair in members[i]}))
        for g in range(num)
    ]
    order = np.argsort(first)
    return masks[np.sort(first)], tuple(merged[g] for g in order)


def label_components(
    mask: Bool[np.ndarray, "height width"],
) -> tuple[Int[np.ndarray, "height width"], int]:
    """The 8-connected components of a mask, numbered from 1, and how many there are.

    >>> label_components(np.eye(2, dtype=bool))[1]
    1
    """
    components, num = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
    return components, int(num)


def number_pieces(
    labels: UInt8[np.ndarray, "height width"],
) -> Int[np.ndarray, "height width"]:
    """Numbers, from 1, of the connected pieces (4 neighbors) of equal labels.

    >>> number_pieces(np.array([[0, 0, 1], [1, 0, 1]], dtype=np.uint8)).tolist()
    [[1, 1, 2], [3, 1, 2]]
    """
    first = np.ones(labels.shape, dtype=bool)  # pixels that begin a run of equal ones in their row
    first[:, 1:] = labels[:, 1:] != labels[:, :-1]
    runs = (np.cumsum(first) - 1).reshape(labels.shape)
    begin = first[1:] | first[:-1]  # two runs that lie on each other do so where one begins
    joined = begin & (labels[1:] == labels[:-1])
    above, below = runs[:-1][joined], runs[1:][joined]
    num = int(runs[-1, -1]) + 1
    links = scipy.sparse.coo_array((np.ones(len(above), bool), (above, below)), (num, num))
    _, pieces = scipy.sparse.csgraph.connected_components(links, directed=False)
    numbers: Int[np.ndarray, "height width"] = (pieces + 1)[runs]
    return numbers


def connected_masks(
    masks: Bool[np.ndarray, "mask height width"], members: tuple[Members, ...]
) -> tuple[Bool[np.ndarray, "component height width"], tuple[Members, ...]]:
    """The 8-connected components of every mask, each with the members of its mask.

    >>> masks, members = connected_masks(np.array([[[True, False, True]]]), (((2, 0),),))
    >>> masks.tolist(), members
    ([[[True, False, False]], [[False, False, True]]], (((2, 0),), ((2, 0),)))
    """
    parts, owners = [], []
    for mask, own in zip(masks, members, strict=True):
        components, num = label_components(mask)
        parts += [components == number for number in range(1, num + 1)]
        owners += [own] * num
    stacked = np.stack(parts) if parts else masks[:0]
    return stacked, tuple(owners)


def find_parents(
    masks: Bool[np.ndarray, "mask height width"], containment: float
) -> Int[np.ndarray, " mask"]:
    """Index of the smallest larger mask that holds at least ``containment`` of each, or -1.

    Areas grow strictly from mask to parent, so there are no cycles.

    >>> a = np.array([[[1, 1, 1]], [[1, 1, 0]], [[0, 1, 0]]], dtype=bool)
    >>> find_parents(a, 0.95).tolist()
    [-1, 0, 1]
    """
    if not len(masks):
        return np.zeros(0, dtype=np.int64)
    areas = masks.sum((1, 2))
    packed = pack_masks(masks)
    holds = (shared_pixels(packed, packed) >= containment * areas[:, None]) & (
        areas[None] > areas[:, None]
    )
    candidates = np.where(holds, areas[None], np.iinfo(np.int64).max)
    return np.where(holds.any(1), candidates.argmin(1), -1)


def id_map(mask_set: MaskSet) -> UInt8[np.ndarray, "height width"]:
    """At each pixel the id (position + 1) of the smallest mask that holds it, 0 where none does.

    Of masks of equal area the later one counts as smaller.

    Raises:
        ValueError: For more than 254 masks, which 8 bits cannot name.
    """
    if len(mask_set) > MAX_MASKS:
        raise ValueError(
            f"An image must have at most {MAX_MASKS} masks. Got {len(mask_set)}: raise "
            f"masks.min_area or lower masks.merge_iou."
        )
    ids = np.zeros(mask_set.masks.shape[1:], dtype=np.uint8)
    areas = mask_set.masks.sum((1, 2))
    for position in np.argsort(-areas, kind="stable"):
        ids[mask_set.masks[position]] = position + 1
    return ids
