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
    """Assigns points through their upsampled scores; a point of a lattice stands for its pixels.

    Args:
        points: The pixels, or a lattice among them.
        area: Pixels that a point stands for.
    """

    points: Interpolant
    area: float = 1.0

    @classmethod
    def of(
        cls,
        blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
        size: tuple[int, int],
        kind: Interpolation = "bilinear",
        lattice: tuple[int, int] | None = None,
    ) -> ImplicitEngine:
        """The engine for grids of features and an image size (height, width).

        Args:
            blocks: Features per grid.
            size: Of the image.
            kind: How grids become pixels.
            lattice: Rows and columns of evenly spaced points that stand for the pixels; None: all.
        """
        if lattice is None:
            return cls(Interpolant.at(blocks, size, kind=kind))
        down, across = (
            (torch.arange(num, dtype=torch.float64) + 0.5) * pixels / num - 0.5
            for num, pixels in zip(lattice, size, strict=True)
        )
        area = size[0] * size[1] / (lattice[0] * lattice[1])
        return cls(Interpolant.at(blocks, size, (down, across), kind), area)

    def assign(
        self,
        centroids: Float[Tensor, "batch slot feature"],
        ks: tuple[int, ...],
        return_labels: bool = False,
    ) -> Assignment:
        """See `lloyd.Engine`."""
        scores = self.points.project(centroids)
        scores -= 0.5 * centroids.square().sum(-1)[:, None, None]
        best = [scores[..., part].argmax(-1, keepdim=True) for _, part in spans(ks)]
        offsets = torch.tensor([part.start for _, part in spans(ks)], device=scores.device)
        chosen = scores.zero_().scatter_(-1, torch.cat(best, -1) + offsets, self.area)
        counts = chosen.sum((1, 2), dtype=torch.float64).to(scores)
        boundary = torch.zeros(len(centroids), len(ks)).to(centroids)
        maps = torch.cat(best, -1).movedim(-1, 1).to(torch.uint8) if return_labels else None
        return Assignment(self.points.gather(chosen), counts, boundary, maps)
