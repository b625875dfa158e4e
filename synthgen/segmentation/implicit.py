"""The plain implicit form: upsample the scores of the clusters, never the features.

Assignment needs ``argmax_c  Σ_l U_l (x_l c_l) - |c|²/2``, so K score maps are upsampled in place
of D feature maps; the update needs ``Σ_l x_lᵀ (U_lᵀ 1_cluster)``, the adjoint of K indicator maps.
Exact at any size, for nearest and bilinear features. Its cost grows with the number of pixels;
`knots` does not have that flaw and takes over wherever the sizes allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from synthgen.segmentation.interpolation import Interpolant, Interpolation
from synthgen.segmentation.lloyd import Assignment, spans


@dataclass(frozen=True, slots=True)
class ImplicitEngine:
    """Assigns pixels through upsampled score maps, one k at a time to bound the memory."""

    pixels: Interpolant

    @classmethod
    def of(
        cls,
        blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
        size: tuple[int, int],
        kind: Interpolation = "bilinear",
    ) -> ImplicitEngine:
        """The engine for grids of features and an image size (height, width)."""
        return cls(Interpolant.at(blocks, size, kind=kind))

    def assign(
        self,
        centroids: Float[Tensor, "batch slot feature"],
        ks: tuple[int, ...],
        return_labels: bool = False,
    ) -> Assignment:
        """See `lloyd.Engine`."""
        sums, counts, labels = [], [], []
        for _, part in spans(ks):
            vectors = centroids[:, part]
            scores = self.pixels.project(vectors)
            scores.sub_(0.5 * vectors.square().sum(-1)[:, None, None])
            best = scores.argmax(-1, keepdim=True)
            chosen = torch.zeros_like(scores).scatter_(-1, best, 1.0)
            sums.append(self.pixels.gather(chosen))
            counts.append(chosen.sum((1, 2), dtype=torch.float64).to(scores))
            if return_labels:
                labels.append(best.movedim(-1, 1).to(torch.uint8))
        boundary = torch.zeros(len(centroids), len(ks)).to(centroids)
        maps = torch.cat(labels, 1) if return_labels else None
        return Assignment(torch.cat(sums, 1), torch.cat(counts, 1), boundary, maps)
