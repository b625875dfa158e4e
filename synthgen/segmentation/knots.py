"""Exact k-means on the knot grid: only the cells that a border crosses are opened.

All interpolants of an image break only at ``-0.5 + g j`` per axis, where g is the greatest common
divisor of size / (2 grid) over the grids (4 pixels for grids of 64 and an image of 512). On these
*knots* the scores of all clusters are evaluated; inside a cell every score, and every difference
of two, is bilinear in its four corners, and a bilinear function that is nowhere negative at the
corners is nowhere negative inside. So:

- a cell whose corners have one winner belongs to it entirely, no pixel is looked at;
- a cell in which two clusters beat every other at all corners is a *duel*: two functions decide;
- in any other cell all clusters contend. Both kinds are halved again and again (`cells`): new
  knots at the midpoints, the same test, down to leaves whose pixels are evaluated.

The update goes the same way back. Pixels are weighted sums of the corners of their cell, so each
cell adds to its corners' weights (a uniform cell a quarter of its area to each), and
`Interpolant.gather` takes the knots' weights to sums of features. Work grows with the length of
the borders, not with the number of pixels; the largest tensor has one score per knot and cluster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from synthgen.segmentation.cells import accumulate, open_cells
from synthgen.segmentation.interpolation import Interpolant
from synthgen.segmentation.lloyd import Assignment, Runs, spans


def knot_spacing(grids: Sequence[int], size: int) -> int | None:
    """Pixels between knots along an axis; None where the breaks do not fall between pixels.

    >>> knot_spacing((16, 32, 64), 512), knot_spacing((24, 48, 96), 768)
    (4, 4)
    >>> knot_spacing((64,), 500) is None
    True
    """
    if any(size % (2 * grid) for grid in grids):
        return None
    return math.gcd(*(size // (2 * grid) for grid in grids))


@dataclass(frozen=True, slots=True)
class KnotEngine:
    """Assigns pixels through the scores at the knots.

    Args:
        knots: The features at the knots.
        spacing: Pixels between knots, (down, across).
    """

    knots: Interpolant
    spacing: tuple[int, int]

    @classmethod
    def of(
        cls,
        blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
        size: tuple[int, int],
    ) -> KnotEngine | None:
        """The engine for bilinear grids and an image size; None where the sizes do not divide."""
        spacings = [
            knot_spacing([b.shape[1 + axis] for b in blocks], size[axis]) for axis in (0, 1)
        ]
        down, across = spacings
        if down is None or across is None:
            return None
        positions = tuple(
            torch.arange(pixels // step + 1, dtype=torch.float64) * step - 0.5
            for pixels, step in zip(size, (down, across), strict=True)
        )
        return cls(Interpolant.at(blocks, size, (positions[0], positions[1])), (down, across))

    def assign(
        self, centroids: Float[Tensor, "batch slot feature"], runs: Runs, paint: bool = False
    ) -> Assignment:
        """See `lloyd.Engine`."""
        scores = self.knots.project(centroids)
        scores -= 0.5 * centroids.square().sum(-1)[:, None, None]
        weights = torch.zeros_like(scores)
        shares, labels = [], []
        for k, count, part in spans(runs):
            of_runs = torch.unflatten(scores[..., part], -1, (count, k))
            best = of_runs.argmax(-1)
            crossed = _crossed(best)
            own = torch.unflatten(weights[..., part], -1, (count, k))
            _add_uniform(own, best, crossed, self.spacing)
            opened = [_open(of_runs, *c, self.spacing) for c in _contests(of_runs, best, crossed)]
            for each in opened:
                _add_opened(weights, each, part.start, k)
            shares.append(crossed.to(scores).mean((1, 2)))
            if paint:
                labels.append(_paint(best, opened, self.spacing))
        counts = weights.sum(1).sum(1, dtype=torch.float64).round().to(scores)
        maps = torch.cat(labels, 1) if paint else None
        return Assignment(self.knots.gather(weights), counts, torch.cat(shares, 1), maps)


@dataclass(frozen=True, slots=True)
class _Where:
    """Places of cells: image, cell row, cell column, run."""

    batch: Int[Tensor, " cell"]
    row: Int[Tensor, " cell"]
    column: Int[Tensor, " cell"]
    run: Int[Tensor, " cell"]

    def __getitem__(self, kept: Bool[Tensor, " cell"]) -> _Where:
        return _Where(self.batch[kept], self.row[kept], self.column[kept], self.run[kept])

    def corners(self) -> tuple[Tensor, Tensor]:
        """Knot rows and columns of the corners: top left, top right, bottom left, bottom right."""
        down = torch.tensor([0, 0, 1, 1], device=self.row.device)[:, None]
        across = torch.tensor([0, 1, 0, 1], device=self.row.device)[:, None]
        return self.row + down, self.column + across


@dataclass(frozen=True, slots=True)
class _Opened:
    """Crossed cells, opened: corner weights per contender, and the contender of each pixel."""

    where: _Where
    contenders: Int[Tensor, "contender cell"]
    weights: Float[Tensor, "contender 4 cell"]
    held: UInt8[Tensor, "height width cell"]


def _crossed(
    best: Int[Tensor, "batch knot_row knot_column run"],
) -> Bool[Tensor, "batch row column run"]:
    first = best[:, :-1, :-1]
    crossed = first != best[:, :-1, 1:]
    crossed |= first != best[:, 1:, :-1]
    crossed |= first != best[:, 1:, 1:]
    return crossed


def _add_uniform(
    weights: Float[Tensor, "batch knot_row knot_column run cluster"],
    best: Int[Tensor, "batch knot_row knot_column run"],
    crossed: Bool[Tensor, "batch row column run"],
    spacing: tuple[int, int],
) -> None:
    """A cell of one winner adds a quarter of its area to each of its corners."""
    quarter = ~crossed * (spacing[0] * spacing[1] / 4)
    batch, rows, columns, runs, clusters = weights.shape
    cells = weights.new_zeros(batch, rows - 1, columns - 1, runs, clusters)
    cells.scatter_(-1, best[:, :-1, :-1, :, None], quarter.to(weights)[..., None])
    pairs = weights.new_zeros(batch, rows - 1, columns, runs, clusters)
    pairs[:, :, :-1] += cells
    pairs[:, :, 1:] += cells
    weights[:, :-1] += pairs
    weights[:, 1:] += pairs


def _contests(
    scores: Float[Tensor, "batch knot_row knot_column run cluster"],
    best: Int[Tensor, "batch knot_row knot_column run"],
    crossed: Bool[Tensor, "batch row column run"],
) -> Iterator[tuple[_Where, Int[Tensor, "contender cell"]]]:
    """Crossed cells with those who contend: duels of two clusters, then the rest with all.

    Where two clusters win at the corners, a third can win inside only if, for each of the two,
    it is ahead of it at some corner (of two bilinear functions ordered alike at all corners, the
    larger one is larger everywhere).
    """
    where = _Where(*torch.nonzero(crossed, as_tuple=True))
    row, column = where.corners()
    won = best[where.batch, row, column, where.run]
    pair = torch.stack([won.amin(0), won.amax(0)])
    two = ((won == pair[0]) | (won == pair[1])).all(0)
    at_corners = scores[where.batch, row, column, where.run]
    ahead = [
        (at_corners > at_corners.gather(-1, index.expand(4, -1)[..., None])).any(0)
        for index in pair
    ]
    duel = two & ~(ahead[0] & ahead[1]).any(-1)
    if duel.any():
        yield where[duel], pair[:, duel]
    if not duel.all():
        rest = where[~duel]
        everyone = torch.arange(scores.shape[-1], device=scores.device)[:, None]
        yield rest, everyone.expand(-1, len(rest.row))


def _open(
    scores: Float[Tensor, "batch knot_row knot_column run cluster"],
    where: _Where,
    contenders: Int[Tensor, "contender cell"],
    spacing: tuple[int, int],
) -> _Opened:
    row, column = where.corners()
    values = scores[where.batch, row, column, where.run, contenders[:, None]]
    rivals, held = open_cells(values[1:] - values[0], *spacing)
    first = spacing[0] * spacing[1] / 4 - rivals.sum(0, keepdim=True)
    return _Opened(where, contenders, torch.cat([first, rivals]), held)


def _add_opened(
    weights: Float[Tensor, "batch knot_row knot_column slot"], opened: _Opened, start: int, k: int
) -> None:
    """Add what the corners of opened cells weigh in each cluster's pixels."""
    where = opened.where
    row, column = where.corners()
    _, rows, columns, slots = weights.shape
    knot = (where.batch * rows + row) * columns + column
    slot = start + where.run * k + opened.contenders
    accumulate(weights.view(-1), knot * slots + slot[:, None], opened.weights)


def _paint(
    best: Int[Tensor, "batch knot_row knot_column run"],
    opened: Sequence[_Opened],
    spacing: tuple[int, int],
) -> UInt8[Tensor, "batch run height width"]:
    """The label maps: winners of the uniform cells, pixels of the opened ones."""
    down, across = spacing
    cells = best[:, :-1, :-1].movedim(-1, 1).to(torch.uint8)
    maps = cells[..., None, None].repeat(1, 1, 1, 1, down, across)
    for each in opened:
        where = each.where
        labels = each.contenders.to(torch.uint8).gather(0, each.held.flatten(0, 1).long())
        maps[where.batch, where.run, where.row, where.column] = torch.unflatten(
            labels.T, 1, spacing
        )
    return maps.transpose(3, 4).flatten(4, 5).flatten(2, 3)
