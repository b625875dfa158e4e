"""Refiners: what each of them decides, against slow references, and what none of them may do."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.config import (
    ClusterConfig,
    Config,
    DatasetConfig,
    LabelConfig,
    ModelConfig,
    SegmentationConfig,
)
from synthgen.diffusion.backbones import Backbone
from synthgen.embedded.vocabulary import TUNING_SEEDS
from synthgen.jobs.batch import Recipe, make_batch
from synthgen.lab.bench.fake_model import draw, load_fake
from synthgen.lab.downstream.labels import degrade_truth, measure_refiners, score_maps
from synthgen.lab.world.render import Scene, render
from synthgen.labeling.refine import refine
from synthgen.labeling.refiners_border import (
    COLOR_SIGMA,
    color_votes,
    ignore_uncertain,
    recolor_uncertain,
    uncertain_pixels,
)
from synthgen.labeling.refiners_color import (
    drop_components,
    majority,
    pamr,
    refine_by_color_majority,
    refine_by_pamr,
)
from synthgen.registry import REFINERS
from synthgen.segmentation.metrics import boundary_f
from synthgen.types import IGNORE, HeadFeatures, Heatmaps, PlannedSample, Prompt

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_sample(seed: int, height: int = 24, width: int = 20) -> Sample:
    """Semantic map of blocks with undecided ones, a noisy image of it, and an error map."""
    rng = np.random.default_rng(seed)
    cells = rng.choice(np.array([0, 3, 7, IGNORE], np.uint8), size=(height // 4, width // 4))
    semantic = cells.repeat(4, axis=0).repeat(4, axis=1)
    colors = rng.integers(0, 256, (256, 3))
    image = (colors[semantic] + rng.normal(0, 20, (height, width, 3))).clip(0, 255)
    return semantic, image.astype(np.uint8), rng.random((height, width)).astype(np.float32)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return render(TUNING_SEEDS[3])


@pytest.mark.parametrize("method", sorted(REFINERS))
def test_every_refiner_keeps_to_the_classes_it_is_given(method: str) -> None:
    for seed in range(3):
        semantic, image, error = random_sample(seed)
        untouched = semantic.copy(), image.copy(), error.copy()
        scores = {cls: np.random.default_rng(cls).random(semantic.shape) for cls in (0, 3, 7, 9)}
        for given_scores in (None, scores):
            refined = refine(method, semantic, image, given_scores, error)
            assert refined.shape == semantic.shape
            assert refined.dtype == np.uint8
            assert set(np.unique(refined)) <= set(np.unique(semantic)) | {IGNORE}
            again = refine(method, semantic, image, given_scores, error)
            assert (refined == again).all(), "equal inputs give equal bytes"
        for before, after in zip(untouched, (semantic, image, error), strict=True):
            assert (before == after).all(), "inputs are never written to"


@pytest.mark.parametrize("method", sorted(REFINERS))
@pytest.mark.parametrize("value", [0, 5, IGNORE])
def test_a_map_of_one_class_stays_as_it_is(method: str, value: int) -> None:
    _, image, error = random_sample(1)
    semantic = np.full(image.shape[:2], value, dtype=np.uint8)
    assert (refine(method, semantic, image, None, error) == semantic).all()


def test_an_invented_class_is_refused() -> None:
    semantic, image, error = random_sample(0)
    with pytest.raises(ValueError, match=r"only classes of the map .* Got \[9\]"):
        refine("test_refine:paint_nine", semantic, image, None, error)
    with pytest.raises(ValueError, match="guided is called pamr"):
        refine("guided", semantic, image)


def paint_nine(semantic, image, scores=None, uncertainty=None):  # type: ignore[no-untyped-def]
    """A third party's refiner that breaks the rule."""
    return np.full_like(semantic, 9)


@pytest.mark.parametrize("method", ["upsampling-error", "upsampling-color"])
def test_eq_6_is_needed_by_those_that_are_named_after_it(method: str) -> None:
    semantic, image, _ = random_sample(0)
    with pytest.raises(ValueError, match="needs the upsampling error"):
        refine(method, semantic, image)


def load_heat_and_heads(config: ModelConfig) -> Backbone:
    """The planted backbone with heat of its classes."""

    def draw_heat(*planned: Any) -> list[Any]:
        heat = torch.linspace(0.1, 0.9, 16).reshape(4, 4)
        maps = Heatmaps(("cat",), heat[None], heat.flip(0))
        return [replace(sample, heatmaps=maps) for sample in draw(*planned)]

    return replace(load_fake(config), draw=draw_heat)


