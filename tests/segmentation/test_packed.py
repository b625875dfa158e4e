"""Bit-packed IoU against the boolean masks, pair by pair, and the metrics that stand on it."""

from __future__ import annotations

import numpy as np
import pytest

from synthgen.lab.bench.audit import bench_audit
from synthgen.segmentation import packed
from synthgen.segmentation.metrics import hungarian_iou, mean_assigned, mean_best, top_n


def random_masks(num: int, size: tuple[int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((num, *size)) < rng.random((num, 1, 1))


def brute_shared(masks: np.ndarray, others: np.ndarray) -> list[list[int]]:
    return [[int((a & b).sum()) for b in others] for a in masks]


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (7, 9), (64, 1), (13, 40), (65, 64)])
@pytest.mark.parametrize("words", [1, 3, 4096])
def test_shared_pixels_are_those_of_the_boolean_masks(
    size: tuple[int, int], words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "WORDS", words)  # blocks that do and do not divide the row
    masks, others = random_masks(5, size, 0), random_masks(7, size, 1)
    shared = packed.shared_pixels(packed.pack_masks(masks), packed.pack_masks(others))
    assert shared.tolist() == brute_shared(masks, others)
    areas = packed.packed_areas(packed.pack_masks(masks))
    assert areas.tolist() == [int(mask.sum()) for mask in masks]


def test_iou_is_equal_to_the_last_bit() -> None:
    masks, others = random_masks(12, (37, 53), 2), random_masks(9, (37, 53), 3)
    masks[3], masks[4], others[0] = False, True, True
    iou = packed.iou_matrix(masks, others)
    for i, a in enumerate(masks):
        for j, b in enumerate(others):
            assert iou[i, j] == (a & b).sum() / max((a | b).sum(), 1)
    assert iou[4, 0] == 1.0
    assert not iou[3].any()


def test_no_masks_on_either_side() -> None:
    none, some = np.zeros((0, 5, 5), dtype=bool), random_masks(3, (5, 5), 4)
    assert packed.iou_matrix(none, some).shape == (0, 3)
    assert packed.iou_matrix(some, none).shape == (3, 0)
    assert mean_best(packed.iou_matrix(some, none), some.sum((1, 2)), 5) == (0.0, 3)
    assert mean_assigned(packed.iou_matrix(some, none)) == 0.0


@pytest.mark.parametrize("n", [1, 4, 50])
def test_metrics_from_the_matrix_are_those_of_the_masks(n: int) -> None:
    references, masks = random_masks(11, (24, 30), 5), random_masks(8, (24, 30), 6)
    iou = packed.iou_matrix(references, masks)
    assert mean_best(iou, references.sum((1, 2)), n) == top_n(references, masks, n)
    assert mean_assigned(iou) == hungarian_iou(references, masks)


def test_the_bench_compares_equal_figures_at_toy_size() -> None:
    result = bench_audit(quick=True)
    assert result["equal"] is True
    assert (result["masks"], result["annotations"]) == (43, 100)
    assert result["ratio"] == pytest.approx(result["brute_seconds"] / result["seconds"])
