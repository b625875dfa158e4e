"""Interpolation as matrices: what torch's ``interpolate`` does, at any positions, and its adjoint.

Bilinear upsampling (align_corners=False, clamped edges) of a grid ``x`` is ``Y x X^T`` with one
matrix per axis. As matrices it can be asked for at knots as well as at pixels, and the adjoint,
which sends per-pixel weights back to the grid, is the transpose.

Positions are in output pixels: pixel i lies at i, and the image spans [-0.5, size - 0.5].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

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
        blocks: Features per grid, the grid's positions flattened row-major.
        grids: (height, width) of each block.
        rows: Matrix from the grids' rows, one grid after the other, to the positions' rows;
            None where every grid is the image's own and nothing is interpolated.
        columns: Per block the matrix from the grid's columns to the positions' columns.
    """

    blocks: tuple[Float[Tensor, "batch _pos _feature"], ...]
    grids: tuple[tuple[int, int], ...]
    rows: Float[Tensor, "row all_grid_rows"] | None
    columns: tuple[Float[Tensor, "column _grid_column"], ...]

    @classmethod
    def at(
        cls,
        blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
        size: tuple[int, int],
        positions: tuple[Float[Tensor, " row"], Float[Tensor, " column"]] | None = None,
        kind: Interpolation = "bilinear",
    ) -> Interpolant:
        """Blocks interpolated at given positions of an image, or at all of its pixels."""
        flat = tuple(block.flatten(1, 2) for block in blocks)
        grids = tuple((block.shape[1], block.shape[2]) for block in blocks)
        if positions is None and all(grid == size for grid in grids):
            return cls(flat, grids, None, ())
        down, across = positions or (torch.arange(size[0]), torch.arange(size[1]))
        down, across = down.to(blocks[0]), across.to(blocks[0])
        rows = [axis_matrix(grid[0], size[0], down, kind) for grid in grids]
        columns = tuple(axis_matrix(grid[1], size[1], across, kind) for grid in grids)
        return cls(flat, grids, torch.cat(rows, 1), columns)

    def project(
        self, vectors: Float[Tensor, "batch cls feature"]
    ) -> Float[Tensor, "batch row column cls"]:
        """Inner products with the features at every position: K maps interpolated, not D.

        Columns first, then the rows of all grids in one product, which also adds the grids up.
        (One einsum over both axes would build their outer product: a hundred times slower.)
        """
        parts = torch.split(vectors, [block.shape[-1] for block in self.blocks], dim=-1)
        maps = [
            torch.unflatten(block @ part.mT, 1, grid)
            for block, part, grid in zip(self.blocks, parts, self.grids, strict=True)
        ]
        if self.rows is None:
            return functools.reduce(torch.add, maps)
        stretched = torch.cat([c @ m for c, m in zip(self.columns, maps, strict=True)], 1)
        return torch.unflatten(self.rows @ stretched.flatten(2), 2, stretched.shape[2:])

    def gather(
        self, weights: Float[Tensor, "batch row column cls"]
    ) -> Float[Tensor, "batch cls feature"]:
        """Weighted sums of the features over all positions: the adjoint of `project`."""
        if self.rows is None:
            flat = weights.flatten(1, 2).mT
            return torch.cat([flat @ block for block in self.blocks], dim=-1)
        shrunk = torch.unflatten(self.rows.T @ weights.flatten(2), 2, weights.shape[2:])
        by_grid = torch.split(shrunk, [height for height, _ in self.grids], dim=1)
        sums = [
            (columns.T @ maps).flatten(1, 2).mT @ block
            for columns, maps, block in zip(self.columns, by_grid, self.blocks, strict=True)
        ]
        return torch.cat(sums, dim=-1)

    def pick(
        self, row: Int[Tensor, " sample"], column: Int[Tensor, " sample"]
    ) -> Float[Tensor, "batch sample feature"]:
        """The features at single positions, built for these alone."""
        if self.rows is None:
            flat = row * self.grids[0][1] + column
            return torch.cat([block[:, flat] for block in self.blocks], dim=-1)
        by_grid = torch.split(self.rows[row], [height for height, _ in self.grids], dim=1)
        picked = []
        for block, grid, down, across in zip(
            self.blocks, self.grids, by_grid, self.columns, strict=True
        ):
            # of the two nodes down and across that weigh anything
            above, row_nodes = down.topk(min(2, grid[0]))
            beside, column_nodes = across[column].topk(min(2, grid[1]))
            nodes = (row_nodes[:, :, None] * grid[1] + column_nodes[:, None]).flatten(1)
            weights = (above[:, :, None] * beside[:, None]).flatten(1)
            bags = [embedding_bag(nodes, x, per_sample_weights=weights, mode="sum") for x in block]
            picked.append(torch.stack(bags))
        return torch.cat(picked, dim=-1)

    def totals(self) -> Float[Tensor, "batch feature"]:
        """Sum of the features over all positions."""
        if self.rows is None:
            return torch.cat([block.sum(1) for block in self.blocks], -1)
        by_grid = torch.split(self.rows.sum(0), [height for height, _ in self.grids])
        weights = [
            torch.outer(down, across.sum(0)).flatten()
            for down, across in zip(by_grid, self.columns, strict=True)
        ]
        return torch.cat([w @ block for w, block in zip(weights, self.blocks, strict=True)], -1)

    def energy(self) -> Float[Tensor, " batch"]:
        """Sum of the squared norms of the features over all positions.

        It goes through the Gram matrices of the axes: ``Σ_p |U_p x|²`` is the inner product of x
        with ``(Yᵀ Y) x (Xᵀ X)``.
        """
        if self.rows is None:
            return torch.stack([block.square().sum((1, 2)) for block in self.blocks]).sum(0)
        squares = []
        by_grid = torch.split(self.rows, [height for height, _ in self.grids], dim=1)
        for block, grid, down, across in zip(
            self.blocks, self.grids, by_grid, self.columns, strict=True
        ):
            maps = torch.unflatten(block, 1, grid)
            smoothed = torch.unflatten(down.T @ down @ maps.flatten(2), 2, maps.shape[2:])
            squares.append((maps * (across.T @ across @ smoothed)).sum((1, 2, 3)))
        return torch.stack(squares).sum(0)
