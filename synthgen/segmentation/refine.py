"""Clusters whose borders follow the image, which BL leaves to future work.

Clusters are bilinear shadows of grids 4 to 32 times coarser than the image: their borders are
smooth where the image has an edge a few pixels away. Here each pixel passes its clusters on to
those of its neighbors that look like it, first far, then near, and takes the cluster that most
has come from:

    p_i <- sum_j w_ij p_j,    w_ij = softmax over j of -|I_i - I_j| / (CONTRAST s_i)

over the eight neighbors j at one distance (the affinity of PAMR, Araslanov and Roth 2020, eq. 2
and 3); |.| is the mean over the colors and s_i their deviation among all neighbors of the pixel,
so that a weak edge in a calm place counts as much as a strong one in a lively place. PAMR takes
the neighbors at all distances at once, ten times. One distance after the other, seven times in
all, is no worse and visits 56 instead of 320 neighbors.

An image whose longer side is far above `SIDE` is refined at about that side. Its pixels then take
the clusters of the nine cells around them, weighed by likeness in the same way, and only where
these differ: at borders. What is left of texture are specks: they join what is around them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from scipy import ndimage
from torch import Tensor

from synthgen.segmentation.masks import number_pieces

SIDE = 128
"""Side that images are refined at: there are then 2 to 4 cells of it per cell of the attention."""

SCHEDULE = (8, 4, 2, 1, 4, 2, 1)
"""Distance of the neighbors, one averaging after the other; chosen on tuning scenes."""

CONTRAST = 0.15
"""Share of the local deviation that a difference in color is measured in; on tuning scenes."""

LEAST_DEVIATION = 24 / 255
"""Deviation below which a place has no edges but noise, weave or a gradient, and passes clusters
on in all directions alike; chosen on photographs. On tuning scenes 2 to 24 are one."""

SPECK = 0.0005
"""Share of the image below which a connected piece of a cluster is none: the least mask's."""

_NINE = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1))
_AROUND = tuple(offset for offset in _NINE if offset != (0, 0))


def refine_clusters(
    labels: UInt8[np.ndarray, "k height width"],
    ks: Sequence[int],
    image: UInt8[np.ndarray, "height width 3"],
) -> UInt8[np.ndarray, "k height width"]:
    """Label maps whose borders lie where the image has edges; each stays a partition.

    Args:
        labels: Label map per k.
        ks: Numbers of clusters, in the order of ``labels``.
        image: The image, at the size of the label maps.
    """
    height, width = image.shape[:2]
    factor, cells = square_cells((height, width))
    colors = torch.from_numpy(image.astype(np.float32) / 255).movedim(-1, 0).contiguous()
    small = cell_means(colors, cells)
    maps = _cluster_shares(labels, ks, cells).view(sum(ks), *small.shape[1:])
    scale = CONTRAST * local_deviation(small, sorted(set(SCHEDULE))).clamp(min=LEAST_DEVIATION)
    weights = {d: neighbor_weights(small, (d,), scale) for d in set(SCHEDULE)}
    for distance in SCHEDULE:
        maps = average_neighbors(maps, (distance,), weights[distance])
    if factor == 1:
        refined = _winners(maps, ks)
    else:
        refined = back_to_pixels(maps, ks, small, colors, factor)
    return np.stack([join_specks(label_map, SPECK * height * width) for label_map in refined])


