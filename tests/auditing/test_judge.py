"""Metrics of a sample against slow references, verdicts reason by reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
from jaxtyping import UInt8

from synthgen.auditing.color_baseline import color_baseline_masks
from synthgen.auditing.judge import REASONS, judge, metric_names, mismatch, score
from synthgen.auditing.label_agreement import known_classes, label_agreement
from synthgen.config import TOPS, SegmentationConfig, VerdictConfig
from synthgen.segmentation.metrics import boundary_f, hungarian_iou
from synthgen.segmentation.packed import PackedMasks, pack_masks

KS = (2, 5)


def random_masks(num: int, seed: int, size: tuple[int, int] = (24, 31)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((num, *size)) < rng.uniform(0.1, 0.9, (num, 1, 1))


def packed(masks: np.ndarray) -> PackedMasks:
    return PackedMasks.of(masks, *masks.shape[1:])


def with_members(masks: np.ndarray) -> tuple[PackedMasks, tuple[tuple[tuple[int, int], ...], ...]]:
    """Masks of k = 2 and k = 5 in turn; every third one of both."""
    both = ((2, 0), (5, 1))
    members = tuple(both if i % 3 == 2 else (both[i % 3],) for i in range(len(masks)))
    return packed(masks), members


def brute_iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def brute_top(references: np.ndarray, masks: np.ndarray, n: int) -> float:
    largest = sorted((m for m in references if m.any()), key=lambda mask: -mask.sum())[:n]
    return float(np.mean([max((brute_iou(a, b) for b in masks), default=0.0) for a in largest]))


def test_every_metric_is_that_of_the_slow_reference() -> None:
    seen, ours, theirs = random_masks(12, 0), random_masks(9, 1), random_masks(7, 2)
    seen[3], seen[5], ours[2] = False, True, True  # empty, and of the whole image
    others = [random_masks(4, seed) for seed in (3, 4)]
    masks, members = with_members(ours)
    bits = [pack_masks(other) for other in others]
    metrics = score(masks, members, packed(seen), KS, packed(theirs), bits)
    assert tuple(metrics) == metric_names(KS)
    for n in TOPS:
        assert metrics[f"top_{n}"] == pytest.approx(brute_top(seen, ours, n))
        assert metrics[f"top_{n}_count"] == min(n, 11)
        assert metrics[f"color_baseline_top_{n}"] == pytest.approx(brute_top(seen, theirs, n))
        foreign = [brute_top(seen, other, n) for other in others]
        assert metrics[f"shuffled_masks_top_{n}"] == pytest.approx(np.mean(foreign))
    some = seen[seen.any((1, 2))]
    assert metrics["num_annotations"] == len(some) == 11
    assert metrics["hungarian"] == pytest.approx(hungarian_iou(some, ours))
    assert metrics["color_baseline_hungarian"] == pytest.approx(hungarian_iou(some, theirs))
    assert metrics["coverage"] == ours.any(0).mean()
    for k in KS:
        own = [mask for mask, pairs in zip(ours, members, strict=True) if k in dict(pairs)]
        assert metrics[f"top_5_k{k}"] == pytest.approx(brute_top(seen, np.stack(own), 5))
    largest = sorted(some, key=lambda mask: -mask.sum())[:5]
    best = [max(ours, key=lambda mask: brute_iou(a, mask)) for a in largest]
    expected = [boundary_f(a, b, 1.0) for a, b in zip(largest, best, strict=True)]
    assert metrics["boundary_f"] == pytest.approx(np.mean(expected))


def test_masks_of_the_whole_image_agree_with_each_other() -> None:
    full = np.ones((1, 6, 8), dtype=bool)
    metrics = score(*with_members(full), packed(full), KS)
    assert metrics["top_1"] == metrics["hungarian"] == metrics["boundary_f"] == 1.0
    assert metrics["top_5_count"] == 1.0
    assert metrics["coverage"] == 1.0
    assert math.isnan(metrics["color_baseline_top_5"])
    assert math.isnan(metrics["shuffled_masks_top_5"])


def test_nothing_on_either_side() -> None:
    none, some = np.zeros((0, 6, 8), dtype=bool), random_masks(3, 5, (6, 8))
    without = score(*with_members(none), packed(some), KS)
    assert without["top_5"] == without["hungarian"] == without["boundary_f"] == 0.0
    assert without["coverage"] == 0.0
    assert judge(without, VerdictConfig()).reason == "no_masks"
    unseen = score(*with_members(some), packed(none), KS)
    assert all(math.isnan(unseen[name]) for name in ("top_5", "hungarian", "boundary_f"))
    assert unseen["top_5_count"] == 0.0
    assert judge(unseen, VerdictConfig()).reason == "no_annotations"
    empty = score(*with_members(some), packed(np.zeros((2, 6, 8), dtype=bool)), KS)
    assert judge(empty, VerdictConfig()).reason == "no_annotations"


GOOD = {
    "num_masks": 20.0,
    "num_annotations": 9.0,
    "coverage": 1.0,
    "top_5": 0.7,
    "top_3": 0.2,
    "shuffled_masks_top_5": 0.4,
    "color_baseline_top_5": 0.6,
    "boundary_f": 0.5,
}


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("no_masks", {"num_masks": 0.0, "coverage": 0.0}),
        ("no_annotations", {"num_annotations": 0.0}),
        ("too_many_masks", {"num_masks": 255.0}),
        ("low_coverage", {"coverage": 0.49}),
        ("low_agreement", {"top_5": 0.34, "shuffled_masks_top_5": 0.0}),
        ("not_its_image", {"shuffled_masks_top_5": 0.65}),
        ("weak_boundaries", {"boundary_f": 0.1}),
        ("below_color_baseline", {"color_baseline_top_5": 0.99}),
    ],
)
def test_each_threshold_has_its_reason(reason: str, change: dict[str, float]) -> None:
    assert judge(GOOD, VerdictConfig()).keep
    verdict = judge({**GOOD, **change}, VerdictConfig())
    assert (verdict.keep, verdict.reason) == (False, reason)
    assert reason in REASONS


def test_thresholds_come_from_the_settings_and_unmeasured_metrics_reject_nothing() -> None:
    unmeasured = {**GOOD, "shuffled_masks_top_5": math.nan, "color_baseline_top_5": math.nan}
    assert judge(unmeasured, VerdictConfig()).keep
    assert judge(GOOD, VerdictConfig(min_top_n=0.71)).reason == "low_agreement"
    assert judge(GOOD, VerdictConfig(top=3)).reason == "low_agreement"
    assert mismatch(KS).reason == "size_mismatch"


def test_the_chance_baseline_segments_by_color_and_position() -> None:
    image = np.zeros((40, 80, 3), dtype=np.uint8)
    image[:, 40:] = 255
    found = color_baseline_masks(image, SegmentationConfig(), 20)
    assert found.masks.shape[1:] == (40, 80)
    halves = np.stack([image[..., 0] == 0, image[..., 0] == 255])
    for half in halves:
        assert max(brute_iou(half, mask) for mask in found.masks) == 1.0
    again = color_baseline_masks(image, SegmentationConfig(), 20)
    assert again.masks.tobytes() == found.masks.tobytes()


# --- labels ------------------------------------------------------------------------------------


def seen(*parts: tuple[str, slice]) -> tuple[PackedMasks, list[str]]:
    """An auditor's masks of an image of 10 x 10: columns, each with a name."""
    masks = np.zeros((len(parts), 10, 10), dtype=bool)
    for mask, (_, columns) in zip(masks, parts, strict=True):
        mask[:, columns] = True
    return packed(masks), [name for name, _ in parts]


