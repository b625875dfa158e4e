"""Clusters whose borders follow the image: against a slow reference, and what must stay."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from planted import planted_sample

from synthgen.config import SegmentationConfig
from synthgen.embedded.vocabulary import TUNING_SEEDS
from synthgen.lab.world.render import render
from synthgen.registry import CLUSTER_REFINERS
from synthgen.segmentation import refine
from synthgen.segmentation.features import rgbxy_block
from synthgen.segmentation.kmeans import cluster
from synthgen.segmentation.metrics import boundary_f
from synthgen.segmentation.segment import segment_sample

KS = (2, 3)


def noisy_labels(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, k, (height, width), dtype=np.uint8) for k in KS])


def slow_step(p: np.ndarray, image: np.ndarray, distance: int, scale: np.ndarray) -> np.ndarray:
    """One averaging, pixel by pixel, as the module's formula says."""
    height, width, _ = image.shape
    out = np.zeros_like(p)
    for y in range(height):
        for x in range(width):
            near = [
                (min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1))
                for dy in (-distance, 0, distance)
                for dx in (-distance, 0, distance)
                if (dy, dx) != (0, 0)
            ]
            unlike = [
                np.mean(np.abs(image[place] - image[y, x]) / scale[y, x]).item() for place in near
            ]
            least = min(unlike)
            shares = [math.exp(least - value) for value in unlike]
            for place, share in zip(near, shares, strict=True):
                out[:, y, x] += share / sum(shares) * p[(slice(None), *place)]
    return out


