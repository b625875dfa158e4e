"""iSeg (Sun et al., 2024): maps refined again and again by self-attention of lower entropy.

Spreading maps by self-attention blurs them, because every place looks a little at all others. One
step down the gradient of the entropy takes such weak looks away:

    a_qk = A_qk / max_q A_qk                                                                (1)
    a_qk <- max(0, a_qk + lambda log10(e a_qk)),   descent on  - sum a log a                (2)
    T_qk = a_qk / sum_k a_qk                                                                (3)
    x <- T x,  x <- x - min x,  x <- x / sum x          n times, for each map x             (4)

iSeg's maps are cross-attention to words. Where there are none, as here, they are the clusters that
spectral clustering finds among the places, at every k (`spectral`); a pixel goes to the map that
is largest there, each stretched to 0..1 as in iSeg. lambda is 0.015 (VOC; 0.1 on COCO), n is 10.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from synthgen.config import SegmentationConfig
from synthgen.segmentation.kmeans import cluster
from synthgen.segmentation.self_maps import largest, recorded_self_map, segmentation_of
from synthgen.segmentation.spectral import spectral_vectors
from synthgen.types import Sample, Segmentation

STRENGTH, ITERATIONS = 0.015, 10


def segment_iseg(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """Eq. 1 to 4 on the clusters of every k."""
    attention, grid = recorded_self_map(sample)
    ks, transition = config.clusters.ks, reduced_entropy(attention)
    vectors = spectral_vectors(attention, ks[-1]).reshape(*grid, -1)
    size, labels = (sample.image.shape[0], sample.image.shape[1]), []
    for k in ks:
        own = cluster([vectors[..., :k]], grid, (k,)).labels
        maps = one_hot(torch.from_numpy(own).long().flatten(), k).to(attention)
        labels.append(largest(stretched(refined(maps, transition)).T, grid, size))
    return segmentation_of(labels, ks, sample, config)


def reduced_entropy(
    attention: Float[Tensor, "query key"], strength: float = STRENGTH
) -> Float[Tensor, "query key"]:
    """Eq. 1 to 3; a place that would look nowhere looks as it did.

    >>> reduced_entropy(torch.tensor([[0.9, 0.1], [0.001, 0.999]]), 0.1).round(decimals=3)
    tensor([[0.9600, 0.0400],
            [0.0000, 1.0000]])
    """
    scaled = attention / attention.amax(0, keepdim=True).clamp(min=1e-12)
    lowered = scaled + strength * (torch.e * scaled.clamp(min=1e-30)).log10()
    lowered = lowered.clamp(min=0)
    sums = lowered.sum(1, keepdim=True)
    return torch.where(sums > 0, lowered / sums.clamp(min=1e-12), attention)


def refined(
    maps: Float[Tensor, "place map"],
    transition: Float[Tensor, "query key"],
    iterations: int = ITERATIONS,
) -> Float[Tensor, "place map"]:
    """Eq. 4."""
    for _ in range(iterations):
        maps = transition @ maps
        maps = maps - maps.amin(0)
        maps = maps / maps.sum(0).clamp(min=1e-12)
    return maps


def stretched(maps: Float[Tensor, "place map"]) -> Float[Tensor, "place map"]:
    """Each map over 0..1; one that is even stays 0."""
    low, high = maps.amin(0), maps.amax(0)
    return (maps - low) / (high - low).clamp(min=1e-12)
