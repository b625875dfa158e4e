"""Metrics against brute force and cases that can be worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from synthgen.segmentation.metrics import (
    adjusted_rand,
    boundary_f,
    class_iou,
    hungarian_iou,
    part_iou,
    top_n,
)


def random_masks(num: int, seed: int, size: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).random((num, size, size)) < 0.4


def brute_iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("n", [1, 3, 10])
def test_top_n_is_equation_4(n: int) -> None:
    references, masks = random_masks(5, 0), random_masks(7, 1)
    largest = sorted(references, key=lambda mask: -mask.sum())[:n]
    expected = np.mean([max(brute_iou(a, b) for b in masks) for a in largest])
    score, count = top_n(references, masks, n)
    assert score == pytest.approx(expected)
    assert count == min(n, 5)


def test_top_n_without_references_or_masks() -> None:
    none = random_masks(0, 0)
    score, count = top_n(none, random_masks(2, 0), 5)
    assert math.isnan(score)
    assert count == 0
    assert top_n(random_masks(2, 0), none, 5) == (0.0, 2)


def test_class_iou_is_the_best_mask_per_class_present() -> None:
    semantic = np.zeros((8, 8), dtype=np.uint8)
    semantic[2:6, 2:6] = 3
    semantic[0, :] = 7
    masks = random_masks(4, 2, 8)
    scores = class_iou(semantic, masks, background=(0,))
    assert set(scores) == {3, 7}
    for value, score in scores.items():
        assert score == pytest.approx(max(brute_iou(semantic == value, mask) for mask in masks))
    assert set(class_iou(semantic, masks, background=(0, 7))) == {3}
    assert set(part_iou(semantic, masks)) == {3, 7}


def test_ignored_pixels_count_in_neither_class_nor_mask() -> None:
    semantic = np.array([[1, 1, 255, 255]], dtype=np.uint8)
    mask = np.array([[[True, True, True, False]]])
    assert class_iou(semantic, mask) == {1: 1.0}
    assert class_iou(np.full((2, 2), 255, dtype=np.uint8), np.ones((1, 2, 2), dtype=bool)) == {}


@pytest.mark.parametrize(("num_references", "num_masks"), [(3, 5), (4, 4), (5, 3)])
def test_hungarian_equals_the_best_permutation(num_references: int, num_masks: int) -> None:
    references, masks = random_masks(num_references, 3), random_masks(num_masks, 4)
    slots = [*range(num_masks), *[None] * num_references]
    best = max(
        sum(
            0.0 if j is None else brute_iou(a, masks[j])
            for a, j in zip(references, choice, strict=True)
        )
        for choice in itertools.permutations(slots, num_references)
    )
    assert hungarian_iou(references, masks) == pytest.approx(best / num_references)


def test_hungarian_uses_every_mask_once_where_top_n_does_not() -> None:
    reference = random_masks(1, 5)
    twice = np.concatenate([reference, reference])
    assert top_n(twice, reference, 2)[0] == 1.0
    assert hungarian_iou(twice, reference) == 0.5
    assert hungarian_iou(twice, reference[:0]) == 0.0
    assert math.isnan(hungarian_iou(reference[:0], twice))


def brute_rand(a: np.ndarray, b: np.ndarray) -> float:
    """Adjusted Rand index from counted pairs (Hubert and Arabie)."""
    pairs = list(itertools.combinations(range(a.size), 2))
    same_a = np.array([a.flat[i] == a.flat[j] for i, j in pairs])
    same_b = np.array([b.flat[i] == b.flat[j] for i, j in pairs])
    both, expected = (same_a & same_b).sum(), same_a.sum() * same_b.sum() / len(pairs)
    return float((both - expected) / ((same_a.sum() + same_b.sum()) / 2 - expected))


def test_adjusted_rand_equals_counted_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (4, 5)), rng.integers(0, 4, (4, 5))
    assert adjusted_rand(a, b) == pytest.approx(brute_rand(a, b))
    assert adjusted_rand(a, (a + 5) % 7) == 1.0
    ignored = np.where(a == 2, 255, a)
    assert adjusted_rand(ignored, b) == pytest.approx(brute_rand(a[a < 2], b[a < 2]))


def brute_boundary_f(truth: np.ndarray, found: np.ndarray, tolerance: float) -> float:
    def edge(mask: np.ndarray) -> list[tuple[int, int]]:
        height, width = mask.shape
        return [
            (y, x)
            for y, x in zip(*np.nonzero(mask), strict=True)
            if any(
                0 <= y + dy < height and 0 <= x + dx < width and not mask[y + dy, x + dx]
                for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
            )
        ]

    def near(points: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        return float(np.mean([min(math.dist(p, q) for q in others) <= tolerance for p in points]))

    precision, recall = near(edge(found), edge(truth)), near(edge(truth), edge(found))
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("tolerance", [1.0, 1.5, 2.0])
def test_boundary_f_equals_brute_force(tolerance: float) -> None:
    truth, found = np.zeros((2, 14, 14), dtype=bool)
    truth[3:10, 2:9] = True
    found[4:12, 4:14] = True
    found[0, 0] = True
    expected = brute_boundary_f(truth, found, tolerance)
    assert 0 < expected < 1
    assert boundary_f(truth, found, tolerance) == pytest.approx(expected)
    assert boundary_f(truth, truth, 0.0) == 1.0


def test_boundary_f_without_a_boundary() -> None:
    full, none = np.ones((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)
    some = np.eye(4, dtype=bool)
    assert boundary_f(full, none) == 1.0  # neither has a boundary inside the image
    assert boundary_f(full, some) == 0.0
