"""Interpolation as matrices: what torch's ``interpolate`` does, at any positions, and its adjoint.

Bilinear upsampling (align_corners=False, clamped edges) of a grid ``x`` is ``Y x X^T`` with one
matrix per axis. As matrices it can be asked for at knots as well as at pixels, and the adjoint,
which sends per-pixel weights back to the grid, is the transpose.

Positions are in output pixels: pixel i lies at i, and the image spans [-0.5, size - 0.5].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Interpolation = Literal["bilinear", "nearest"]


def bilinear_matrix(
    grid: int, size: int, positions: Float[Tensor, " position"]
) -> Float[Tensor, "position grid"]:
    """Weights that interpolate the nodes of an axis linearly at positions of its pixels.

    Args:
        grid: Nodes along this axis.
        size: Pixels the nodes are stretched over.
        positions: Where to interpolate; beyond the outer nodes the value is theirs.

    >>> bilinear_matrix(2, 4, torch.arange(4.0))
    tensor([[1.0000, 0.0000],
            [0.7500, 0.2500],
            [0.2500, 0.7500],
            [0.0000, 1.0000]])
    """
    at = ((positions.double() + 0.5) * grid / size - 0.5).clamp(0, grid - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=grid - 1)
    share = (at - low)[:, None]
    identity = torch.eye(grid, dtype=torch.float64, device=positions.device)
    return (identity[low] * (1 - share) + identity[high] * share).to(positions.dtype)


def nearest_matrix(
    grid: int, size: int, positions: Float[Tensor, " position"]
) -> Float[Tensor, "position grid"]:
    """Ones that pick the node whose cell holds a pixel: ``floor(i * grid / size)`` as in torch.

    >>> nearest_matrix(2, 4, torch.arange(4.0)).argmax(1)
    tensor([0, 0, 1, 1])
    """
    low = (positions.double() * grid / size).floor().long().clamp(0, grid - 1)
    return torch.eye(grid, dtype=positions.dtype, device=positions.device)[low]


def axis_matrix(
    grid: int, size: int, positions: Float[Tensor, " position"], kind: Interpolation
) -> Float[Tensor, "position grid"]:
    """The interpolation matrix of one axis, of either kind."""
    make = bilinear_matrix if kind == "bilinear" else nearest_matrix
    return make(grid, size, positions)


def upsample(
    block: Float[Tensor, "grid_height grid_width feature"],
    size: tuple[int, int],
    kind: Interpolation = "bilinear",
) -> Float[Tensor, "height width feature"]:
    """A grid of features at image resolution: the tensor that the solvers never build.

    >>> upsample(torch.tensor([[[0.0], [4.0]]]), (1, 4)).flatten()
    tensor([0., 1., 3., 4.])
    """
    rows, columns = (
        axis_matrix(grid, pixels, torch.arange(pixels, dtype=block.dtype).to(block.device), kind)
        for grid, pixels in zip(block.shape[:2], size, strict=True)
    )
    return torch.einsum("hyf,wy->hwf", torch.einsum("hx,xyf->hyf", rows, block), columns)


@dataclass(frozen=True, slots=True)
class Interpolant:
    """Grids of several sizes, interpolated at the same positions and concatenated; never built.

    The cluster axis stands last, so that the scores of one position lie side by side.

    Args:
        blocks: Features per grid, positions of the grid flattened row-major.
        rows: Per block the matrix from the grid's rows to the positions' rows; None: identity.
        columns: Likewise for the columns.
    """

    blocks: tuple[Float[Tensor, "batch pos feature"], ...]
    rows: tuple[Float[Tensor, "row grid_row"] | None, ...]
    columns: tuple[Float[Tensor, "column grid_column"] | None, ...]
    grids: tuple[tuple[int, int], ...]

    @classmethod
    def at(
        cls,
        blocks: Sequence[Float[Tensor, "batch grid_row grid_column feature"]],
        size: tuple[int, int],
        positions: tuple[Float[Tensor, " row"], Float[Tensor, " column"]] | None = None,
        kind: Interpolation = "bilinear",
    ) -> Interpolant:
        """Blocks interpolated at given positions of an image, or at all of its pixels."""
        matrices: list[list[Tensor | None]] = [[], []]
        for axis in (0, 1):
            for block in blocks:
                grid, pixels = block.shape[1 + axis], size[axis]
                if positions is None and grid == pixels:
                    matrices[axis].append(None)
                    continue
                where = positions[axis] if positions else torch.arange(pixels)
                matrices[axis].append(axis_matrix(grid, pixels, where.to(block), kind))
        flat = tuple(block.flatten(1, 2) for block in blocks)
        grids = tuple((block.shape[1], block.shape[2]) for block in blocks)
        return cls(flat, tuple(matrices[0]), tuple(matrices[1]), grids)

    def project(
        self, vectors: Float[Tensor, "batch cls feature"]
    ) -> Float[Tensor, "batch row column cls"]:
        """Inner products with the features at every position: K maps upsampled, not D."""
        total: Tensor | None = None
        parts = vectors.split([block.shape[-1] for block in self.blocks], dim=-1)
        for block, part, grid, rows, columns in self._zip(parts):
            maps = (block @ part.mT).unflatten(1, grid)
            if rows is not None:
                maps = (rows @ maps.flatten(2)).unflatten(2, (grid[1], -1))
            if columns is not None:
                maps = columns @ maps
            total = maps if total is None else total.add_(maps)
        assert total is not None
        return total

    def gather(
        self, weights: Float[Tensor, "batch row column cls"]
    ) -> Float[Tensor, "batch cls feature"]:
        """Weighted sums of the features over all positions: the adjoint of `project`."""
        sums = []
        for block, _, grid, rows, columns in self._zip(self.blocks):
            maps = weights
            if columns is not None:
                maps = columns.T @ maps
            if rows is not None:
                maps = (rows.T @ maps.flatten(2)).unflatten(2, (grid[1], -1))
            sums.append(maps.flatten(1, 2).mT @ block)
        return torch.cat(sums, dim=-1)

    def pick(
        self, row: Int[Tensor, " sample"], column: Int[Tensor, " sample"]
    ) -> Float[Tensor, "batch sample feature"]:
        """The features at single positions, built for these alone."""
        picked = []
        for block, _, (height, width), rows, columns in self._zip(self.blocks):
            across = torch.eye(width).to(block)[column] if columns is None else columns[column]
            down = torch.eye(height).to(block)[row] if rows is None else rows[row]
            weights = (down[:, :, None] * across[:, None, :]).flatten(1)
            picked.append(weights @ block)
        return torch.cat(picked, dim=-1)

    def _zip(self, parts: Sequence[Tensor]) -> zip:  # type: ignore[type-arg]
        return zip(self.blocks, parts, self.grids, self.rows, self.columns, strict=True)
