"""Labelers against slow obvious references, planted heat, and what is decided, not painted."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import quadrants
from scipy import ndimage
from tiny import tiny_tokenizer

from synthgen.config import Config, LabelConfig
from synthgen.diffusion.heatmaps import attributed_text, check_class_tokens
from synthgen.diffusion.probabilities import pooled_self_map
from synthgen.jobs.classes import check_names
from synthgen.labeling.clusters import cluster_means, label_by_clusters
from synthgen.labeling.decide import choose, decide, keep_present, present_classes
from synthgen.labeling.label import label_by_argmax, label_sample
from synthgen.labeling.propagation import propagate, smooth
from synthgen.labeling.scores import (
    ClassScores,
    LabelInputs,
    attention_rows,
    geometric_midpoint,
    shares,
    upsample,
)
from synthgen.labeling.votes import THRESHOLDS, label_by_votes, nearest_ks
from synthgen.registry import LABELERS, resolve
from synthgen.segmentation.masks import build_masks
from synthgen.types import Heatmaps, MaskSet, Prompt, Segmentation, SelfMap

SIZE = (24, 32)
KS = (2, 4, 7, 10)


def random_segmentation(seed: int, size: tuple[int, int] = SIZE) -> Segmentation:
    """Blocky random clusters of several ks, merged as real ones are."""
    rng = np.random.default_rng(seed)
    rows, columns = size[0] // 4, size[1] // 4
    maps = [np.kron(rng.integers(0, k, (rows, columns)), np.ones((4, 4))) for k in KS]
    labels = np.stack(maps).astype(np.uint8)
    return Segmentation.of(build_masks(labels, KS, min_area=0.0), KS, labels)


def random_inputs(seed: int = 0, num: int = 3) -> LabelInputs:
    rng = np.random.default_rng(seed)
    heat = rng.random((num + 1, 6, 8)).astype(np.float32) + 0.05
    attention = torch.from_numpy(rng.random((48, 48))).softmax(dim=1).float()
    image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return LabelInputs(random_segmentation(seed), heat, SelfMap(attention, (6, 8)), image)


def slow_upsample(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation pixel by pixel, clamped at the edges."""
    out = np.zeros(size)
    for y, x in np.ndindex(*size):
        v = (y + 0.5) * plane.shape[0] / size[0] - 0.5
        u = (x + 0.5) * plane.shape[1] / size[1] - 0.5
        for row, column in itertools.product((0, 1), (0, 1)):
            j, i = int(np.floor(v)) + row, int(np.floor(u)) + column
            weight = (1 - abs(v - j)) * (1 - abs(u - i))
            j, i = min(max(j, 0), plane.shape[0] - 1), min(max(i, 0), plane.shape[1] - 1)
            out[y, x] += weight * plane[j, i]
    return out


# --- the equations ----------------------------------------------------------------------------


def slow_shares(heat: np.ndarray, between: float) -> np.ndarray:
    """Background against classes, then class against class, for the heat of one place."""
    background = heat[0] / (heat[0] + between)
    classes = [(1 - background) * row / sum(heat[1:]) for row in heat[1:]]
    return np.array([background, *classes])


def slow_heat(inputs: LabelInputs) -> np.ndarray:
    """Attention at pixels, that of each class over the square root of its peak on the grid."""
    rows = [inputs.attention[0], *(row / row.max() ** 0.5 for row in inputs.attention[1:])]
    return np.stack([slow_upsample(row, SIZE) for row in rows])


def slow_cluster_means(inputs: LabelInputs) -> np.ndarray:
    """LS eq. 3 pixel by pixel, then the mean over k with weights log k."""
    heat = slow_heat(inputs)
    means = np.zeros(heat.shape)
    for y, x in np.ndindex(*SIZE):
        for k, labels in zip(KS, inputs.segmentation.labels, strict=True):
            pieces, _ = ndimage.label(labels == labels[y, x])
            inside = pieces == pieces[y, x]
            own = [np.log(heat[0][inside]).mean(), *(row[inside].mean() for row in heat[1:])]
            means[:, y, x] += np.log(k) / np.log(KS).sum() * np.array(own)
    means[0] = np.exp(means[0])
    return means


