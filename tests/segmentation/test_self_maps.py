"""Segmenters on self-attention maps against their equations, one number at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import planted_sample, quadrants

from synthgen.config import SegmentationConfig
from synthgen.config.settings import SEGMENT_SELF_MAP
from synthgen.registry import SEGMENTERS
from synthgen.segmentation.diffseg import anchors, diffseg, divergences, proposals
from synthgen.segmentation.iseg import reduced_entropy, refined
from synthgen.segmentation.metrics import adjusted_rand
from synthgen.segmentation.segment import segment_sample
from synthgen.segmentation.self_maps import largest
from synthgen.segmentation.spectral import spectral_vectors
from synthgen.types import Sample, SelfMap

GRID = 8


def attention(seed: int = 0, sharpness: float = 4.0, grid: int = GRID) -> torch.Tensor:
    """Self-attention of a grid of quadrants, with noise; rows sum to 1."""
    regions = torch.from_numpy(quadrants(grid)).flatten()
    noise = torch.randn(grid**2, grid**2, generator=torch.Generator().manual_seed(seed))
    return (sharpness * (regions[:, None] == regions) + 0.3 * noise).softmax(1)


def planted() -> Sample:
    sample = planted_sample()
    return replace(sample, self_map=SelfMap(attention(), (GRID, GRID)))


def literal_kl(a: list[float], b: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(a, b, strict=True))


def literal_diffseg(rows: np.ndarray, tau: float, chosen: list[int]) -> list[list[float]]:
    """Eq. 1 to 3 as loops over lists."""

    def far(a: list[float], b: list[float]) -> float:
        return (literal_kl(a, b) + literal_kl(b, a)) / 2

    every = rows.tolist()
    found = []
    for index in chosen:
        near = [row for row in every if far(every[index], row) < tau]
        found.append([sum(column) / len(near) for column in zip(*near, strict=True)])
    for _ in range(2):
        matched: set[int] = set()
        merged = []
        for i, anchor in enumerate(found):
            if i in matched:
                continue
            near = [j for j, other in enumerate(found) if far(anchor, other) < tau]
            matched |= {i, *near}
            own = [found[j] for j in near]
            merged.append([sum(column) / len(own) for column in zip(*own, strict=True)])
        found = merged
    return found


@pytest.mark.parametrize("tau", [0.05, 0.2, 0.9, 3.0])
def test_proposals_of_diffseg_are_eq_1_to_3(tau: float) -> None:
    rows = attention(sharpness=2.0).double()
    expected = literal_diffseg(rows.numpy(), tau, anchors((GRID, GRID), 16).tolist())
    found = proposals(rows, (GRID, GRID), tau)
    assert len(found) == len(expected)
    assert np.allclose(found.numpy(), expected, atol=1e-9)


def test_divergences_are_the_mean_of_both_directions() -> None:
    rows = attention().double()
    found = divergences(rows[:3], rows)
    for i in range(3):
        for j in range(0, len(rows), 7):
            a, b = rows[i].tolist(), rows[j].tolist()
            expected = (literal_kl(a, b) + literal_kl(b, a)) / 2
            assert float(found[i, j]) == pytest.approx(expected, abs=1e-9)


def test_a_pixel_goes_to_the_map_that_is_largest_there() -> None:
    maps = attention()[:5]
    grown = torch.nn.functional.interpolate(
        maps.reshape(1, 5, GRID, GRID), size=(24, 40), mode="bilinear"
    )[0]
    assert np.array_equal(largest(maps, (GRID, GRID), (24, 40)), grown.argmax(0).numpy())


@pytest.mark.parametrize("symmetric", [False, True])
def test_spectral_vectors_are_those_of_a_full_decomposition(symmetric: bool) -> None:
    matrix = attention().double().numpy()
    graph = (matrix + matrix.T) / 2 if symmetric else matrix
    scaled = np.diag(graph.sum(1) ** -0.5) @ graph @ np.diag(graph.sum(0) ** -0.5)
    left = np.linalg.svd(scaled)[0]
    if symmetric:
        values, vectors = np.linalg.eigh(scaled)
        left = vectors[:, np.argsort(-values)]
    found = spectral_vectors(torch.from_numpy(matrix), 4, symmetric).numpy() / GRID
    assert np.allclose(np.abs((found * left[:, :4]).sum(0)), 1, atol=1e-5)
    again = spectral_vectors(torch.from_numpy(matrix), 4, symmetric).numpy() / GRID
    assert again.tobytes() == found.tobytes()


def test_iseg_is_eq_1_to_4() -> None:
    matrix, strength = attention(sharpness=3.0).double(), 0.1
    n = len(matrix)
    expected = np.zeros((n, n))
    for q in range(n):
        for k in range(n):
            a = float(matrix[q, k]) / max(float(matrix[i, k]) for i in range(n))
            expected[q, k] = max(0.0, a + strength * math.log10(math.e * a))
    expected /= expected.sum(1, keepdims=True)
    found = reduced_entropy(matrix, strength)
    assert np.allclose(found.numpy(), expected, atol=1e-12)
    maps = torch.rand(n, 3, generator=torch.Generator().manual_seed(1)).double()
    rows = maps.T.tolist()
    for _ in range(4):
        rows = [[sum(expected[q, k] * x[k] for k in range(n)) for q in range(n)] for x in rows]
        rows = [[value - min(x) for value in x] for x in rows]
        rows = [[value / sum(x) for value in x] for x in rows]
    assert np.allclose(refined(maps, found, 4).T.numpy(), rows, atol=1e-9)


def test_less_entropy_means_fewer_looks() -> None:
    matrix = attention()
    entropy = [
        float(-(m * m.clamp(min=1e-30).log()).sum()) for m in (matrix, reduced_entropy(matrix))
    ]
    assert entropy[1] < entropy[0]


@pytest.mark.parametrize("method", SEGMENT_SELF_MAP)
def test_planted_regions_are_found_in_self_attention(method: str) -> None:
    assert method in SEGMENTERS
    sample = planted()
    config = SegmentationConfig.model_validate({"method": method, "clusters": {"ks": [2, 4]}})
    assert config.needs_self_map
    found = segment_sample(sample, config)
    truth = quadrants(sample.image.shape[0]) + np.uint8(1)
    assert max(adjusted_rand(truth, labels) for labels in found.labels) > 0.9
    assert all(labels.max() < k for labels, k in zip(found.labels, found.ks, strict=True))
    with pytest.raises(ValueError, match="must have self-attention"):
        segment_sample(replace(sample, self_map=None), config)


def test_diffseg_without_borders_is_the_partition_of_its_proposals() -> None:
    sample = planted()
    config = SegmentationConfig(method="diffseg", refiner="none")
    found = segment_sample(sample, config)
    assert sample.self_map is not None
    expected = diffseg(sample.self_map.values, (GRID, GRID), sample.image.shape[:2])
    assert adjusted_rand(expected + np.uint8(1), found.labels[0]) == 1.0
