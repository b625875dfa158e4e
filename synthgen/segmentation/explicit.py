"""Features in full at image resolution: the plain reference, and scikit-learn's k-means on them.

Slow and large (105 heads x 8 components at 512 x 512 are 0.9 GB); it stands beside the fast
engines so that tests and ``synthgen bench kmeans`` can compare with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from sklearn.cluster import KMeans
from torch import Tensor

from synthgen.config import ClusterConfig
from synthgen.segmentation.interpolation import Interpolation, upsample
from synthgen.segmentation.lloyd import Assignment, Runs, Solution, spans


def materialize(
    blocks: Sequence[Float[Tensor, "_grid_height _grid_width _feature"]],
    size: tuple[int, int],
    kind: Interpolation = "bilinear",
) -> Float[Tensor, "height width feature"]:
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
            for vectors in torch.split(centroids[:, part], k, dim=1):
                scores = flat @ vectors.mT - 0.5 * vectors.square().sum(-1)[:, None]
                best = scores.argmax(-1)
                chosen = torch.zeros_like(scores).scatter_(-1, best[..., None], 1.0)
                sums.append(chosen.mT @ flat)
                counts.append(chosen.sum(1))
                labels.append(torch.unflatten(best, 1, self.features.shape[1:3]).to(torch.uint8))
            assert count * k == part.stop - part.start
        boundary = torch.zeros(len(centroids), len(labels)).to(centroids)
        maps = torch.stack(labels, 1) if paint else None
        return Assignment(torch.cat(sums, 1), torch.cat(counts, 1), boundary, maps)


def sklearn_solve(
    blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
    size: tuple[int, int],
    start: Float[Tensor, "batch slot feature"],
    runs: Runs,
    config: ClusterConfig,
    kind: Interpolation = "bilinear",
) -> Solution:
    """What `lloyd.lloyd` gives, by scikit-learn on the features in full, one run at a time."""
    sizes = [k for k, count in runs for _ in range(count)]
    centroids, iterations = start.clone(), torch.zeros(len(start), len(sizes), dtype=torch.long)
    limit = config.max_iterations
    finals = []
    for image, own in enumerate(zip(*blocks, strict=True)):
        features = materialize(own, size, kind)
        flat = features.flatten(0, 1).cpu().numpy()
        for run, part in enumerate(torch.split(start[image], sizes)):
            fit = KMeans(
                len(part),
                init=part.cpu().numpy(),
                n_init=1,
                max_iter=limit,
                tol=config.tolerance,
            ).fit(flat)
            first = sum(sizes[:run])
            centroids[image, first : first + len(part)] = torch.from_numpy(fit.cluster_centers_)
            iterations[image, run] = fit.n_iter_
        engine = ExplicitEngine(features[None])
        finals.append(engine.assign(centroids[image : image + 1], runs, paint=True))
    return Solution(centroids, iterations, iterations < limit, _stack(finals))


def _stack(finals: list[Assignment]) -> Assignment:
    labels = [final.labels for final in finals if final.labels is not None]
    return Assignment(
        torch.cat([final.sums for final in finals]),
        torch.cat([final.counts for final in finals]),
        torch.cat([final.boundary for final in finals]),
        torch.cat(labels),
    )