def load_heat_alone(config: ModelConfig) -> Backbone:
    """The same without head outputs."""
    backbone = load_heat_and_heads(config)

    def draw_alone(*planned: Any) -> list[Any]:
        assert backbone.draw is not None
        none = HeadFeatures({}, {})
        return [replace(sample, features=none) for sample in backbone.draw(*planned)]

    return replace(backbone, draw=draw_alone)


def rewrite(semantic, image, scores=None, uncertainty=None):  # type: ignore[no-untyped-def]
    """A third party's refiner that has a use for the upsampling error."""
    return np.full_like(semantic, IGNORE if uncertainty is None else semantic.flat[0])


@pytest.mark.parametrize("method", [*sorted(REFINERS), "test_refine:rewrite"])
def test_eq_6_is_computed_for_those_that_read_it(method: str) -> None:
    """The others ask for no head outputs, and need none."""
    planned = PlannedSample("0000000000", Prompt("0", "a cat", ("cat",)), 0, 7)
    made = {}
    for heads in ("heat_and_heads", "heat_alone"):
        config = Config(
            model=ModelConfig(card=f"test_refine:load_{heads}"),
            segmentation=SegmentationConfig(method="rgbxy", clusters=ClusterConfig(ks=(2, 3))),
            labeling=LabelConfig(method="argmax", refiner=method),
            dataset=DatasetConfig(preview_every=0),
        )
        (made[heads],) = make_batch(Recipe(config, "0" * 64, 1, {"cat": 1}), [planned], 0)
    assert made["heat_and_heads"].row.status == "ok"
    row = made["heat_alone"].row
    if method.startswith("upsampling"):
        assert "needs the upsampling error" in row.message
    else:
        assert row.status == "ok"
    same = made["heat_alone"].members == made["heat_and_heads"].members
    assert same == (method in ("none", "pamr", "color-majority"))