def labels_of(**columns: slice) -> UInt8[np.ndarray, "10 10"]:
    semantic = np.zeros((10, 10), dtype=np.uint8)
    for name, where in columns.items():
        semantic[:, where] = {"car": 4, "dog": 2, "undecided": 255}[name]
    return semantic


IDS = {"car": 4, "dog": 2, "tree": 1}
KNOWN = known_classes([*IDS], ["car, auto, automobile", "dog", "sky"])


def test_labels_are_compared_class_by_class() -> None:
    assert set(KNOWN) == {"car", "dog"}  # an auditor without trees says nothing of trees
    image = seen(
        ("car, auto, automobile", slice(0, 4)), ("dog", slice(4, 8)), ("sky", slice(8, 10))
    )
    right = label_agreement(
        labels_of(car=slice(0, 3), dog=slice(4, 8)), IDS, ["car", "dog", "tree"], *image, KNOWN
    )
    assert right == {
        "label_iou of car": 0.75,
        "label_iou of dog": 1.0,
        "label_mean_iou": 0.875,
        "label_least_iou": 0.75,
    }
    assert judge({"num_masks": 1.0, **right}, VerdictConfig()).keep
    both_as_car = labels_of(car=slice(0, 8))  # the dog was missed, and painted as another
    wrong = label_agreement(both_as_car, IDS, ["car", "dog"], *image, KNOWN)
    assert wrong["label_iou of car"] == 0.5
    assert wrong["label_iou of dog"] == 0.0
    verdict = judge({"num_masks": 1.0, **wrong}, VerdictConfig())
    assert (verdict.keep, verdict.reason) == (False, "label_disagrees")
    assert judge({"num_masks": 1.0, **wrong}, VerdictConfig(min_label_iou=0.0)).keep


def test_what_nobody_can_compare_is_not_judged() -> None:
    image = seen(("dog", slice(4, 8)))
    assert label_agreement(labels_of(car=slice(0, 3)), IDS, ["tree"], *image, KNOWN) == {}
    assert label_agreement(labels_of(), IDS, ["car"], *image, KNOWN) == {}  # neither has one
    undecided = label_agreement(labels_of(undecided=slice(4, 8)), IDS, ["dog"], *image, KNOWN)
    assert undecided == {}
    assert judge({"num_masks": 1.0}, VerdictConfig()).keep
