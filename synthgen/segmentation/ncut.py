"""Rivals of k-means that cut a graph of the features' similarities, or join its nearest.

The nodes are the places of one grid (about 32 x 32); their features are the ones that k-means
takes. Pixels are assigned to the means of the clusters found there, as k-means assigns them, so
that all that differs is who chose the clusters.

    W_ij = max(0, cos(f_i, f_j))^alpha,   D = diag(W 1)                                         (1)
    maximize over one-hot x:  sum over clusters c of  x_c' W x_c / x_c' D x_c                  (2)

``ncut`` is the discrete K-way cut of Falcon (ICLR 2026). Both quadratic forms are convex, so (2)
is raised by taking, at each node, the cluster of the largest gradient of its ratio; tau keeps a
node where it is unless another cluster gains that much:

    q = W x_c,  v = x_c' D x_c,  a = x_c' q:  g_ic = 2 q_i / v - a d_i / v^2 + tau d_i x_ic / v (3)

``diffcut`` halves the graph again and again by the second eigenvector of its normalized Laplacian,
where the cut of two parts costs at most ``limit`` (DiffCut, NeurIPS 2024: alpha 10, limit 0.5).
``ward`` is Ward's linkage: one tree, cut at every k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.linalg import eigh
from sklearn.cluster import kmeans_plusplus
from torch import Tensor
from torch.nn.functional import interpolate, normalize, one_hot

from synthgen.config import SegmentationConfig
from synthgen.segmentation.features import feature_blocks
from synthgen.segmentation.kmeans import make_engine
from synthgen.segmentation.masks import build_masks
from synthgen.segmentation.refine import refine_clusters
from synthgen.types import Sample, Segmentation

NODES = 32 * 32
"""Nodes that a graph has, about: all pairs of a 64 x 64 grid would be 16 million."""

Places = Float[Tensor, "node feature"]
Clusters = Int[Tensor, " node"]


def segment_ncut(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """Eq. 2 at every k, in place of k-means."""

    def find(places: Places, ks: Sequence[int]) -> list[Clusters]:
        graph = similarities(places)
        return [discrete_ncut(graph, k, places) for k in ks]

    return _segment_places(sample, config, find)


def segment_ward(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """Ward's linkage, cut at every k, in place of k-means."""

    def find(places: Places, ks: Sequence[int]) -> list[Clusters]:
        tree = linkage(places.double().numpy(), "ward")
        return [torch.from_numpy(fcluster(tree, k, "maxclust") - 1).long() for k in ks]

    return _segment_places(sample, config, find)