@given(seed=st.integers(0, 10_000), side=st.sampled_from([8, 64, 96]))
@settings(max_examples=15, deadline=None)
def test_uncertain_pixels_are_those_found_one_by_one(seed: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    semantic = rng.integers(0, 3, (8, side // 8), dtype=np.uint8).repeat(8, axis=1)
    error = rng.random(semantic.shape).astype(np.float32)
    reach, found = max(1, round(max(semantic.shape) / 32)), uncertain_pixels(semantic, error)
    for y, x in product(*map(range, semantic.shape)):
        near = semantic[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        expected = error[y, x] > error.mean() and len(np.unique(near)) > 1
        assert found[y, x] == expected


def test_ignoring_changes_uncertain_pixels_and_no_others() -> None:
    semantic, image, error = random_sample(4)
    refined = ignore_uncertain(semantic, image, None, error)
    uncertain = uncertain_pixels(semantic, error)
    assert uncertain.any()
    assert (refined[uncertain] == IGNORE).all()
    assert (refined[~uncertain] == semantic[~uncertain]).all()


def slow_vote(at: tuple[int, int], sample: Sample, certain: np.ndarray, radius: int) -> dict:
    """Weights of the voters around one pixel by class, from the definition."""
    semantic, image, _ = sample
    votes: dict[int, float] = {}
    for y, x in product(*map(range, semantic.shape)):
        down, right = y - at[0], x - at[1]
        if max(abs(down), abs(right)) > radius or not certain[y, x] or semantic[y, x] == IGNORE:
            continue
        color = ((image[y, x].astype(float) - image[at].astype(float)) ** 2).sum()
        weight = np.exp(-color / (2 * COLOR_SIGMA**2) - (down**2 + right**2) / (2 * radius**2))
        votes[int(semantic[y, x])] = votes.get(int(semantic[y, x]), 0.0) + float(weight)
    return votes


def test_votes_equal_those_counted_one_by_one() -> None:
    sample = random_sample(2)
    semantic, image, error = sample
    certain, classes = error < 0.7, np.array([0, 3, 7], np.uint8)
    at = np.array([[0, 0], [23, 19], [11, 4], [5, 13]])
    votes = color_votes(at, semantic, image, certain, classes, 3)
    for position, row in zip(at, votes, strict=True):
        expected = slow_vote((position[0], position[1]), sample, certain, 3)
        np.testing.assert_allclose(row, [expected.get(c, 0.0) for c in (0, 3, 7)], rtol=1e-4)


def test_recoloring_is_the_winner_of_the_slow_vote() -> None:
    blocks, image, error = random_sample(5)
    semantic = np.roll(blocks, 1, axis=1)  # the labels are a pixel off
    sample = semantic, image, error
    refined = recolor_uncertain(semantic, image, None, error)
    uncertain = uncertain_pixels(semantic, error)
    changed = 0
    for y, x in product(*map(range, semantic.shape)):
        votes = slow_vote((y, x), sample, ~uncertain, 2)
        decides = uncertain[y, x] and semantic[y, x] != IGNORE and votes
        expected = max(votes, key=votes.__getitem__) if decides else semantic[y, x]
        assert refined[y, x] == expected
        changed += expected != semantic[y, x]
    assert changed > 10


def slow_pamr(
    image: np.ndarray, maps: np.ndarray, iterations: int, dilations: tuple[int, ...]
) -> np.ndarray:
    """PAMR from its equations, pixel by pixel; edges are replicated."""
    height, width = image.shape[1:]
    offsets = [
        (d * y, d * x)
        for d in dilations
        for y, x in product((-1, 0, 1), repeat=2)
        if (y, x) != (0, 0)
    ]

    def at(planes: np.ndarray, y: int, x: int) -> np.ndarray:
        return planes[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    for _ in range(iterations):
        fresh = np.zeros_like(maps)
        for y, x in product(range(height), range(width)):
            own = at(image, y, x)
            near = np.stack([at(image, y + down, x + right) for down, right in offsets])
            every = np.concatenate([near, np.stack([own] * len(dilations))])
            scaled = -np.abs(near - own) / (1e-8 + 0.1 * every.std(0, ddof=1))
            weights = np.exp(scaled.mean(1) - scaled.mean(1).max())
            weights /= weights.sum()
            fresh[:, y, x] = sum(
                weight * at(maps, y + down, x + right)
                for weight, (down, right) in zip(weights, offsets, strict=True)
            )
        maps = fresh
    return maps


def test_pamr_equals_its_equations() -> None:
    rng = np.random.default_rng(0)
    image, maps = rng.random((3, 9, 7)), rng.random((2, 9, 7))
    got = pamr(torch.from_numpy(image), torch.from_numpy(maps), 3, (1, 2, 5))
    np.testing.assert_allclose(got.numpy(), slow_pamr(image, maps, 3, (1, 2, 5)), rtol=1e-9)


def test_pamr_of_maps_that_sum_to_one_sums_to_one() -> None:
    rng = np.random.default_rng(1)
    maps = torch.from_numpy(rng.dirichlet((1, 1, 1), (12, 9)).transpose(2, 0, 1))
    got = pamr(torch.from_numpy(rng.random((3, 12, 9))), maps)
    np.testing.assert_allclose(got.sum(0).numpy(), 1.0, rtol=1e-12)


def test_undecided_pixels_stay_undecided_and_scores_decide_where_all_have_some() -> None:
    semantic, image, _ = random_sample(6)
    refined = refine_by_pamr(semantic, image)
    assert (refined[semantic == IGNORE] == IGNORE).all()
    assert (refined[semantic != IGNORE] != IGNORE).all()
    ones, zeros = np.ones(semantic.shape), np.zeros(semantic.shape)
    seven = refine_by_pamr(semantic, image, {0: zeros, 3: zeros, 7: ones})
    assert (seven[semantic != IGNORE] == 7).all()
    some = refine_by_pamr(semantic, image, {0: zeros, 7: ones})
    assert (some == refined).all(), "scores of some classes say nothing about the others"


def test_a_majority_is_clear_or_nothing() -> None:
    rng = np.random.default_rng(3)
    semantic = rng.choice(
        np.array([0, 1, 2, IGNORE], np.uint8), size=(30, 30), p=(0.6, 0.2, 0.1, 0.1)
    )
    clusters = rng.integers(0, 150, (30, 30), dtype=np.uint8)
    refined = majority(semantic, clusters)
    for number in np.unique(clusters):
        votes = sorted(
            ((int((semantic[clusters == number] == c).sum()), c) for c in (0, 1, 2, IGNORE)),
            reverse=True,
        )
        expected = votes[0][1] if votes[0][0] > 2 * votes[1][0] else IGNORE
        assert (refined[clusters == number] == expected).all()


def slow_components(semantic: np.ndarray, min_pixels: int) -> np.ndarray:
    """Regions grown one by one over the eight neighbors."""
    refined, seen = semantic.copy(), np.zeros(semantic.shape, bool)
    for start in product(*map(range, semantic.shape)):
        if seen[start]:
            continue
        region, queue = [], [start]
        seen[start] = True
        while queue:
            y, x = queue.pop()
            region.append((y, x))
            for down, right in product((-1, 0, 1), repeat=2):
                near = (y + down, x + right)
                inside = all(0 <= i < n for i, n in zip(near, semantic.shape, strict=True))
                if inside and not seen[near] and semantic[near] == semantic[start]:
                    seen[near] = True
                    queue.append(near)
        if len(region) < min_pixels:
            refined[tuple(np.array(region).T)] = IGNORE
    return refined


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_small_components_are_those_grown_by_hand(seed: int) -> None:
    semantic = np.random.default_rng(seed).integers(0, 4, (14, 11), dtype=np.uint8)
    assert (drop_components(semantic, 6) == slow_components(semantic, 6)).all()


def test_color_clusters_find_the_edge_that_blocks_have_lost() -> None:
    """A disc of one color on another: PCC and PAMR bring back what a grid of 8 x 8 has lost."""
    ys, xs = np.mgrid[0:64, 0:64] - 31.5
    truth = (np.hypot(ys, xs) < 18.0).astype(np.uint8)
    image = np.where(truth[..., None] == 1, (200, 40, 40), (40, 160, 60)).astype(np.uint8)
    image += np.random.default_rng(0).integers(0, 12, image.shape, dtype=np.uint8)
    coarse, error = degrade_truth(truth, 8)
    before = boundary_f(truth == 1, coarse == 1, 1.0)
    assert before < 0.7
    for method in ("color-majority", "pamr", "upsampling-color"):
        refined = refine(method, coarse, image, None, error)
        assert boundary_f(truth == 1, refined == 1, 1.0) > before + 0.15, method
    assert (refine_by_color_majority(coarse, image) == truth).mean() > 0.99


def test_a_degraded_truth_is_the_majority_of_each_cell(scene: Scene) -> None:
    coarse, error = degrade_truth(scene.semantic, 32)
    for row, column in product(range(32), repeat=2):
        cell = (slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
        values, counts = np.unique(scene.semantic[cell], return_counts=True)
        assert (coarse[cell] == values[counts.argmax()]).all()
    inside = np.zeros((128, 128), bool)
    inside[8:-8, 8:-8] = True
    flat = (
        np.ptp(np.lib.stride_tricks.sliding_window_view(np.pad(coarse, 8), (17, 17)), (2, 3)) == 0
    )
    assert (error[flat & inside] == 0).all(), "where nothing but one class is near"
    assert error.max() > 0.1


def test_scores_know_perfect_and_undecided_maps(scene: Scene) -> None:
    perfect = score_maps([scene], [scene.semantic])
    assert set(perfect.values()) == {1.0}
    half = scene.semantic.copy()
    half[:64] = IGNORE
    scores = score_maps([scene], [half])
    assert scores["decided_miou"] == 1.0
    assert scores["decided"] == 0.5
    assert scores["miou"] < 0.8


def test_scores_count_the_objects_with_their_class() -> None:
    several = next(
        s
        for s in map(render, TUNING_SEEDS)
        if len({o.class_name for o in s.objects}) == 2 == len(s.objects)
    )
    assert score_maps([several], [several.semantic])["instances"] == 1.0
    first, second = (
        np.unique(several.semantic[several.instance == o.instance])[0] for o in several.objects
    )
    swapped = np.where(several.semantic == first, second, several.semantic).astype(np.uint8)
    assert score_maps([several], [swapped])["instances"] == 0.5
    assert score_maps([several], [np.zeros_like(swapped)])["instances"] == 0.0


def test_the_measurement_runs_on_every_refiner() -> None:
    result = measure_refiners(2, tuning=True)
    assert result["scenes"] == "tuning"
    assert set(result) == {"num", "scenes", *REFINERS}
    assert result["none"]["boundary_f"] < 0.9
    assert result["upsampling-error"]["decided"] < result["none"]["decided"] == 1.0