def join_specks(
    labels: UInt8[np.ndarray, "height width"], least: float
) -> UInt8[np.ndarray, "height width"]:
    """Give connected pieces (4 neighbors) of fewer than ``least`` pixels the label around them.

    Of the labels that a piece borders on it takes the one along most of its border, of equal ones
    the lowest. A piece among other small ones waits until one of these has joined.

    >>> join_specks(np.array([[0, 0, 0], [0, 2, 1], [0, 1, 1]], dtype=np.uint8), 2.0).tolist()
    [[0, 0, 0], [0, 0, 1], [0, 1, 1]]
    """
    pieces = number_pieces(labels)
    small = np.bincount(pieces.ravel()) < least
    small[0] = False
    if not small.any():
        return labels
    y, x = np.nonzero(labels[1:] != labels[:-1])
    a, b = np.nonzero(labels[:, 1:] != labels[:, :-1])
    near = np.concatenate([pieces[y, x], pieces[a, b]])
    far = np.concatenate([pieces[y + 1, x], pieces[a, b + 1]])
    near, far = np.concatenate([near, far]), np.concatenate([far, near])
    near, far = near[small[near]], far[small[near]]
    own, num = np.zeros(len(small), dtype=np.int64), int(labels.max()) + 1
    own[pieces] = labels
    while (borders := small[near] & ~small[far]).any():
        piece, label = near[borders], own[far[borders]]
        counts = np.bincount(piece * num + label, minlength=num * len(small)).reshape(-1, num)
        joined = np.unique(piece)
        own[joined] = counts[joined].argmax(1)
        small[joined] = False
    joined_labels: UInt8[np.ndarray, "height width"] = own[pieces].astype(np.uint8)
    return joined_labels


def _winners(
    maps: Float[Tensor, "cluster height width"], ks: Sequence[int]
) -> UInt8[np.ndarray, "k height width"]:
    """The largest cluster of each k at each place."""
    parts = torch.split(maps, list(ks))
    return np.stack([part.argmax(0).to(torch.uint8).numpy() for part in parts])


def local_deviation(
    image: Float[Tensor, "channel height width"], distances: Sequence[int]
) -> Float[Tensor, "channel height width"]:
    """Standard deviation of each color among a pixel and its neighbors at the given distances."""
    near = torch.stack(shifted_views(image, distances))
    return _deviation(torch.cat([near, image[None].expand(len(distances), *image.shape)]))


def neighbor_weights(
    image: Float[Tensor, "channel height width"],
    distances: Sequence[int],
    scale: Float[Tensor, "channel height width"],
) -> Float[Tensor, "neighbor height width"]:
    """How much each neighbor looks like a pixel, as shares that sum to 1; see above.

    A difference in color of ``scale`` lowers a weight by a factor of e.
    """
    near = torch.stack(shifted_views(image, distances))
    return (-(near - image).abs() / scale).mean(1).softmax(0)


def average_neighbors(
    maps: Float[Tensor, "map height width"],
    distances: Sequence[int],
    weights: Float[Tensor, "neighbor height width"],
) -> Float[Tensor, "map height width"]:
    """Each pixel's weighted mean over its neighbors; edges are replicated."""
    mean = torch.zeros_like(maps)
    for weight, shifted in zip(weights, shifted_views(maps, distances), strict=True):
        mean.addcmul_(shifted, weight)
    return mean


def shifted_views(
    maps: Float[Tensor, "map height width"], distances: Sequence[int]
) -> list[Float[Tensor, "map height width"]]:
    """What stands around each pixel, one view per neighbor."""
    height, width = maps.shape[1:]
    reach = max(distances)
    padded = F.pad(maps[None], (reach, reach, reach, reach), mode="replicate")[0]
    return [
        padded[:, reach + d * y : reach + d * y + height, reach + d * x : reach + d * x + width]
        for d in distances
        for y, x in _AROUND
    ]


