"""Clusters whose borders follow the image: against a slow reference, and what must stay."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from planted import planted_sample

from synthgen.config import SegmentationConfig
from synthgen.embedded.vocabulary import TUNING_SEEDS
from synthgen.lab.world.render import render
from synthgen.segmentation import refine
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
        for d in set(refine.SCHEDULE)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    scale = refine.CONTRAST * np.maximum(np.std(around, axis=0), refine.LEAST_DEVIATION)
    refined = []
    for label_map, k in zip(labels, KS, strict=True):
        p = np.stack([label_map == c for c in range(k)]).astype(float)
        for distance in refine.SCHEDULE:
            p = slow_step(p, colors, distance, scale)
        refined.append(p)
    return np.stack([p.argmax(0) for p in refined]), refined


def test_equals_the_formula_pixel_by_pixel() -> None:
    image = np.random.default_rng(1).integers(0, 256, (11, 14, 3), dtype=np.uint8)
    labels = noisy_labels(11, 14)
    expected, shares = slow_refinement(labels, image)
    found = refine.refine_clusters(labels, KS, image)
    clear = [np.diff(np.sort(p, 0)[-2:], axis=0)[0] > 1e-5 for p in shares]
    assert np.mean(clear) > 0.95
    assert (found == expected)[np.stack(clear)].all()


@pytest.mark.parametrize("size", [(40, 60), (300, 512), (257, 400)])
def test_every_k_stays_a_partition_and_the_bytes_repeat(size: tuple[int, int]) -> None:
    image = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = noisy_labels(*size)
    found = refine.refine_clusters(labels, KS, image)
    assert found.shape == labels.shape
    assert found.dtype == np.uint8
    assert all(found[i].max() < k for i, k in enumerate(KS))
    torch.set_num_threads(2)
    again = refine.refine_clusters(labels, KS, image)
    torch.set_num_threads(1)
    assert np.array_equal(found, again)


@pytest.mark.parametrize("size", [128, 512])
def test_a_shifted_border_comes_back_to_the_edge(size: int) -> None:
    scene = render(TUNING_SEEDS[3], size=size)
    truth = (scene.instance > 0).astype(np.uint8)
    shifted = np.roll(truth, size // 40, axis=1)
    before = boundary_f(truth > 0, shifted > 0, 1.0)
    found = refine.refine_clusters(shifted[None], (2,), scene.image)[0]
    assert boundary_f(truth > 0, found > 0, 1.0) > before + 0.3


def test_a_flat_image_moves_no_straight_border() -> None:
    labels = np.zeros((1, 40, 40), np.uint8)
    labels[:, :, 20:] = 1
    image = np.full((40, 40, 3), 90, np.uint8)
    assert np.array_equal(refine.refine_clusters(labels, (2,), image), labels)


def test_the_setting_refines_every_k_before_masks_are_built() -> None:
    sample = planted_sample()
    plain = segment_sample(sample, SegmentationConfig())
    refined = segment_sample(sample, SegmentationConfig(refiner="affinity"))
    expected = refine.refine_clusters(plain.labels, plain.ks, sample.image)
    assert np.array_equal(refined.labels, expected)
    assert not np.array_equal(refined.labels, plain.labels)
    masks = refined.mask_set.masks
    k, cluster = refined.mask_set.members[0][0]
    assert np.array_equal(masks[0], refined.labels[refined.ks.index(k)] == cluster)