def slow_refinement(labels: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The whole schedule on an image of at most `SIDE`, in float64."""
    colors = image / 255
    height, width, _ = colors.shape
    rows, columns = np.arange(height), np.arange(width)
    around = [
        colors[
            np.clip(rows + d * dy, 0, height - 1)[:, None], np.clip(columns + d * dx, 0, width - 1)
        ]
        for d in set(refine.FAR_AND_NEAR)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    scale = refine.CONTRAST * np.maximum(np.std(around, axis=0), refine.LEAST_DEVIATION)
    refined = []
    for label_map, k in zip(labels, KS, strict=True):
        p = np.stack([label_map == c for c in range(k)]).astype(float)
        for distance in refine.FAR_AND_NEAR:
            p = slow_step(p, colors, distance, scale)
        refined.append(p)
    return np.stack(
        [slow_join(p.argmax(0), refine.SPECK * height * width) for p in refined]
    ), refined


AROUND = ((0, 1), (1, 0), (0, -1), (-1, 0))


def slow_join(labels: np.ndarray, least: float) -> np.ndarray:
    """Pieces found by walking; in rounds, each that borders on one that is large joins it."""
    labels = labels.copy()
    pieces, number = list[list[tuple[int, int]]](), np.full(labels.shape, -1)
    for start in np.ndindex(labels.shape):
        waiting = [start] if number[start] < 0 else []
        pieces += [[]] if waiting else []
        while waiting:
            place = waiting.pop()
            if number[place] < 0 and labels[place] == labels[start]:
                number[place] = len(pieces) - 1
                pieces[-1].append(place)
                waiting += neighbors(place, labels.shape)
    small = {n for n, piece in enumerate(pieces) if len(piece) < least}
    while True:
        votes = {
            n: Counter(
                int(labels[near])
                for place in pieces[n]
                for near in neighbors(place, labels.shape)
                if number[near] not in small
            )
            for n in small
        }
        for n, counted in votes.items():
            if counted:
                small.remove(n)
                for place in pieces[n]:
                    labels[place] = min(c for c in counted if counted[c] == max(counted.values()))
        if not any(votes.values()):
            return labels


def neighbors(place: tuple[int, int], shape: tuple[int, int]) -> list[tuple[int, int]]:
    near = [(place[0] + dy, place[1] + dx) for dy, dx in AROUND]
    return [(y, x) for y, x in near if 0 <= y < shape[0] and 0 <= x < shape[1]]


def slow_upsampling(shares: np.ndarray, small: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Scores of each pixel from the nine cells around its own, one by one."""
    rows, columns = small.shape[:2]
    factor = image.shape[0] // rows
    scores = np.zeros((shares.shape[0], *image.shape[:2]))
    for y, x in np.ndindex(image.shape[:2]):
        cells = [
            (min(max(y // factor + dy, 0), rows - 1), min(max(x // factor + dx, 0), columns - 1))
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
        scale = np.std([small[cell] for cell in cells], axis=0)
        scale = refine.CONTRAST * np.maximum(scale, refine.LEAST_DEVIATION)
        like = [math.exp(-np.mean(np.abs(small[cell] - image[y, x]) / scale)) for cell in cells]
        for n, cell in enumerate(cells):
            far_y = abs(n // 3 - 1 - ((y % factor + 0.5) / factor - 0.5))
            far_x = abs(n % 3 - 1 - ((x % factor + 0.5) / factor - 0.5))
            nearness = max(1.5 - far_y, 0) * max(1.5 - far_x, 0)
            scores[:, y, x] += like[n] / sum(like) * nearness * shares[(slice(None), *cell)]
    return scores


def test_equals_the_formula_pixel_by_pixel() -> None:
    image = np.random.default_rng(1).integers(0, 256, (11, 14, 3), dtype=np.uint8)
    labels = noisy_labels(11, 14)
    expected, shares = slow_refinement(labels, image)
    found = refine.refine_by_affinity(labels, KS, image)
    clear = [np.diff(np.sort(p, 0)[-2:], axis=0)[0] > 1e-5 for p in shares]
    assert np.mean(clear) > 0.95
    assert (found == expected)[np.stack(clear)].all()


def slow_guided_filter(
    image: np.ndarray, p: np.ndarray, radius: int, least_variance: float
) -> np.ndarray:
    """He, Sun and Tang 2013, eq. 19 to 21, window by window and pixel by pixel."""
    height, width, _ = image.shape

    def window(y: int, x: int) -> tuple[slice, slice]:
        return tuple(slice(max(v - radius, 0), v + radius + 1) for v in (y, x))  # type: ignore[return-value]

    slope, offset = np.zeros((height, width, 3)), np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        colors, shares = image[window(y, x)].reshape(-1, 3), p[window(y, x)].ravel()
        covariance = np.cov(colors.T, bias=True) + least_variance * np.eye(3)
        together = (colors * shares[:, None]).mean(0) - colors.mean(0) * shares.mean()
        slope[y, x] = np.linalg.solve(covariance, together)
        offset[y, x] = shares.mean() - slope[y, x] @ colors.mean(0)
    out = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        mean_slope = slope[window(y, x)].reshape(-1, 3).mean(0)
        out[y, x] = mean_slope @ image[y, x] + offset[window(y, x)].mean()
    return out


def test_the_guided_filter_equals_its_equations() -> None:
    rng = np.random.default_rng(3)
    image = rng.random((13, 17, 3)).astype(np.float32)
    maps = rng.random((2, 13, 17)).astype(np.float32)
    guide, shares = torch.from_numpy(image).movedim(-1, 0), torch.from_numpy(maps)
    found = refine.guided_filter(guide, shares, 3, 1e-3, coarser=1)
    for one, p in zip(found, maps, strict=True):
        np.testing.assert_allclose(one, slow_guided_filter(image, p, 3, 1e-3), atol=2e-4)


@pytest.mark.parametrize("size", [(40, 60), (37, 51)])
def test_the_coarser_filter_keeps_what_is_linear_in_the_color(
    size: tuple[int, int],
) -> None:
    y, x = np.mgrid[: size[0], : size[1]] / 64
    image = torch.from_numpy(np.stack([y, x, 0 * x]).astype(np.float32))
    maps = torch.stack([0.2 + 0.3 * image[0] + 0.4 * image[1], 0.8 - 0.5 * image[1]])
    found = refine.guided_filter(image, maps, 8, 1e-7)
    np.testing.assert_allclose(found, maps, atol=3e-3)


def test_superpixels_take_the_cluster_of_most_of_their_pixels() -> None:
    scene = render(TUNING_SEEDS[3])
    truth = (scene.instance > 0).astype(np.uint8)
    shifted = np.roll(truth, 3, axis=1)
    found = refine.refine_by_superpixels(shifted[None], (2,), scene.image)[0]
    regions = cluster([rgbxy_block(scene.image)], truth.shape, (refine.SUPERPIXELS,)).labels[0]
    for region in np.unique(regions):
        inside = regions == region
        votes = np.bincount(shifted[inside], minlength=2)
        agrees = found[inside] == votes.argmax()
        assert agrees.all() or inside.sum() < refine.SPECK * truth.size or agrees.mean() > 0.5
    assert boundary_f(truth > 0, found > 0, 1.0) > boundary_f(truth > 0, shifted > 0, 1.0)


def invents(labels: np.ndarray, ks: tuple[int, ...], image: np.ndarray) -> np.ndarray:
    return labels + 1


def mirrors(labels: np.ndarray, ks: tuple[int, ...], image: np.ndarray) -> np.ndarray:
    return labels[:, :, ::-1]


def test_a_refiner_of_mine_is_a_row_like_any_other() -> None:
    labels, image = noisy_labels(20, 24), np.zeros((20, 24, 3), np.uint8)
    found = refine.refine_clusters(labels, KS, image, f"{__name__}:mirrors")
    assert np.array_equal(found, labels[:, :, ::-1])
    with pytest.raises(ValueError, match=r"must return .* Got .* up to \[2, 3\]"):
        refine.refine_clusters(labels, KS, image, f"{__name__}:invents")
    with pytest.raises(ValueError, match="Did you mean 'guided'"):
        SegmentationConfig(refiner="giuded")


def test_pixels_weigh_the_cells_around_them() -> None:
    rng = np.random.default_rng(5)
    image = rng.random((12, 256, 3)).astype(np.float32)
    image[:, :128] = image[:, :128] * 0.05 + 0.4  # less contrast than counts as an edge
    shares = rng.dirichlet(np.full(3, 0.3), (6, 128)).transpose(2, 0, 1).astype(np.float32)
    shares[:, :, 40:60] = np.array([0.2, 0.7, 0.1], np.float32)[:, None, None]  # one winner
    small = image.reshape(6, 2, 128, 2, 3).mean((1, 3))
    colors, cells = (torch.from_numpy(a).movedim(-1, 0).contiguous() for a in (image, small))
    found = refine.back_to_pixels(torch.from_numpy(shares), (3,), cells, colors, 2)[0]
    scores = slow_upsampling(shares, small, image)
    clear = np.diff(np.sort(scores, 0)[-2:], axis=0)[0] > 1e-5
    assert clear.mean() > 0.95
    assert (found == scores.argmax(0))[clear].all()
    assert len(np.unique(found)) == 3


@pytest.mark.parametrize("seed", range(8))
def test_specks_join_what_is_around_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (5, 6), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    noise = rng.random(coarse.shape) < 0.15
    labels = np.where(noise, rng.integers(0, 4, coarse.shape, dtype=np.uint8), coarse)
    found = refine.join_specks(labels, 6.0)
    assert np.array_equal(found, slow_join(labels, 6))
    assert not np.array_equal(found, labels)
    everywhere = rng.integers(0, 250, (9, 9), dtype=np.uint8)
    assert np.array_equal(refine.join_specks(everywhere, 1000.0), everywhere), "nothing to join"


REFINERS = [name for name in CLUSTER_REFINERS if name != "none"]


SMALL, LARGE = (40, 60), [(300, 512), (257, 400)]  # superpixels of large noise take half a minute


@pytest.mark.parametrize(
    ("size", "name"),
    [
        *((SMALL, name) for name in REFINERS),
        *((size, name) for size in LARGE for name in REFINERS if name != "superpixel"),
    ],
)
def test_every_k_stays_a_partition_and_the_bytes_repeat(size: tuple[int, int], name: str) -> None:
    image = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = noisy_labels(*size)
    found = refine.refine_clusters(labels, KS, image, name)
    assert found.shape == labels.shape
    assert found.dtype == np.uint8
    assert all(found[i].max() < k for i, k in enumerate(KS))
    torch.set_num_threads(2)
    again = refine.refine_clusters(labels, KS, image, name)
    torch.set_num_threads(1)
    assert np.array_equal(found, again)


@pytest.mark.parametrize("name", ["affinity", "affinity-guided"])
@pytest.mark.parametrize("size", [128, 512])
def test_a_shifted_border_comes_back_to_the_edge(size: int, name: str) -> None:
    scene = render(TUNING_SEEDS[3], size=size)
    truth = (scene.instance > 0).astype(np.uint8)
    shifted = np.roll(truth, size // 40, axis=1)
    before = boundary_f(truth > 0, shifted > 0, 1.0)
    found = refine.refine_clusters(shifted[None], (2,), scene.image, name)[0]
    assert boundary_f(truth > 0, found > 0, 1.0) > before + 0.3


def test_a_flat_image_moves_no_straight_border() -> None:
    labels = np.zeros((1, 40, 40), np.uint8)
    labels[:, :, 20:] = 1
    image = np.full((40, 40, 3), 90, np.uint8)
    assert np.array_equal(refine.refine_clusters(labels, (2,), image), labels)


def test_the_setting_refines_every_k_before_masks_are_built() -> None:
    sample = planted_sample()
    plain = segment_sample(sample, SegmentationConfig(refiner="none"))
    refined = segment_sample(sample, SegmentationConfig())
    expected = refine.refine_clusters(plain.labels, plain.ks, sample.image)
    assert np.array_equal(refined.labels, expected)
    assert not np.array_equal(refined.labels, plain.labels)
    masks = refined.mask_set.masks
    k, cluster = refined.mask_set.members[0][0]
    assert np.array_equal(masks[0], refined.labels[refined.ks.index(k)] == cluster)