def test_pixels_take_the_mean_heat_of_their_clusters_by_hand() -> None:
    """LS eq. 3, over all k."""
    inputs = random_inputs(1)
    means = slow_cluster_means(inputs)
    between = np.sqrt(means[0].min() * means[0].max())
    scores = label_by_clusters(inputs)
    for y, x in np.ndindex(*SIZE):
        expected = slow_shares(means[:, y, x], between)
        np.testing.assert_allclose(scores.pixels[:, y, x], expected, rtol=1e-4)


def test_masks_take_the_mean_heat_over_them_by_hand() -> None:
    """LS eq. 3."""
    inputs = random_inputs(2)
    heat = slow_heat(inputs)
    between = geometric_midpoint(slow_cluster_means(inputs)[0])
    scores = label_by_clusters(inputs)
    for mask, found in zip(inputs.segmentation.masks, scores.masks, strict=True):
        pixels = [tuple(place) for place in np.argwhere(mask)]
        start = np.exp(sum(np.log(heat[0][place]) for place in pixels) / len(pixels))
        mean = [start, *(sum(row[place] for place in pixels) / len(pixels) for row in heat[1:])]
        np.testing.assert_allclose(found, slow_shares(np.array(mean), between), rtol=1e-4)


def test_a_clustering_that_tells_more_weighs_more() -> None:
    labels = np.array([[[0, 0, 1, 1]], [[0, 1, 2, 3]]], np.uint8)
    plane = np.array([[[0.0, 4.0, 8.0, 8.0]]])
    found = cluster_means(plane, labels, (2, 4))
    np.testing.assert_allclose(found, [[[2 / 3, 10 / 3, 8.0, 8.0]]])


def test_propagation_is_a_sum_over_all_places() -> None:
    """LS eq. 2: AGG[i] = sum over j of CA[j] SA[j, i]."""
    inputs = random_inputs(3)
    assert inputs.self_map is not None
    attention = inputs.self_map.values.numpy()
    flat = inputs.attention.reshape(4, 48)
    expected = np.zeros((4, 48))
    for row, i, j in itertools.product(range(4), range(48), range(48)):
        expected[row, i] += flat[row, j] * attention[j, i]
    found = propagate(inputs.attention, inputs.self_map)
    np.testing.assert_allclose(found.reshape(4, 48), expected, rtol=1e-4)


@pytest.mark.parametrize("power", [1, 4])
def test_powers_are_those_of_the_matrix(power: int) -> None:
    """Dataset Diffusion: SA^4 CA."""
    inputs = random_inputs(4)
    assert inputs.self_map is not None
    attention = np.linalg.matrix_power(inputs.self_map.values.numpy().astype(float), power)
    expected = np.stack([attention @ row.ravel() for row in inputs.attention])
    found = smooth(inputs.attention, inputs.self_map, power)
    np.testing.assert_allclose(found.reshape(4, 48), expected, rtol=1e-4)


def test_heat_of_another_grid_is_brought_to_the_self_map() -> None:
    inputs = random_inputs(5)
    assert inputs.self_map is not None
    fine = np.random.default_rng(1).random((4, 12, 16)).astype(np.float32)
    coarse = upsample(fine, (6, 8))
    np.testing.assert_array_equal(
        propagate(fine, inputs.self_map), propagate(coarse, inputs.self_map)
    )


def test_argmax_is_the_largest_heat_of_each_pixel() -> None:
    """LS eq. 1."""
    inputs = random_inputs(6)
    heat = np.stack([slow_upsample(row, SIZE) for row in inputs.attention])
    scores = label_by_argmax(inputs)
    between = np.sqrt(heat[0].min() * heat[0].max())
    labels, _ = choose(scores.pixels, 0.0)
    for y, x in np.ndindex(*SIZE):
        expected = slow_shares(heat[:, y, x], between)
        np.testing.assert_allclose(scores.pixels[:, y, x], expected, rtol=1e-4)
        best = 0 if expected[0] >= 0.5 else 1 + expected[1:].argmax()
        assert labels[y, x] == best


