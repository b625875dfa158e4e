"""k-means++ seeding, greedy as scikit-learn's, on a random subset of the pixels.

Each next seed is drawn with a probability proportional to its squared distance from the seeds so
far; of several draws the one that lowers the total most is kept. One sequence of max(ks) seeds
serves all k: its first k are a k-means++ seeding for k. Draws come from a CPU generator, so they
do not depend on the device or on what else is in the batch.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from synthgen.segmentation.interpolation import Interpolant

SAMPLE = 4096
"""Pixels that seeds are drawn from: 40 times 100 clusters; a 64 x 64 grid holds no more."""


def seed_centroids(
    pixels: Interpolant, size: tuple[int, int], ks: tuple[int, ...], seed: int
) -> Float[Tensor, "batch slot feature"]:
    """First centroids of every k, one k after the other."""
    places = torch.Generator().manual_seed(seed)
    row = torch.randint(size[0], (SAMPLE,), generator=places)
    column = torch.randint(size[1], (SAMPLE,), generator=places)
    device, state = pixels.blocks[0].device, places.get_state()
    images = []
    for features in pixels.pick(row.to(device), column.to(device)):
        places.set_state(state)
        images.append(plus_plus(features, ks[-1], places))
    return torch.cat([torch.stack(images)[:, :k] for k in ks], dim=1)


def plus_plus(
    features: Float[Tensor, "sample feature"], k: int, generator: torch.Generator
) -> Float[Tensor, "k feature"]:
    """Greedy k-means++: k of the samples, spread out."""
    trials = 2 + int(math.log(k))  # as in scikit-learn
    norms = features.square().sum(1)
    chosen = [int(torch.randint(len(features), (1,), generator=generator))]
    nearest = _distances(features, norms, chosen)[0]
    while len(chosen) < k:
        edges = nearest.double().cumsum(0).cpu()
        draws = torch.rand(trials, dtype=torch.float64, generator=generator) * edges[-1]
        indices = torch.searchsorted(edges, draws, right=True).clamp(max=len(features) - 1)
        lowered = torch.minimum(nearest, _distances(features, norms, indices.tolist()))
        best = int(lowered.sum(1, dtype=torch.float64).argmin())
        nearest = lowered[best]
        chosen.append(int(indices[best]))
    return features[chosen]


def _distances(
    features: Float[Tensor, "sample feature"], norms: Float[Tensor, " sample"], chosen: list[int]
) -> Float[Tensor, "seed sample"]:
    products = features[chosen] @ features.T
    return (norms[chosen][:, None] + norms - 2 * products).clamp_(min=0)