def square_cells(size: tuple[int, int]) -> tuple[int, Int[np.ndarray, "height width"]]:
    """Side of the cells in which an image has about `SIDE`, and the cell of each pixel.

    >>> square_cells((128, 128))[0], square_cells((512, 384))[0]
    (1, 4)
    """
    factor = max(1, round(max(size) / SIDE))
    columns = -(-size[1] // factor)
    return factor, np.arange(size[0])[:, None] // factor * columns + np.arange(size[1]) // factor


def cell_means(
    maps: Float[Tensor, "map height width"], cells: Int[np.ndarray, "height width"]
) -> Float[Tensor, "map rows columns"]:
    """Mean of each map over the pixels of each cell."""
    flat, count = cells.ravel(), np.bincount(cells.ravel())
    sums = [np.bincount(flat, weights=plane.numpy().ravel()) for plane in maps]
    means = torch.from_numpy((np.stack(sums) / count).astype(np.float32))
    return torch.unflatten(means, 1, (-1, int(cells[0, -1]) + 1))


def _cluster_shares(
    labels: UInt8[np.ndarray, "k height width"],
    ks: Sequence[int],
    cells: Int[np.ndarray, "height width"],
) -> Float[Tensor, "cluster cell"]:
    """Share of each cell that belongs to each cluster, those of all k one behind the other."""
    flat, count = cells.ravel(), np.bincount(cells.ravel())
    shares = [
        np.bincount(label_map.ravel() * len(count) + flat, minlength=k * len(count))
        for label_map, k in zip(labels.astype(np.int64), ks, strict=True)
    ]
    stacked = np.concatenate([share.reshape(k, -1) for share, k in zip(shares, ks, strict=True)])
    return torch.from_numpy((stacked / count).astype(np.float32))


def back_to_pixels(
    maps: Float[Tensor, "cluster rows columns"],
    ks: Sequence[int],
    small: Float[Tensor, "channel rows columns"],
    colors: Float[Tensor, "channel height width"],
    factor: int,
) -> UInt8[np.ndarray, "k height width"]:
    """Clusters of pixels from those of cells (joint bilateral upsampling, Kopf et al. 2007).

    A pixel weighs the nine cells around it by likeness, as above, and by nearness: 1.5 cells away
    a weight is zero. Where one cluster wins in all nine it wins: only borders are computed.
    """
    height, width = colors.shape[1:]
    rows, columns = small.shape[1:]
    winners = _winners(maps, ks)
    differs = [ndimage.maximum_filter(w, 3) != ndimage.minimum_filter(w, 3) for w in winners]
    at_border = torch.from_numpy(np.logical_or.reduce(differs).ravel().nonzero()[0])
    below, beside = rows * factor - height, columns * factor - width
    blocks = F.pad(colors[None], (0, beside, 0, below), mode="replicate")[0]
    pixels = blocks.view(3, rows, factor, columns, factor).permute(1, 3, 2, 4, 0)
    pixels = pixels.reshape(rows * columns, factor**2, 1, 3)
    padded = (F.pad(part[None], (1, 1, 1, 1), mode="replicate")[0] for part in (small, maps))
    colors_around, shares_around = (part.flatten(1).T.contiguous() for part in padded)
    middle = (at_border // columns + 1) * (columns + 2) + at_border % columns + 1
    offsets = torch.tensor([dy * (columns + 2) + dx for dy, dx in _NINE])
    inside = (torch.arange(factor) + 0.5) / factor - 0.5  # of a cell, from its center
    near = torch.stack([(1.5 - (d - inside).abs()).clamp(min=0) for d in (-1, 0, 1)], 1)
    reach = (near[:, None, :, None] * near[None, :, None, :]).reshape(factor**2, 9)
    labels = torch.from_numpy(winners).flatten(1)[:, :, None].repeat(1, 1, factor**2)
    for cells, center in zip(torch.split(at_border, 1024), torch.split(middle, 1024), strict=True):
        nine = center[:, None] + offsets
        color = colors_around[nine]
        scale = CONTRAST * _deviation(color.movedim(1, 0)).clamp(min=LEAST_DEVIATION)
        unlike = ((color[:, None] - pixels[cells]).abs() / scale[:, None, None]).mean(-1)
        scores = ((-unlike).softmax(-1) * reach) @ shares_around[nine]
        for k, part in enumerate(torch.split(scores, list(ks), -1)):
            labels[k, cells] = part.argmax(-1).to(torch.uint8)
    labels = labels.view(len(ks), rows, columns, factor, factor).transpose(2, 3)
    return labels.reshape(len(ks), rows * factor, columns * factor)[:, :height, :width].numpy()


def _deviation(values: Float[Tensor, "neighbor ..."]) -> Float[Tensor, ...]:
    """Standard deviation over the neighbors; ``std`` takes four times as long."""
    mean = values.mean(0)
    return (values.square().mean(0) - mean.square()).clamp(min=0).sqrt()
