"""Features in full at image resolution: the plain reference of the fast engines.

Slow and large: 105 heads x 8 components at 512 x 512 are 0.9 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from synthgen.segmentation.interpolation import Interpolation, upsample
from synthgen.segmentation.lloyd import Assignment, spans


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
        self,
        centroids: Float[Tensor, "batch slot feature"],
        ks: tuple[int, ...],
        return_labels: bool = False,
    ) -> Assignment:
        """See `lloyd.Engine`."""
        flat = self.features.flatten(1, 2)
        sums, counts, labels = [], [], []
        for _, part in spans(ks):
            vectors = centroids[:, part]
            scores = flat @ vectors.mT - 0.5 * vectors.square().sum(-1)[:, None]
            best = scores.argmax(-1)
            chosen = torch.zeros_like(scores).scatter_(-1, best[..., None], 1.0)
            sums.append(chosen.mT @ flat)
            counts.append(chosen.sum(1))
            labels.append(torch.unflatten(best, 1, self.features.shape[1:3]).to(torch.uint8))
        boundary = torch.zeros(len(centroids), len(ks)).to(centroids)
        maps = torch.stack(labels, 1) if return_labels else None
        return Assignment(torch.cat(sums, 1), torch.cat(counts, 1), boundary, maps)
