"""Instances: what touches is taken apart where its pieces look alike, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from synthgen.lab.downstream.instances import average_precision, measure_instances, touching_scene
from synthgen.lab.world.render import render
from synthgen.labeling.instances import Instance, find_instances, solidity, split_touching
from synthgen.types import LabelMap, MaskSet

Y, X = np.mgrid[:64, :64]


def disc(y: float, x: float, radius: float) -> np.ndarray:
    found: np.ndarray = (Y - y) ** 2 + (X - x) ** 2 <= radius**2
    return found


def masks_of(*clusterings: tuple[int, list[np.ndarray]]) -> MaskSet:
    """Masks of some k, whose cluster is what no mask of it has."""
    masks, members = [], []
    for k, own in clusterings:
        for number, mask in enumerate([*own, ~np.logical_or.reduce(own)]):
            masks.append(mask)
            members.append(((k, number),))
    return MaskSet(np.stack(masks), tuple(members), np.full(len(masks), -1))


def labels_of(mask: np.ndarray) -> LabelMap:
    none = np.zeros(0)
    scores = np.full(mask.shape, 0.5)
    return LabelMap(("ball",), mask.astype(np.uint8), scores, none.astype(np.uint8), none, ())


def test_two_balls_that_touch_are_two_where_a_clustering_holds_each() -> None:
    left, right = disc(30, 20, 12), disc(32, 42, 11)
    both = left | right
    masks = masks_of((2, [both]), (5, [left & ~right, right]))
    found = find_instances(labels_of(both), masks)
    assert len(find_instances(labels_of(both))) == len(find_instances(labels_of(both), None)) == 1
    assert [i.label for i in found] == [1, 1]
    assert np.array_equal(found[0].mask | found[1].mask, both)
    assert not (found[0].mask & found[1].mask).any()
    overlap = (found[0].mask & left).sum() / (found[0].mask | left).sum()
    assert overlap > 0.9


def test_pixels_between_the_pieces_go_to_the_nearest() -> None:
    left, right = disc(30, 20, 12), disc(32, 42, 11)
    both = left | right
    masks = masks_of((5, [left & (X < 28), right & (X > 34)]))
    found = split_touching(both, masks)
    assert len(found) == 2
    assert np.array_equal(found[0] ^ found[1], both)


@pytest.mark.parametrize(
    ("why", "pieces"),
    [
        ("roof and wall do not look alike", [(Y < 24) & (abs(X - 32) < Y), (Y >= 24) & (X > 8)]),
        ("halves of a ball have no notch", [disc(30, 30, 20) & (X < 30), disc(30, 30, 20)]),
        ("an eye is too small a piece", [disc(30, 30, 20), disc(25, 22, 4)]),
    ],
)
def test_what_is_one_object_stays_one(why: str, pieces: list[np.ndarray]) -> None:
    first, second = pieces
    whole = (first | second) & (abs(X - 32) < 24)
    second = second & ~first & whole
    masks = masks_of((2, [whole]), (5, [first & whole, second]))
    (found,) = split_touching(whole, masks)
    assert np.array_equal(found, whole), why


def test_precision_is_that_of_a_curve_drawn_by_hand() -> None:
    """Three balls, of three guesses the first and the last are right: (1 + 2/3) / 3 of recall."""
    scene = touching_scene(7, 3)
    assert len({item.class_name for item in scene.objects}) == 1
    name = scene.objects[0].class_name
    masks = [scene.instance == item.instance for item in scene.objects]
    wrong = np.roll(masks[0], 64, axis=1)
    guesses = [
        (name, Instance(1, mask, score))
        for mask, score in ((masks[0], 0.9), (wrong & ~masks[0], 0.8), (masks[1], 0.7))
    ]
    recalls = np.arange(101) / 100
    expected = np.where(recalls <= 1 / 3, 1.0, np.where(recalls <= 2 / 3, 2 / 3, 0.0)).mean()
    assert average_precision([scene], [guesses]) == pytest.approx(expected, abs=0.011)
    assert average_precision([scene], [[]]) == 0.0
    other = render(8)
    perfect = [
        [(o.class_name, Instance(1, s.instance == o.instance, 0.5)) for o in s.objects]
        for s in (scene, other)
    ]
    assert average_precision([scene, other], perfect) == pytest.approx(1.0)


def test_the_table_counts_what_both_ways_find() -> None:
    found = measure_instances(4, tuning=True)
    for kind in ("scenes", "touching"):
        whole, split = found[kind]["components"], found[kind]["split"]
        assert 0 <= whole["ap"] <= 1 >= split["ap"] >= 0
        assert 0 < whole["found"] <= split["found"]


@pytest.mark.parametrize("seed", range(6))
def test_solidity_is_of_the_hull_of_all_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 50), dtype=bool)
    for y, x, h, w in rng.integers((0, 0, 1, 1), (30, 40, 10, 10), (seed + 1, 4)):
        mask[y : y + h, x : x + w] = rng.random((h, w)) < 0.7
    mask[7, 9] = True
    y, x = np.nonzero(mask)
    corners = np.concatenate([np.stack([y + a, x + b], 1) for a in (0, 1) for b in (0, 1)])
    assert solidity(mask) == pytest.approx(mask.sum() / ConvexHull(corners).volume, abs=1e-8)
