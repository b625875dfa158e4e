"""One cell of the knot grid: which of its pixels belong to which of the clusters that contend.

Inside a cell every score is bilinear in the four corners. Contenders are compared with the first
of them: cluster c holds a pixel where its *lead* over the first is positive and the largest of
all leads. A cell is halved along both axes: five new knots at the midpoints, and a quarter whose
corners have one winner is closed; the others are halved again, down to leaves whose pixels are
evaluated. Cost goes with the length of the borders inside the cell.

Corners are ordered top left, top right, bottom left, bottom right; the cell axis stands last, so
that every step is one operation over all cells.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

LEAF = 64
"""Pixels of the largest cell that is evaluated rather than halved (best of 4, 16, 64, 256)."""

QUARTERS = torch.tensor([[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]])
"""Corners of each quarter on the 3 x 3 lattice of old knots and midpoints, row-major."""


def corner_weights(
    down: Float[Tensor, " row"], across: Float[Tensor, " column"]
) -> Float[Tensor, "point 4"]:
    """Bilinear weights of the four corners at a lattice of points of the unit cell.

    >>> corner_weights(torch.tensor([0.5]), torch.tensor([0.0, 0.5]))
    tensor([[0.5000, 0.0000, 0.5000, 0.0000],
            [0.2500, 0.2500, 0.2500, 0.2500]])
    """
    rows = torch.stack([1 - down, down], 1)
    columns = torch.stack([1 - across, across], 1)
    return torch.einsum("ya,xb->yxab", rows, columns).reshape(-1, 4)


def winners(leads: Float[Tensor, "rival point cell"]) -> UInt8[Tensor, "point cell"]:
    """The contender that holds each point: 0 for the first, else 1 + rival; ties go to the first.

    >>> winners(torch.tensor([[[-1.0, 1.0, 1.0]], [[-2.0, 3.0, 1.0]]]))
    tensor([[0, 2, 1]], dtype=torch.uint8)
    """
    if len(leads) == 1:
        return (leads[0] > 0).to(torch.uint8)
    best = leads.max(0)
    return ((best.indices + 1) * (best.values > 0)).to(torch.uint8)


def open_cells(
    leads: Float[Tensor, "rival 4 cell"], height: int, width: int
) -> tuple[Float[Tensor, "rival 4 cell"], UInt8[Tensor, "height width cell"]]:
    """What the corners of each cell weigh in every rival's pixels, and who holds each pixel.

    Args:
        leads: Scores of the rivals less the score of the first contender, at the corners.
        height: Pixels of a cell down.
        width: Pixels of a cell across.

    Returns:
        Sums over the rival's pixels of the pixels' bilinear weights (the first contender has
        the rest: height * width / 4 per corner less the sum over rivals), and the winners.
    """
    if height * width <= LEAF or height % 2 or width % 2:
        return _evaluate(leads, height, width)
    return _halve(leads, height, width)


def _evaluate(
    leads: Float[Tensor, "rival 4 cell"], height: int, width: int
) -> tuple[Float[Tensor, "rival 4 cell"], UInt8[Tensor, "height width cell"]]:
    centers = [(torch.arange(n).to(leads) + 0.5) / n for n in (height, width)]
    to_pixels = corner_weights(centers[0], centers[1])
    held = winners(to_pixels @ leads)
    return to_pixels.T @ _indicators(held, leads), torch.unflatten(held, 0, (height, width))


def _halve(
    leads: Float[Tensor, "rival 4 cell"], height: int, width: int
) -> tuple[Float[Tensor, "rival 4 cell"], UInt8[Tensor, "height width cell"]]:
    rivals, _, cells = leads.shape
    half = torch.tensor([0.0, 0.5, 1.0]).to(leads)
    to_lattice = corner_weights(half, half)
    quarters = QUARTERS.to(leads.device)
    lattice = to_lattice @ leads
    corners = winners(lattice)[quarters]
    mixed = (corners != corners[:, :1]).any(1)
    closed = _indicators(corners[:, 0], leads) * ~mixed
    share = torch.nn.functional.one_hot(quarters, 9).sum(1).to(leads) * (height * width / 16)
    weights = share.T @ closed

    quarter, cell = torch.nonzero(mixed, as_tuple=True)
    knots = quarters[quarter].T * cells + cell
    inner, held = open_cells(lattice.flatten(1)[:, knots], height // 2, width // 2)
    offsets = torch.arange(rivals, device=leads.device)[:, None, None] * (9 * cells)
    accumulate(weights.view(-1), offsets + knots, inner)

    out = corners[:, 0, None, None].repeat(1, height // 2, width // 2, 1)
    out[quarter, :, :, cell] = held.permute(2, 0, 1)
    out = torch.unflatten(out, 0, (2, 2)).permute(0, 2, 1, 3, 4).reshape(height, width, cells)
    return to_lattice.T @ weights, out


def _indicators(
    held: UInt8[Tensor, "point cell"], like: Float[Tensor, "rival 4 cell"]
) -> Float[Tensor, "rival point cell"]:
    rivals = torch.arange(1, len(like) + 1, dtype=torch.uint8, device=like.device)
    return (held == rivals[:, None, None]).to(like.dtype)


def accumulate(total: Float[Tensor, " entry"], index: Tensor, values: Tensor) -> None:
    """Add values to entries, repeated ones too, in an order that does not vary.

    On the CPU ``index_add_`` of a vector is one ordered loop, ``index_put_`` runs in parallel;
    on a GPU it is ``index_put_`` that sorts first.
    """
    if total.device.type == "cpu":
        total.index_add_(0, index.reshape(-1), values.reshape(-1))
    else:
        total.index_put_((index.reshape(-1),), values.reshape(-1), accumulate=True)
