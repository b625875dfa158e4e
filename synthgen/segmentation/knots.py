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
from synthgen.segmentation.lloyd import Assignment, spans


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


def knot_size(grids: Sequence[int], size: int) -> int:
    """The least number of pixels, not below ``size``, whose breaks all fall between pixels.

    A side that is small against its grids, and one of a grid as fine as its pixels, stays as it
    is: without knots it costs little, or there is nothing to gain.

    >>> knot_size((16, 32, 64), 500), knot_size((16, 32, 64), 512), knot_size((64,), 100)
    (512, 512, 100)
    """
    step = 2 * math.lcm(*grids)
    return size if step > size else -(-size // step) * step


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
        self,
        centroids: Float[Tensor, "batch slot feature"],
        ks: tuple[int, ...],
        return_labels: bool = False,
    ) -> Assignment:
        """See `lloyd.Engine`."""
        scores = self.knots.project(centroids)
        scores -= 0.5 * centroids.square().sum(-1)[:, None, None]
        best = torch.cat([scores[..., s].argmax(-1, keepdim=True) for _, s in spans(ks)], -1)
        crossed = _crossed(best)
        offsets = torch.tensor([s.start for _, s in spans(ks)], device=best.device)
        slots = scores.shape[-1]
        weights = _uniform_weights(best + offsets, crossed, slots, self.spacing, scores.dtype)
        where = _Where(*torch.nonzero(crossed, as_tuple=True))
        opened = [_open(scores, *c, self.spacing) for c in _contenders(scores, best, where, ks)]
        for each in opened:
            _add_opened(weights, each)
        counts = weights.sum(1).sum(1, dtype=torch.float64).round().to(scores)
        shares = crossed.to(scores).mean((1, 2))
        maps = _label_maps(best, opened, offsets, self.spacing) if return_labels else None
        return Assignment(self.knots.gather(weights), counts, shares, maps)


@dataclass(frozen=True, slots=True)
class _Where:
    """Places of cells: image, cell row, cell column, place among the ks."""

    batch: Int[Tensor, " cell"]
    row: Int[Tensor, " cell"]
    column: Int[Tensor, " cell"]
    k: Int[Tensor, " cell"]

    def __getitem__(self, kept: Tensor) -> _Where:
        return _Where(self.batch[kept], self.row[kept], self.column[kept], self.k[kept])

    def corners(self) -> tuple[Int[Tensor, "4 cell"], Int[Tensor, "4 cell"]]:
        """Knot rows and columns of the corners: top left, top right, bottom left, bottom right."""
        down = torch.tensor([0, 0, 1, 1], device=self.row.device)[:, None]
        across = torch.tensor([0, 1, 0, 1], device=self.row.device)[:, None]
        return self.row + down, self.column + across


@dataclass(frozen=True, slots=True)
class _Opened:
    """Crossed cells, opened: corner weights per contender, and the contender of each pixel."""

    where: _Where
    slots: Int[Tensor, "contender cell"]
    weights: Float[Tensor, "contender 4 cell"]
    held: UInt8[Tensor, "height width cell"]


def _crossed(
    best: Int[Tensor, "batch knot_row knot_column k"],
) -> Bool[Tensor, "batch row column k"]:
    first = best[:, :-1, :-1]
    crossed = first != best[:, :-1, 1:]
    crossed |= first != best[:, 1:, :-1]
    crossed |= first != best[:, 1:, 1:]
    return crossed


def _uniform_weights(
    winner: Int[Tensor, "batch knot_row knot_column k"],
    crossed: Bool[Tensor, "batch row column k"],
    slots: int,
    spacing: tuple[int, int],
    dtype: torch.dtype,
) -> Float[Tensor, "batch knot_row knot_column slot"]:
    """A cell of one winner adds a quarter of its area to that slot at each of its corners."""
    batch, rows, columns, _ = crossed.shape
    quarter = (~crossed).to(dtype) * (spacing[0] * spacing[1] / 4)
    cells = quarter.new_zeros(batch, rows, columns, slots)
    cells.scatter_(-1, winner[:, :-1, :-1], quarter)
    pairs = cells.new_zeros(batch, rows, columns + 1, slots)
    pairs[:, :, :-1] += cells
    pairs[:, :, 1:] += cells
    weights = cells.new_zeros(batch, rows + 1, columns + 1, slots)
    weights[:, :-1] += pairs
    weights[:, 1:] += pairs
    return weights


