"""Masks: merging, components, holes, hierarchy, id map, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.segmentation.masks import (
    build_masks,
    cluster_masks,
    connected_masks,
    find_parents,
    id_map,
    merge_by_iou,
)
from synthgen.types import MaskSet

Labels = np.ndarray


def random_labels(seed: int, ks: tuple[int, ...] = (2, 3, 5), size: int = 12) -> Labels:
    """Blocky label maps, so that masks of different k are similar now and then."""
    rng = np.random.default_rng(seed)
    coarse = [rng.integers(0, k, (size // 4, size // 4)) for k in ks]
    return np.stack([np.kron(c, np.ones((4, 4))) for c in coarse]).astype(np.uint8)


def square(size: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def brute_iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 0.0


def brute_groups(masks: np.ndarray, threshold: float) -> set[frozenset[int]]:
    """Connected groups by flooding, one link at a time."""
    left, groups = set(range(len(masks))), set()
    while left:
        group, frontier = set(), [left.pop()]
        while frontier:
            i = frontier.pop()
            group.add(i)
            near = {j for j in left if brute_iou(masks[i], masks[j]) >= threshold}
            left -= near
            frontier += near
        groups.add(frozenset(group))
    return groups


def test_clusters_of_one_k_partition_the_image() -> None:
    labels = random_labels(0)
    masks, members = cluster_masks(labels, (2, 3, 5))
    for k in (2, 3, 5):
        own = [i for i, ((other, _),) in enumerate(members) if other == k]
        assert len(own) == k
        assert (masks[own].sum(0) == 1).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_merging_makes_the_groups_of_brute_force(seed: int, threshold: float) -> None:
    masks, members = cluster_masks(random_labels(seed), (2, 3, 5))
    filled = masks.any((1, 2))
    masks, members = masks[filled], [m for m, kept in zip(members, filled, strict=True) if kept]
    expected = {
        frozenset(members[i][0] for i in group): masks[min(group)]
        for group in brute_groups(masks, threshold)
    }
    merged, owners = merge_by_iou(masks, tuple(members), threshold)
    assert {frozenset(own) for own in owners} == set(expected)
    for mask, own in zip(merged, owners, strict=True):
        assert np.array_equal(mask, expected[frozenset(own)])  # the member of the smallest k


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([0.3, 0.6, 0.9]))
def test_merging_is_idempotent_and_does_not_depend_on_the_order(
    seed: int, threshold: float
) -> None:
    masks, members = connected_masks(*cluster_masks(random_labels(seed), (2, 3, 5)))
    merged, owners = merge_by_iou(masks, members, threshold)
    again, owners_again = merge_by_iou(merged, owners, threshold)
    assert np.array_equal(again, merged)
    assert owners_again == owners
    order = np.random.default_rng(seed).permutation(len(masks))
    shuffled, owners_shuffled = merge_by_iou(
        masks[order], tuple(members[i] for i in order), threshold
    )
    assert np.array_equal(shuffled, merged)
    assert owners_shuffled == owners


def test_threshold_one_removes_exact_duplicates_only() -> None:
    a, b = square(30, 0, 0, 29), square(30, 0, 0, 29)
    b[0, 0] = False
    masks = np.stack([a, b, a])
    merged, owners = merge_by_iou(masks, (((2, 0),), ((5, 1),), ((6, 3),)), 1.0)
    assert len(merged) == 2
    assert owners == (((2, 0), (6, 3)), ((5, 1),))


def test_components_and_holes() -> None:
    ring = square(16, 2, 2, 8) & ~square(16, 4, 4, 2)
    two = ring | square(16, 12, 12, 3)
    parts, owners = connected_masks(two[None], (((2, 1),),))
    assert [int(part.sum()) for part in parts] == [60, 9]
    assert owners == (((2, 1),), ((2, 1),))
    filled = build_masks(ring[None].astype(np.uint8), (2,), fill_holes=True)
    assert 64 in filled.masks.sum((1, 2))
    diagonal = np.eye(4, dtype=bool)
    assert len(connected_masks(diagonal[None], (((2, 0),),))[0]) == 1  # 8-connected


def test_parents_are_the_smallest_larger_mask_that_holds_95_percent() -> None:
    eye, face, person, other = (
        square(40, 12, 12, 4),
        square(40, 10, 10, 10),
        square(40, 5, 5, 30),
        square(40, 30, 30, 10),
    )
    masks = np.stack([person, face, other, eye])
    assert find_parents(masks, 0.95).tolist() == [-1, 0, -1, 1]
    assert find_parents(masks, 0.51).tolist() == [-1, 0, -1, 1]
    leaking = face.copy()
    leaking[12:16, 15] = False  # 3 of 4 columns of the eye remain: 12 / 16
    masks = np.stack([person, leaking, other, eye])
    assert find_parents(masks, 0.95).tolist() == [-1, 0, -1, 0]


def test_equal_masks_are_nobodys_parents_and_there_are_no_cycles() -> None:
    a = square(8, 0, 0, 4)
    assert find_parents(np.stack([a, a, a]), 0.95).tolist() == [-1, -1, -1]
    masks, _ = cluster_masks(random_labels(3), (2, 3, 5))
    parents = find_parents(masks, 0.55)
    for start in range(len(masks)):
        seen, at = {start}, int(parents[start])
        while at >= 0:
            assert at not in seen
            seen.add(at)
            at = int(parents[at])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), split=st.booleans(), fill=st.booleans())
def test_id_map_names_the_smallest_mask_at_each_pixel(seed: int, split: bool, fill: bool) -> None:
    own = {"split_components": split, "fill_holes": fill, "min_area": 0.0, "merge_iou": 0.8}
    mask_set = build_masks(random_labels(seed), (2, 3, 5), **own)
    ids = id_map(mask_set)
    areas = mask_set.masks.sum((1, 2))
    assert (np.diff(areas) <= 0).all()
    for row, column in np.ndindex(ids.shape):
        holding = [i for i in range(len(mask_set)) if mask_set.masks[i, row, column]]
        assert ids[row, column] == 1 + min(holding, key=lambda i: (areas[i], -i))


def test_small_masks_are_dropped_and_their_pixels_fall_to_larger_ones() -> None:
    labels = np.zeros((1, 20, 20), dtype=np.uint8)
    labels[0, 0, 0] = 1
    mask_set = build_masks(labels, (2,), min_area=0.01)
    assert len(mask_set) == 1
    assert id_map(mask_set)[0, 0] == 0
    both = build_masks(labels, (2,), min_area=1 / 400)
    assert id_map(both)[0, 0] == 2


def test_no_masks_at_all() -> None:
    labels = np.array([[[0, 1, 0, 1]]], dtype=np.uint8)
    mask_set = build_masks(labels, (2,), min_area=0.5, split_components=True)
    assert len(mask_set) == 0
    assert id_map(mask_set).tolist() == [[0, 0, 0, 0]]


def test_more_than_254_masks_are_an_error_never_a_wrap() -> None:
    masks = np.zeros((255, 16, 16), dtype=bool)
    masks.reshape(255, 256)[np.arange(255), np.arange(255)] = True
    members = tuple(((2, 0),) for _ in masks)
    too_many = MaskSet(masks, members, np.full(255, -1))
    with pytest.raises(ValueError, match="at most 254 masks. Got 255"):  # noqa: RUF043
        id_map(too_many)
    allowed = MaskSet(masks[:254], members[:254], np.full(254, -1))
    assert id_map(allowed).max() == 254
