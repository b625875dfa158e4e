"""Cuts of a graph against their definitions, node by node, and against the best of all cuts."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from planted import AS_PLANTED, planted_sample, quadrants

from synthgen.config import ClusterConfig, SegmentationConfig
from synthgen.registry import SEGMENTERS
from synthgen.segmentation.metrics import adjusted_rand
from synthgen.segmentation.ncut import (
    cut_value,
    discrete_ncut,
    recursive_ncut,
    similarities,
)
from synthgen.segmentation.segment import segment_sample


def literal_cut(graph: np.ndarray, clusters: np.ndarray) -> float:
    """Sum over clusters of what is cut off, as a share of all edges of the cluster's nodes."""
    total = 0.0
    for c in sorted(set(clusters.tolist())):
        own = [i for i in range(len(clusters)) if clusters[i] == c]
        rest = [i for i in range(len(clusters)) if clusters[i] != c]
        cut = sum(graph[i, j] for i in own for j in rest)
        total += cut / sum(graph[i, j] for i in own for j in range(len(clusters)))
    return total


def literal_step(graph: np.ndarray, clusters: np.ndarray, k: int, tau: float) -> np.ndarray:
    """Eq. 3, one node and cluster at a time."""
    degree, n = graph.sum(1), len(clusters)
    moved = np.zeros(n, dtype=np.int64)
    for i in range(n):
        gains = []
        for c in range(k):
            own = [j for j in range(n) if clusters[j] == c]
            v = sum(degree[j] for j in own)
            a = sum(graph[j, m] for j in own for m in own)
            q = sum(graph[i, j] for j in own)
            stays = tau * degree[i] / v if clusters[i] == c else 0.0
            gains.append(2 * q / v - a * degree[i] / v**2 + stays)
        moved[i] = int(np.argmax(gains))
    return moved


def blobs(sizes: tuple[int, ...], spread: float = 0.3, dim: int = 6) -> torch.Tensor:
    """Features around orthogonal directions."""
    generator = torch.Generator().manual_seed(1)
    centers = torch.eye(dim)[: len(sizes)].repeat_interleave(torch.tensor(sizes), 0)
    return centers + spread * torch.randn(sum(sizes), dim, generator=generator)


def test_the_value_of_a_cut_is_what_is_cut_off() -> None:
    graph = similarities(blobs((4, 5, 3)), alpha=1.0)
    for seed in range(5):
        clusters = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(seed))
        expected = literal_cut(graph.double().numpy(), clusters.numpy())
        assert cut_value(graph, clusters) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_each_iteration_is_eq_3(tau: float) -> None:
    places = blobs((5, 4, 6), spread=0.8)
    graph = similarities(places, alpha=2.0)
    found = [discrete_ncut(graph, 3, places, tau, max_iterations=n).numpy() for n in range(4)]
    for before, after in pairwise(found):
        assert np.array_equal(literal_step(graph.double().numpy(), before, 3, tau), after)


def test_no_cut_of_a_small_graph_is_better() -> None:
    places = blobs((4, 4), spread=0.2)
    graph = similarities(places, alpha=3.0)
    every = (torch.tensor([0, *rest]) for rest in product((0, 1), repeat=7) if any(rest))
    best = min(cut_value(graph, clusters) for clusters in every)
    assert cut_value(graph, discrete_ncut(graph, 2, places)) == pytest.approx(best, abs=1e-6)
    assert cut_value(graph, recursive_ncut(graph)) <= best + 1e-6


def test_recursive_cuts_stop_where_nothing_is_apart() -> None:
    assert len(recursive_ncut(similarities(blobs((20, 20, 20), 0.1))).unique()) == 3
    alike = torch.ones(40, 40)
    assert recursive_ncut(alike).unique().tolist() == [0]


@pytest.mark.parametrize("method", ["ncut", "ward", "diffcut"])
def test_planted_regions_are_found(method: str) -> None:
    assert method in SEGMENTERS
    sample = planted_sample()
    config = SegmentationConfig(
        method=method, features=AS_PLANTED, clusters=ClusterConfig(ks=(2, 4))
    )
    found = segment_sample(sample, config)
    truth = quadrants(sample.image.shape[0]) + np.uint8(1)
    assert max(adjusted_rand(truth, labels) for labels in found.labels) > 0.9
