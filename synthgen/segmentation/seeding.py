"""First centroids: means of Ward's clusters of a few hundred places.

Ward's linkage (1963) goes on joining the two clusters whose union raises the inertia least, the
cost that k-means lowers. One tree of 16 x 16 places, cut at every k, is close to where k-means
ends: from there it needs half as many updates as from k-means++ (Arthur and Vassilvitskii 2007,
what BL starts from), ends at a lower inertia, and nothing is drawn at random.

Two cuts of one tree at neighboring ks have all clusters but a few in common, so that one of them
adds hardly a mask. A k less than 3/2 of the one before is cut from the tree of a coarser lattice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor
from torch.nn.functional import one_hot

from synthgen.segmentation.implicit import ImplicitEngine
from synthgen.segmentation.interpolation import Interpolation

SIDE, COARSER = 16, 8
"""Rows and columns of the lattices, and at least `PLACES` for each cluster. A finer one costs
more and has no better masks (a tree of 16 x 16 places takes 8 ms, of 32 x 32 150)."""
PLACES = 4
NEAR = 3 / 2


def first_centroids(
    blocks: Sequence[Float[Tensor, "batch _grid_height _grid_width _feature"]],
    size: tuple[int, int],
    ks: tuple[int, ...],
    interpolation: Interpolation = "bilinear",
) -> Float[Tensor, "batch slot feature"]:
    """First centroids of every k, one k after the other."""
    sides = lattice_sides(ks)
    found: dict[int, list[Tensor]] = {}  # by place among the ks, one tensor per image
    for side in sorted(set(sides)):
        own = [index for index, each in enumerate(sides) if each == side]
        points = ImplicitEngine.of(blocks, size, interpolation, (side, side)).points
        across = torch.arange(side, device=blocks[0].device)
        for places in points.pick(across.repeat_interleave(side), across.repeat(side)):
            tree = linkage(torch.pdist(places.double()).cpu().numpy(), "ward")
            tree[:, 2] = np.arange(len(tree))  # for heights: equal ones would be cut as one
            for index in own:
                cut = torch.from_numpy(fcluster(tree, ks[index], "maxclust") - 1).to(places.device)
                held = one_hot(cut.long(), ks[index]).to(places)
                found.setdefault(index, []).append(held.T @ places / held.sum(0)[:, None])
    return torch.cat([torch.stack(found[index]) for index in range(len(ks))], dim=1)


def lattice_sides(ks: Sequence[int]) -> list[int]:
    """Side of the lattice whose tree is cut at each k.

    >>> lattice_sides((2, 5, 6, 10, 20)), lattice_sides((2, 3, 4, 100))
    ([16, 16, 8, 16, 16], [16, 16, 8, 32])
    """
    sides, before = [], 0
    for k in ks:
        if k < NEAR * before and PLACES * k <= COARSER**2:
            sides.append(COARSER)
        else:
            sides.append(SIDE if PLACES * k <= SIDE**2 else 2 * SIDE)
            before = k
    return sides
