"""Spectral clustering of self-attention (LS section 3.3): a graph from places to places, cut.

Attention is no symmetric graph: what looks and what is looked at are two sides of a bipartite one
(Dhillon, KDD 2001), whose relaxed normalized cut is in the leading singular vectors of

    S = D1^(-1/2) A D2^(-1/2),   D1 = diag(A 1),  D2 = diag(A' 1)                           (1)
    S = U diag(s) V',   features of place i: U_i1 ... U_ik                                  (2)

and k-means groups the places; here at pixels, bilinear between places, as it groups features.
The symmetric variant takes eigenvectors instead:

    W = (A + A') / 2,   D = diag(W 1):  eigenvectors of D^(-1/2) W D^(-1/2)                 (3)

LS takes 20 vectors and 20 clusters; here each k has its clusters of k vectors, of which those that
stand behind would be noise to fewer clusters.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from synthgen.config import SegmentationConfig
from synthgen.segmentation.segment import segment_blocks
from synthgen.segmentation.self_maps import recorded_self_map, segmentation_of
from synthgen.types import Sample, Segmentation

ITERATIONS = 20
"""Of a block of vectors, from a random start: enough where values are apart."""


def segment_spectral(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """k-means on eq. 2, at every k."""
    return _segment_vectors(sample, config, symmetric=False)


def segment_spectral_symmetric(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """k-means on eq. 3, at every k."""
    return _segment_vectors(sample, config, symmetric=True)


def spectral_vectors(
    attention: Float[Tensor, "place place"], num: int, symmetric: bool = False
) -> Float[Tensor, "place vector"]:
    """The leading vectors of eq. 2 or 3, largest first, of unit mean square.

    Signs are fixed: the entry that is largest in size is positive. Same input, same bytes.

    Args:
        attention: Self-attention; ``SelfMap.values``.
        num: Vectors; fewer where there are hardly more places.
        symmetric: Eq. 3 in place of eq. 2.

    >>> halves = torch.kron(torch.eye(2), torch.full((4, 4), 1 / 4)) + 0.01
    >>> vector = spectral_vectors(halves, 2)[:, 1]
    >>> bool((vector[:4] * vector[4:] < 0).all())
    True
    """
    from sklearn.utils.extmath import randomized_svd  # loading it takes a second

    graph = attention.double().numpy()
    if symmetric:
        graph = (graph + graph.T) / 2
    rows, columns = (np.maximum(graph.sum(axis), 1e-12) for axis in (1, 0))
    graph = graph / np.sqrt(rows)[:, None] / np.sqrt(columns)
    if symmetric:  # eigenvalues from 0 to 1 are singular values
        graph = (np.eye(len(graph)) + graph) / 2
    # ARPACK, whose own restarts are random, does not repeat where attention is of low rank
    settings = {"n_iter": ITERATIONS, "power_iteration_normalizer": "QR", "random_state": 0}
    vectors, _, _ = randomized_svd(graph, min(num, len(graph)), **settings)
    peaks = np.abs(vectors).argmax(0)
    vectors = vectors * np.sign(vectors[peaks, np.arange(vectors.shape[1])]) * np.sqrt(len(graph))
    return torch.from_numpy(np.ascontiguousarray(vectors)).float()


def _segment_vectors(sample: Sample, config: SegmentationConfig, symmetric: bool) -> Segmentation:
    attention, grid = recorded_self_map(sample)
    ks, size = config.clusters.ks, (sample.image.shape[0], sample.image.shape[1])
    vectors = spectral_vectors(attention, ks[-1], symmetric).reshape(*grid, -1)
    settings = {**dict(config.clusters), **dict(config.masks)}
    found = [segment_blocks([vectors[..., :k]], size, **settings | {"ks": (k,)}) for k in ks]
    return segmentation_of([each.labels[0] for each in found], ks, sample, config)
