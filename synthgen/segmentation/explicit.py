"""Features in full at image resolution: the plain reference, and scikit-learn's k-means on them.

Slow and large (105 heads x 8 components at 512 x 512 are 0.9 GB); it stands beside the fast
engines so that tests and ``synthgen bench kmeans`` can compare with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from sklearn.cluster import KMeans
from torch import Tensor

from synthgen.segmentation.interpolation import Interpolation, upsample
from synthgen.segmentation.lloyd import Assignment, Runs, spans


def materialize(
    blocks: Sequence[Float[Tensor, "grid_height grid_width feature"]],
    size: tuple[int, int],
    kind: Interpolation = "bilinear",
) -> Float[Tensor, "height width all_features"]:
    """The upsampled features of all blocks side by side."""
    return torch.cat([upsample(block, size, kind) for block in blocks], dim=-1)


@dataclass(frozen=True, slots=True)
class ExplicitEngine:
    """Assigns pixels by their features, as the textbook does."""

    features: Float[Tensor, "batch height width feature"]

    def assign(
        self, centroids: Float[Tensor, "batch slot feature"], runs: Runs, paint: bool = False
    ) -> Assignment:
        """See `lloyd.Engine`."""
        flat = self.features.flatten(1, 2)
        sums, counts, labels = [], [], []
        for k, count, part in spans(runs):
            for vectors in centroids[:, part].split(k, dim=1):
                scores = flat @ vectors.mT - 0.5 * vectors.square().sum(-1)[:, None]
                best = scores.argmax(-1)
                chosen = torch.zeros_like(scores).scatter_(-1, best[..., None], 1.0)
                sums.append(chosen.mT @ flat)
                counts.append(chosen.sum(1))
                labels.append(best.unflatten(1, self.features.shape[1:3]).to(torch.uint8))
            assert count * k == part.stop - part.start
        boundary = torch.zeros(len(centroids), len(labels)).to(centroids)
        maps = torch.stack(labels, 1) if paint else None
        return Assignment(torch.cat(sums, 1), torch.cat(counts, 1), boundary, maps)


def sklearn_lloyd(
    features: Float[np.ndarray, "pixel feature"],
    start: Float[np.ndarray, "cluster feature"],
    max_iterations: int,
    tolerance: float,
) -> tuple[
    Int[np.ndarray, " pixel"], Float[np.ndarray, "cluster feature"], float, int
]:
    """Labels, centroids, inertia and iterations of scikit-learn's Lloyd from given centroids."""
    fit = KMeans(
        len(start), init=start, n_init=1, max_iter=max_iterations, tol=tolerance, algorithm="lloyd"
    ).fit(features)
    return fit.labels_, fit.cluster_centers_, float(fit.inertia_), int(fit.n_iter_)