def segment_diffcut(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """As many clusters as recursive cuts find, in place of k-means at every k.

    Its limit is one of cosines of components as they are; scaled, they are cut to pieces.
    """
    features = config.features.model_copy(update={"normalization": "none"})
    config = config.model_copy(update={"features": features})

    def find(places: Places, _ks: Sequence[int]) -> list[Clusters]:
        return [recursive_ncut(similarities(places))]

    return _segment_places(sample, config, find)


def similarities(places: Places, alpha: float = 10.0) -> Float[Tensor, "node node"]:
    """Eq. 1: cosines of centered features, sharpened.

    >>> similarities(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))[0].tolist()
    [1.0, 0.0, 1.0, 0.0]
    """
    unit = normalize(places - places.mean(0), dim=-1)
    return (unit @ unit.T).clamp(0, 1) ** alpha


def discrete_ncut(
    graph: Float[Tensor, "node node"],
    k: int,
    places: Places,
    tau: float = 0.1,
    max_iterations: int = 100,
    seed: int = 0,
) -> Clusters:
    """Eq. 3 from greedy k-means++ seeds, until no node moves.

    Args:
        graph: Similarities.
        k: Number of clusters; fewer where one loses all of its nodes.
        places: Features, for the seeds.
        tau: What a node's own cluster has ahead of others, in shares of its degree.
        max_iterations: At most.
        seed: Of the seeds.
    """
    degree = graph.sum(1)
    directions = normalize(places, dim=-1)
    _, seeds = kmeans_plusplus(directions.numpy(), k, random_state=seed)
    clusters = (directions @ directions[seeds].T).argmax(1)
    for _ in range(max_iterations):
        x = one_hot(clusters, k).to(graph)
        q, v = graph @ x, (degree @ x).clamp(min=1e-12)
        a = (x * q).sum(0)
        share = degree[:, None] / v
        gradient = 2 * q / v - a / v * share + tau * share * x
        gradient[:, x.sum(0) == 0] = -torch.inf
        moved = gradient.argmax(1)
        if torch.equal(moved, clusters):
            break
        clusters = moved
    return clusters


def cut_value(graph: Float[Tensor, "node node"], clusters: Clusters) -> float:
    """K minus eq. 2, over the clusters that have nodes: 0 where nothing is cut.

    >>> cut_value(torch.eye(2), torch.tensor([0, 1])), cut_value(torch.ones(2, 2), torch.arange(2))
    (0.0, 1.0)
    """
    x = one_hot(clusters).to(graph)
    inside, whole = (x * (graph @ x)).sum(0), graph.sum(1) @ x
    there = whole > 0
    return float((1 - inside[there] / whole[there]).sum())


def recursive_ncut(
    graph: Float[Tensor, "node node"], limit: float = 0.5, least: int = 4, candidates: int = 32
) -> Clusters:
    """Halves of halves, where the best of evenly spaced thresholds of the eigenvector cuts little.

    Args:
        graph: Similarities.
        limit: Most that a cut may cost, of two.
        least: Nodes of a part at least.
        candidates: Thresholds that are tried.
    """
    clusters = torch.zeros(len(graph), dtype=torch.long)
    waiting, num = [torch.arange(len(graph))], 1
    while waiting and num < np.iinfo(np.uint8).max:
        nodes = waiting.pop()
        part = graph[nodes][:, nodes]
        if len(nodes) < 2 * least:
            continue
        root = part.sum(1).clamp(min=1e-12).sqrt()
        laplacian = torch.eye(len(nodes)) - part / root / root[:, None]
        vector = torch.from_numpy(
            eigh(laplacian.double().numpy(), subset_by_index=(1, 1))[1][:, 0]
        ).float()
        vector = vector / root
        splits = [
            (vector > threshold).long()
            for threshold in torch.linspace(*vector.aminmax(), candidates + 2)[1:-1]
        ]
        splits = [s for s in splits if least <= int(s.sum()) <= len(nodes) - least]
        if not splits:
            continue
        best = min(splits, key=lambda split: cut_value(part, split))
        if cut_value(part, best) > limit:
            continue
        clusters[nodes[best == 1]] = num
        num += 1
        waiting += [nodes[best == 0], nodes[best == 1]]
    return clusters


def _segment_places(
    sample: Sample,
    config: SegmentationConfig,
    find: Callable[[Places, Sequence[int]], list[Clusters]],
) -> Segmentation:
    """Masks of the clusters that are found among the places of one grid."""
    blocks = [block.cpu() for block in feature_blocks(sample.features, config.features)]
    grid = min((b.shape[:2] for b in blocks), key=lambda g: abs(np.log(g[0] * g[1] / NODES)))
    places = torch.cat(
        [
            interpolate(b.movedim(-1, 0)[None], size=tuple(grid), mode="bilinear", antialias=True)
            for b in blocks
        ],
        dim=1,
    )
    places = places[0].flatten(1).T
    found = find(places, config.clusters.ks)
    ks = tuple(
        int(clusters.max()) + 1 if len(found) != len(config.clusters.ks) else k
        for clusters, k in zip(found, config.clusters.ks, strict=False)
    )
    means = torch.cat([_means(places, clusters, k) for clusters, k in zip(found, ks, strict=True)])
    size = (sample.image.shape[0], sample.image.shape[1])
    engine = make_engine([block[None] for block in blocks], size)
    labels = engine.assign(means[None], ks, return_labels=True).labels
    assert labels is not None
    refined = refine_clusters(labels[0].numpy(), ks, sample.image, config.refiner)
    return Segmentation.of(build_masks(refined, ks, **dict(config.masks)), ks, refined, 0, True)


def _means(places: Places, clusters: Clusters, k: int) -> Float[Tensor, "k feature"]:
    """Means of the clusters; those without nodes have that of the largest."""
    x = one_hot(clusters, k).to(places)
    counts = x.sum(0)
    means = x.T @ places / counts.clamp(min=1)[:, None]
    return torch.where(counts[:, None] > 0, means, means[counts.argmax()])