def _contenders(
    scores: Float[Tensor, "batch knot_row knot_column slot"],
    best: Int[Tensor, "batch knot_row knot_column k"],
    where: _Where,
    ks: tuple[int, ...],
) -> Iterator[tuple[_Where, Int[Tensor, "contender cell"]]]:
    """Crossed cells with the slots that contend: duels of all ks at once, then the rest per k.

    Where two clusters win at the corners, a third can win inside only if, for each of the two,
    it is ahead of it at some corner (of two bilinear functions ordered alike at all corners, the
    larger one is larger everywhere).
    """
    row, column = where.corners()
    won = best[where.batch, row, column, where.k]
    pair = torch.stack([won.amin(0), won.amax(0)])
    duel = ((won == pair[0]) | (won == pair[1])).all(0)
    offsets = torch.tensor([s.start for _, s in spans(ks)], device=best.device)
    rest = []
    for index, (_, part) in enumerate(spans(ks)):
        mine = torch.nonzero(where.k == index)[:, 0]
        own, pairs = where[mine], pair[:, mine, None]
        values = scores[..., part][own.batch, row[:, mine], column[:, mine]]
        ahead = [(values > values.gather(-1, one.expand(4, -1, -1))).any(0) for one in pairs]
        duel[mine] &= ~(ahead[0] & ahead[1]).any(-1)
        everyone = torch.arange(part.start, part.stop, device=best.device)[:, None]
        rest.append((mine, everyone.expand(-1, len(mine))))
    yield where[duel], pair[:, duel] + offsets[where.k[duel]]
    for mine, everyone in rest:
        left = ~duel[mine]
        yield where[mine[left]], everyone[:, left]


def _open(
    scores: Float[Tensor, "batch knot_row knot_column slot"],
    where: _Where,
    slots: Int[Tensor, "contender cell"],
    spacing: tuple[int, int],
) -> _Opened:
    row, column = where.corners()
    values = scores[where.batch, row, column, slots[:, None]]
    rivals, held = open_cells(values[1:] - values[0], *spacing)
    first = spacing[0] * spacing[1] / 4 - rivals.sum(0, keepdim=True)
    return _Opened(where, slots, torch.cat([first, rivals]), held)


def _add_opened(
    weights: Float[Tensor, "batch knot_row knot_column slot"], opened: _Opened
) -> None:
    """Add what the corners of opened cells weigh in each slot's pixels."""
    row, column = opened.where.corners()
    _, rows, columns, slots = weights.shape
    knot = (opened.where.batch * rows + row) * columns + column
    accumulate(weights.view(-1), knot * slots + opened.slots[:, None], opened.weights)


def _label_maps(
    best: Int[Tensor, "batch knot_row knot_column k"],
    opened: Sequence[_Opened],
    offsets: Int[Tensor, " k"],
    spacing: tuple[int, int],
) -> UInt8[Tensor, "batch k height width"]:
    """The label maps: winners of the uniform cells, pixels of the opened ones."""
    down, across = spacing
    cells = best[:, :-1, :-1].movedim(-1, 1).to(torch.uint8)
    maps = cells[..., None, None].repeat(1, 1, 1, 1, down, across)
    for each in opened:
        where = each.where
        contenders = (each.slots - offsets[where.k]).to(torch.uint8)
        labels = contenders.gather(0, each.held.flatten(0, 1).long())
        maps[where.batch, where.k, where.row, where.column] = torch.unflatten(labels.T, 1, spacing)
    return maps.transpose(3, 4).flatten(4, 5).flatten(2, 3)