def slow_votes(inputs: LabelInputs) -> np.ndarray:
    """The authors' votes, one pixel's component after the other."""
    heat = np.stack([slow_upsample(row, SIZE) for row in inputs.attention])
    scaled = [(row - row.min()) / (row.max() - row.min()) for row in heat[1:]]
    votes = np.zeros((len(heat), *SIZE))
    for k, threshold in itertools.product((4, 7, 10), THRESHOLDS):
        labels = inputs.segmentation.labels[KS.index(k)]
        classes = [np.all([row < 1.2 * threshold for row in scaled], axis=0)]
        classes += [row >= threshold for row in scaled]
        done = np.zeros(SIZE, dtype=bool)
        for start in np.ndindex(*SIZE):
            if done[start]:
                continue
            component, stack = np.zeros(SIZE, dtype=bool), [start]
            while stack:
                y, x = stack.pop()
                inside = 0 <= y < SIZE[0] and 0 <= x < SIZE[1]
                if not inside or component[y, x] or labels[y, x] != labels[start]:
                    continue
                component[y, x] = True
                stack += [(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
            done |= component
            iou = [(component & c).sum() / max((component | c).sum(), 1) for c in classes]
            votes[int(np.argmax(iou)), component] += 1
    return votes / 9


def test_votes_are_those_of_a_loop_over_components() -> None:
    """PCC: 3 x 3 votes; below .56 agreement nothing is decided."""
    inputs = random_inputs(7)
    expected = slow_votes(inputs)
    scores = label_by_votes(inputs, presence=0.0, presence_area=0.0)
    agreed = expected.max(0) >= 0.56
    assert 0.1 < agreed.mean() < 1
    np.testing.assert_allclose(scores.pixels[:, agreed], expected[:, agreed], atol=1e-6)
    labels, _ = choose(scores.pixels, 1e-6)
    assert (labels[~agreed] == 255).all()
    decided = agreed & (np.sort(expected, axis=0)[-1] > 0.56)
    np.testing.assert_array_equal(labels[decided], expected.argmax(0)[decided])


@pytest.mark.parametrize("margin", [0.0, 0.02])
@pytest.mark.parametrize("num", [1, 2, 4, 7])
def test_votes_that_disagree_stay_undecided_whichever_classes_are_there(
    num: int, margin: float
) -> None:
    """One class is there, the others have next to no heat."""
    inputs = random_inputs(7, num)
    inputs.attention[2:] *= 0.02
    config = LabelConfig(method="vote", presence_area=0.01, margin=margin, refiner="none")
    assert config.presence == 0.1
    scaled = replace(inputs, attention=inputs.attention[:2])
    agreed = slow_votes(scaled).max(0) >= 0.56
    assert 0.1 < agreed.mean() < 1
    names = tuple(f"class {i}" for i in range(num))
    heat = Heatmaps(
        names, torch.from_numpy(inputs.attention[1:]), torch.from_numpy(inputs.attention[0])
    )
    found = label_sample(inputs.segmentation, heat, None, config, inputs.image)
    assert found.not_found == names[1:]
    np.testing.assert_array_equal(found.semantic == 255, ~agreed)


def test_the_authors_ks_are_taken_where_they_are() -> None:
    assert nearest_ks((4, 7, 10)) == [0, 1, 2]
    assert nearest_ks((2, 20)) == [0, 1]


@pytest.mark.parametrize("method", sorted(LABELERS))
def test_a_sample_without_masks_has_labels_of_pixels(method: str) -> None:
    inputs = random_inputs(9)
    none = {"masks": np.zeros((0, *SIZE), bool), "members": (), "parent": np.zeros(0, np.int64)}
    without = replace(inputs, segmentation=replace(inputs.segmentation, **none))
    labeler = resolve(method, LABELERS)
    scores = labeler(without)
    assert scores.masks.shape == (0, 4)
    np.testing.assert_array_equal(scores.pixels, labeler(inputs).pixels)
    found = decide(keep_present(scores, 0.25, 0.002), ("a", "b", "c"), 0.02)
    assert found.mask_labels.shape == found.mask_scores.shape == (0,)


@pytest.mark.parametrize("method", sorted(LABELERS))
def test_every_labeler_gives_shares_and_repeats(method: str) -> None:
    inputs = random_inputs(8)
    labeler = resolve(method, LABELERS)
    scores = labeler(inputs)
    assert scores.pixels.shape == (4, *SIZE)
    assert scores.masks.shape == (len(inputs.segmentation), 4)
    np.testing.assert_allclose(scores.pixels.sum(0), 1, rtol=1e-4)
    np.testing.assert_allclose(scores.masks.sum(1), 1, rtol=1e-4)
    again = labeler(inputs)
    assert again.pixels.tobytes() == scores.pixels.tobytes()
    assert again.masks.tobytes() == scores.masks.tobytes()


# --- planted heat -----------------------------------------------------------------------------

PLAIN = {"presence": 0.4, "presence_area": 0.01, "margin": 0.05, "refiner": "none"}
BLANK = np.zeros((64, 64, 3), np.uint8)
NO_TESTS = {"presence": 0.0, "presence_area": 0.0, "margin": 0.0, "refiner": "none"}


def planted(rows: dict[str, np.ndarray], background: np.ndarray) -> Heatmaps:
    values = torch.from_numpy(np.stack(list(rows.values())).astype(np.float32))
    return Heatmaps(tuple(rows), values, torch.from_numpy(background.astype(np.float32)))


def planted_segmentation(size: int = 64) -> Segmentation:
    """Four quadrants, each a mask, and halves that hold two of them."""
    quarters = quadrants(size)
    labels = np.stack([quarters // 2, quarters]).astype(np.uint8)
    return Segmentation.of(build_masks(labels, (2, 4)), (2, 4), labels)


@pytest.mark.parametrize("method", sorted(LABELERS))
def test_every_method_finds_planted_classes_and_not_an_absent_one(method: str) -> None:
    """Cat above left, dog below right; a bird was prompted and has no place."""
    region = quadrants(16)
    cat, dog = (region == 0) * 0.8 + 0.1, (region == 3) * 0.8 + 0.1
    bird = 0.1 + 0.02 * np.random.default_rng(0).random((16, 16))
    start = np.where((region == 0) | (region == 3), 0.1, 0.9)
    heat = planted({"cat": cat, "dog": dog, "bird": bird}, start)
    same = torch.from_numpy(region.ravel()[:, None] == region.ravel()[None]).float()
    self_map = SelfMap(same / same.sum(1, keepdim=True), (16, 16))
    config = LabelConfig(method=method, **PLAIN)
    found = label_sample(planted_segmentation(), heat, self_map, config, BLANK)
    expected = np.select([quadrants(64) == 0, quadrants(64) == 3], [1, 2], 0)
    decided = found.semantic != 255
    assert decided.mean() > (0.45 if method == "vote" else 0.9)  # k = 2 cannot vote for quadrants
    right = (found.semantic == expected)[decided].mean()
    assert right == 1 if method == "clusters" else right > 0.95  # pixels blur along borders
    assert found.not_found == ("bird",)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert ((found.mask_scores >= 0) & (found.mask_scores <= 1)).all()


def test_a_small_mask_may_disagree_with_the_one_around_it() -> None:
    outer = np.zeros((32, 32), dtype=bool)
    outer[4:28, 4:28] = True
    inner = np.zeros_like(outer)
    inner[10:18, 10:18] = True
    masks = MaskSet(np.stack([outer, inner]), (((2, 1),), ((5, 2),)), np.array([-1, 0]))
    labels = np.stack([outer, outer.astype(np.uint8) + inner]).astype(np.uint8)
    segmentation = Segmentation.of(masks, (2, 5), labels)
    heat = planted({"car": outer & ~inner, "wheel": inner}, np.where(outer, 0.1, 0.9))
    config = LabelConfig(method="clusters", **PLAIN)
    found = label_sample(segmentation, heat, None, config, np.zeros((32, 32, 3), np.uint8))
    assert found.mask_labels.tolist() == [1, 2]
    np.testing.assert_array_equal(found.semantic, np.select([inner, outer], [2, 1], 0))


def test_a_flat_start_of_text_map_decides_nothing() -> None:
    heat = planted({"cat": np.ones((4, 4))}, np.full((4, 4), 0.7))
    for method in ("clusters", "argmax"):
        config = LabelConfig(method=method, **PLAIN)
        found = label_sample(planted_segmentation(), heat, None, config, BLANK)
        assert set(np.unique(found.semantic)) == {255}
        assert found.not_found == ("cat",)


@pytest.mark.parametrize("num", [1, 2, 4])
def test_more_classes_make_no_more_background(num: int) -> None:
    """The background is judged against the image's own extremes, not against each class."""
    inside = quadrants(16) == 0
    maps = {f"class {i}": np.where(inside, 0.1, 0.02) * (1 + i) for i in range(num)}
    heat = planted(maps, np.where(inside, 0.2, 0.8))
    config = LabelConfig(method="clusters", **NO_TESTS)
    found = label_sample(planted_segmentation(), heat, None, config, BLANK)
    np.testing.assert_array_equal(found.semantic != 0, quadrants(64) == 0)


# --- the decision -----------------------------------------------------------------------------


def test_decisions_by_hand() -> None:
    rng = np.random.default_rng(5)
    pixels, masks = shares(rng.random((4, 6, 7)) + 0.01), shares(rng.random((4, 5))).T
    config = LabelConfig(method="argmax", presence=0.4, presence_area=0.1, margin=0.1)
    kept = keep_present(ClassScores(pixels, masks), config.presence, config.presence_area)
    found = decide(kept, ("a", "b", "c"), config.margin)
    there = [i for i in (1, 2, 3) if (pixels[i] >= 0.4).sum() / 42 >= 0.1]
    assert 1 < len(there) < 3
    for y, x in np.ndindex(6, 7):
        background = pixels[0, y, x]
        total = sum(pixels[i, y, x] for i in there)
        left = {i: (1 - background) * pixels[i, y, x] / total for i in there}
        best, second = sorted(left, key=lambda i: -left[i])[:2]
        ahead, label, score = abs(2 * background - 1), 0, background
        if background < 0.5:
            ahead, label, score = min(ahead, left[best] - left[second]), best, left[best]
        assert found.semantic[y, x] == (label if ahead > 0.1 else 255)
        assert found.scores[y, x] == pytest.approx(score)
    held = set(np.unique(found.semantic))
    names = ("a", "b", "c")
    assert found.not_found == tuple(names[i - 1] for i in (1, 2, 3) if i not in held)
    assert set(found.mask_labels.tolist()) <= {0, *there, 255}


def test_presence_needs_share_and_area() -> None:
    pixels = np.zeros((3, 10, 10))
    pixels[1, 0, 0] = 0.9
    pixels[2, :5] = 0.5
    assert present_classes(pixels, 0.5, 0.02).tolist() == [True, False, True]
    assert present_classes(pixels, 0.95, 0.0).tolist() == [True, False, False]


def test_without_classes_everything_is_undecided() -> None:
    segmentation = random_segmentation(0)
    image = np.zeros((*SIZE, 3), np.uint8)
    found = label_sample(segmentation, None, None, LabelConfig(method="clusters"), image)
    assert set(np.unique(found.semantic)) == {255}
    assert set(found.mask_labels.tolist()) == {255}
    assert found.not_found == ()
    assert found.mask_scores.max() == 0


def test_a_refiner_changes_the_map_and_what_is_found() -> None:
    heat = planted({"cat": quadrants(16) == 0}, quadrants(16) != 0)
    config = LabelConfig(method="argmax", **PLAIN | {"refiner": "test_labeling:undecide"})
    found = label_sample(planted_segmentation(), heat, None, config, BLANK)
    assert set(np.unique(found.semantic)) == {255}
    assert found.not_found == ("cat",)
    assert 1 in found.mask_labels


def test_specks_that_a_refiner_leaves_join_what_is_around_them() -> None:
    """Two of 64 x 64 pixels are a speck (.0005), three are not."""
    heat = planted({"cat": quadrants(16) == 0}, quadrants(16) != 0)
    config = LabelConfig(method="argmax", **PLAIN | {"refiner": "test_labeling:speckle"})
    found = label_sample(planted_segmentation(), heat, None, config, BLANK)
    assert found.semantic[5, 5:9].tolist() == [1, 1, 1, 1]
    assert found.semantic[9, 5:10].tolist() == [1, 0, 0, 0, 1]


def test_specks_of_a_labeler_join_what_is_around_them_without_a_refiner() -> None:
    """By red: of two pixels, of another class or undecided, nothing is left; three stay."""
    image = BLANK.copy()
    image[32:, :, 0] = 255
    image[5, 6:8, 0], image[9, 6:9, 0], image[50, 6:8, 0] = 255, 255, 127  # the last: a tie
    heat = planted({"cat": np.ones((4, 4))}, np.ones((4, 4)))
    config = LabelConfig(method="test_labeling:by_red", **PLAIN | {"margin": 0.02})
    assert config.refiner == LabelConfig().refiner == "none"
    found = label_sample(planted_segmentation(), heat, None, config, image)
    assert found.semantic[5, 5:9].tolist() == [0, 0, 0, 0]
    assert found.semantic[9, 5:10].tolist() == [0, 1, 1, 1, 0]
    assert found.semantic[50, 5:9].tolist() == [1, 1, 1, 1]


def speckle(
    semantic: np.ndarray, image: np.ndarray, scores: object = None, uncertainty: object = None
) -> np.ndarray:
    """Two pixels, and three, of the background within the cat."""
    specks = semantic.copy()
    specks[5, 6:8] = specks[9, 6:9] = 0
    return specks


def test_a_refiner_sees_no_class_that_was_not_there() -> None:
    """Three classes share the lower half of a cat's place; none of them passes the test."""
    cat, low = quadrants(16) == 0, np.arange(16)[:, None] >= 4
    rows = {"cat": np.select([cat & low, cat], [0.15, 0.5], 0.02)}
    rows |= {n: np.select([cat & low, cat], [0.4, 0.12], 0.02) for n in ("dog", "bird", "cow")}
    start = np.where(cat, 0.05, 0.3)
    heat, alone = planted(rows, start), planted({"cat": rows["cat"]}, start)
    plain = LabelConfig(method="argmax", **PLAIN)
    image = np.full((64, 64, 3), 128, dtype=np.uint8)
    before = label_sample(planted_segmentation(), heat, None, plain, image)
    assert before.not_found == ("dog", "bird", "cow")
    refining = plain.model_copy(update={"refiner": "pamr"})
    after = label_sample(planted_segmentation(), heat, None, refining, image)
    expected = label_sample(planted_segmentation(), alone, None, refining, image)
    np.testing.assert_array_equal(after.semantic, expected.semantic)
    np.testing.assert_allclose(after.scores, expected.scores, atol=1e-6)


def undecide(
    semantic: np.ndarray, image: np.ndarray, scores: object = None, uncertainty: object = None
) -> np.ndarray:
    return np.full_like(semantic, 255)


def by_red(inputs: LabelInputs, **_: float) -> ClassScores:
    """A third party's labeler: class 1 wherever red is strong."""
    red = inputs.image[..., 0] / 255
    pixels = np.stack([1 - red, red])
    return ClassScores(pixels, np.tile([0.5, 0.5], (len(inputs.segmentation), 1)))


def test_a_third_partys_labeler_is_found_by_its_name() -> None:
    image = BLANK.copy()
    image[:32, :, 0] = 255
    heat = planted({"cat": np.ones((4, 4))}, np.ones((4, 4)))
    config = LabelConfig(method="test_labeling:by_red", **PLAIN)
    found = label_sample(planted_segmentation(), heat, None, config, image)
    np.testing.assert_array_equal(found.semantic[:32], 1)
    np.testing.assert_array_equal(found.semantic[32:], 0)


def test_methods_that_lack_what_they_need_say_so() -> None:
    heat = planted({"cat": np.ones((4, 4))}, np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"must have self-attention. Got none"):
        label_sample(planted_segmentation(), heat, None, LabelConfig(method="propagate"), BLANK)
    with pytest.raises(ValueError, match="Did you mean 'clusters'"):
        label_sample(planted_segmentation(), heat, None, LabelConfig(method="cluster"), BLANK)


def test_the_background_is_above_the_geometric_middle() -> None:
    values, start = torch.rand(2, 3, 4), torch.tensor([[0.01, 0.09, 0.11, 1.0]]).repeat(3, 1)
    heat = attention_rows(Heatmaps(("a", "b"), values, start))
    np.testing.assert_array_equal(heat, torch.cat([start[None], values]).numpy())
    config = LabelConfig(method="argmax", **NO_TESTS)
    segmentation = Segmentation.of(
        MaskSet(np.ones((1, 3, 4), bool), (((2, 0),),), np.array([-1])),
        (2,),
        np.zeros((1, 3, 4), np.uint8),
    )
    maps, image = Heatmaps(("a", "b"), values, start), np.zeros((3, 4, 3), np.uint8)
    found = label_sample(segmentation, maps, None, config, image)
    np.testing.assert_array_equal(found.semantic == 0, start.numpy() > 0.1)
    heavier = config.model_copy(update={"background": 1.2})
    found = label_sample(segmentation, maps, None, heavier, image)
    np.testing.assert_array_equal(found.semantic == 0, start.numpy() > 0.1 / 1.2)
    without = label_sample(segmentation, Heatmaps(("a", "b"), values), None, config, image)
    assert 0 not in without.semantic


# --- what is recorded -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "target"), [((4, 6), (4, 6)), ((8, 12), (4, 6)), ((2, 3), (4, 6)), ((5, 5), (3, 3))]
)
def test_pooled_self_attention_by_hand(grid: tuple[int, int], target: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    pos, heads, dim = grid[0] * grid[1], 2, 3
    query = torch.randn(1, pos, heads * dim, generator=generator)
    key = torch.randn(1, pos, heads * dim, generator=generator)
    full = np.zeros((pos, pos))
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        scores = query[0, :, part].double() @ key[0, :, part].double().T * 0.5
        full += scores.softmax(dim=1).numpy() / heads
    rows = np.stack([_onto(row.reshape(grid), target) for row in full])
    rows = rows / rows.sum(1, keepdims=True)
    columns = [_gather(column.reshape(grid), target) for column in rows.T]
    expected = np.stack(columns, axis=1)
    found = pooled_self_map(query, key, heads, 0.5, grid, target)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found[0].sum(1), 1, rtol=1e-5)


def _cells(grid: tuple[int, int], target: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Rows and columns of the grid under each target cell, as adaptive pooling has them."""
    bounds = [
        [(i * side // out, -(-(i + 1) * side // out)) for i in range(out)]
        for side, out in zip(grid, target, strict=True)
    ]
    return [(slice(*rows), slice(*columns)) for rows in bounds[0] for columns in bounds[1]]


def _onto(plane: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    if plane.shape[0] < target[0]:
        return slow_upsample(plane, target).ravel()
    return np.array([plane[cell].mean() for cell in _cells(plane.shape, target)])


def _gather(plane: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    if plane.shape[0] < target[0]:
        rows = np.arange(target[0]) * plane.shape[0] // target[0]
        columns = np.arange(target[1]) * plane.shape[1] // target[1]
        return plane[rows[:, None], columns].ravel()
    return np.array([plane[cell].mean() for cell in _cells(plane.shape, target)])


def test_the_attributed_text_names_every_class() -> None:
    prompt = Prompt("0", "a red car", ("car", "aeroplane"))
    assert attributed_text(prompt, prompt.text, "prompt") == "a red car"
    assert attributed_text(prompt, prompt.text, "classes") == "car, aeroplane"
    assert attributed_text(prompt, prompt.text, "caption") == "a red car; aeroplane"


def test_classes_without_tokens_are_refused_in_one_line() -> None:
    tokenizer = tiny_tokenizer()
    prompt = Prompt("p7", "a red car", ("car", "dog"))
    named = LabelConfig(method="clusters", text="prompt")
    with pytest.raises(ValueError, match=r"no token for 'dog' in prompt p7; name it there, or"):
        check_class_tokens(tokenizer, [prompt], [prompt.text], named)
    for text in ("caption", "classes"):
        check_class_tokens(
            tokenizer, [prompt], [prompt.text], LabelConfig(method="clusters", text=text)
        )
    long = Prompt("p8", "a red car and " * 40, ("dog",))
    with pytest.raises(ValueError, match=r"within 77 tokens.*shorten it"):
        check_class_tokens(tokenizer, [long], [long.text], LabelConfig(method="clusters"))


def test_class_names_that_no_map_can_tell_apart_are_refused() -> None:
    check_names(["car", "carpet", "dog", "hot dog"])
    with pytest.raises(ValueError, match="Got none in any prompt"):
        check_names([])
    with pytest.raises(ValueError, match=r"at most 254 classes.*Got 255; split"):
        check_names([f"thing{'x' * i}" for i in range(255)])
    pairs = [("tvmonitor", "tv monitor"), ("airplane", "plane"), ("bus", "buses")]
    pairs += [("person", "people"), ("Car", "car"), ("traffic_light", "traffic light")]
    for one, other in pairs:
        with pytest.raises(ValueError, match=r"Every class must have one name"):
            check_names([one, other])


def test_only_labeling_changes_the_digest() -> None:
    assert "labeling" not in Config().digest_settings()
    labeled = Config(labeling=LabelConfig(method="vote")).digest_settings()
    assert labeled["labeling"]["method"] == "pcc"  # what it was called when digests were made
