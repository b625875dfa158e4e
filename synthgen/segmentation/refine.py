"""Clusters whose borders follow the image, which BL leaves to future work.

Clusters are bilinear shadows of grids 4 to 32 times coarser than the image: their borders are
smooth where the image has an edge a few pixels away. A refiner, a row of CLUSTER_REFINERS, moves
them there, before masks are made:

affinity: each pixel passes its clusters on to those of its neighbors that look like it, first
far, then near, and takes the cluster that most has come from:

    p_i <- sum_j w_ij p_j,    w_ij = softmax over j of -|I_i - I_j| / (CONTRAST s_i)

over the eight neighbors j at one distance (the affinity of PAMR, Araslanov and Roth 2020, eq. 2
and 3); |.| is the mean over the colors and s_i their deviation among all neighbors of the pixel,
so that a weak edge in a calm place counts as much as a strong one in a lively place. PAMR takes
the neighbors at all distances at once, ten times. One distance after the other, seven times in
all, is no worse and visits 56 instead of 320 neighbors.

guided: in every window the clusters' shares are a linear function of the color (the guided filter
of He, Sun and Tang 2013, eq. 3 to 5 and, for color, 19 to 21), fitted on a grid four times coarser
(He and Sun 2015): what two sides of an edge have in common with the colors of each decides.

affinity-guided, the default: both, one behind the other. The neighbors then need not look so far
away, which keeps parts apart.

superpixel: every cluster of color and position, a hundred of them, takes the cluster that most of
its pixels have.

An image whose longer side is far above `SIDE` is refined at about that side. Its pixels then take
the clusters of the nine cells around them, weighed by likeness in the same way, and only where
these differ: at borders. What is left of texture are specks: they join what is around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from scipy import ndimage
from torch import Tensor

from synthgen.registry import CLUSTER_REFINERS, resolve
from synthgen.segmentation.features import rgbxy_block
from synthgen.segmentation.kmeans import cluster
from synthgen.segmentation.masks import number_pieces

SIDE = 128
"""Side that images are refined at: there are then 2 to 4 cells of it per cell of the attention."""

FAR_AND_NEAR = (8, 4, 2, 1, 4, 2, 1)
"""Distance of the neighbors, one averaging after the other; chosen on tuning scenes."""

NEAR = (4, 2, 1, 4, 2, 1)
"""The same where the guided filter follows."""

CONTRAST = 0.15
"""Share of the local deviation that a difference in color is measured in; on tuning scenes."""

LEAST_DEVIATION = 24 / 255
"""Deviation below which a place has no edges but noise, weave or a gradient, and passes clusters
on in all directions alike; chosen on photographs. On tuning scenes 2 to 24 are one."""

RADIUS = 12
"""Half the side of the guided filter's windows, in pixels of `SIDE`; on tuning scenes."""

LEAST_VARIANCE = 1e-4
"""Variance of colors in [0, 1] that the guided filter takes for noise, He et al.'s epsilon: less
is half a point better on tuning scenes, whose colors are even, and frays skies."""

COARSER = 4
"""How much coarser the grid is that the guided filter is fitted on."""

SUPERPIXELS = 100
"""Clusters of color and position; on tuning scenes 250 are worse."""

SPECK = 0.0005
"""Share of the image below which a connected piece of a cluster is none: the least mask's."""

_NINE = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1))
_AROUND = tuple(offset for offset in _NINE if offset != (0, 0))

Labels = UInt8[np.ndarray, "k height width"]
Picture = UInt8[np.ndarray, "height width 3"]
Colors = Float[Tensor, "channel height width"]
Maps = Float[Tensor, "map height width"]


@runtime_checkable
class ClusterRefiner(Protocol):
    """What a row of CLUSTER_REFINERS must be."""

    def __call__(self, labels: Labels, ks: Sequence[int], image: Picture) -> Labels:
        """Refine the label map of every k at the resolution of the image."""
        ...


def refine_clusters(
    labels: Labels, ks: Sequence[int], image: Picture | None, refiner: str = "affinity-guided"
) -> Labels:
    """Label maps whose borders lie where the image has edges; each stays a partition.

    Args:
        labels: Label map per k.
        ks: Numbers of clusters, in the order of ``labels``.
        image: The image, at the size of the label maps.
        refiner: Row of CLUSTER_REFINERS or ``module:attribute``; none: as they are.

    Raises:
        ValueError: Without the image, for an unknown refiner, or for clusters that it invents.
    """
    if refiner == "none":
        return labels
    if image is None:
        raise ValueError(
            f"refiner={refiner!r} must have the image. Got none; give image=..., or "
            "refiner='none'."
        )
    found: ClusterRefiner = resolve(refiner, CLUSTER_REFINERS, "segmentation.refiner")
    refined = found(labels, ks, image)
    if refined.shape != labels.shape or (refined.max((1, 2)) >= np.asarray(ks)).any():
        raise ValueError(
            f"segmentation.refiner {refiner!r} must return {labels.shape} numbers of clusters "
            f"below {tuple(ks)}. Got {refined.shape} up to {refined.max((1, 2)).tolist()}."
        )
    return refined


def refine_by_affinity(labels: Labels, ks: Sequence[int], image: Picture) -> Labels:
    """Pixels take the clusters of those around them that look like them."""
    return _refine_shares(labels, ks, image, lambda i, p: spread(i, p, FAR_AND_NEAR))


def refine_by_guided_filter(labels: Labels, ks: Sequence[int], image: Picture) -> Labels:
    """Shares of clusters become linear functions of the color, window by window."""
    return _refine_shares(labels, ks, image, guided_filter)


def refine_by_affinity_and_guide(labels: Labels, ks: Sequence[int], image: Picture) -> Labels:
    """Affinity with near neighbors, then the guided filter."""
    return _refine_shares(labels, ks, image, lambda i, p: guided_filter(i, spread(i, p, NEAR)))


def refine_by_superpixels(labels: Labels, ks: Sequence[int], image: Picture) -> Labels:
    """Every superpixel takes the cluster of most of its pixels, of equal ones the first."""
    regions = cluster([rgbxy_block(image)], image.shape[:2], (SUPERPIXELS,)).labels[0]
    numbers = regions.astype(np.int64)
    refined = []
    for label_map, k in zip(labels, ks, strict=True):
        votes = np.bincount((numbers * k + label_map).ravel(), minlength=SUPERPIXELS * k)
        winners = votes.reshape(SUPERPIXELS, k).argmax(1).astype(np.uint8)
        refined.append(join_specks(winners[regions], SPECK * label_map.size))
    return np.stack(refined)


def _refine_shares(
    labels: Labels, ks: Sequence[int], image: Picture, smooth: Callable[[Colors, Maps], Maps]
) -> Labels:
    """Label maps from shares of clusters that were smoothed along the image at about `SIDE`."""
    height, width = image.shape[:2]
    factor, cells = square_cells((height, width))
    colors = torch.from_numpy(image.astype(np.float32) / 255).movedim(-1, 0).contiguous()
    small = cell_means(colors, cells)
    maps = smooth(small, _cluster_shares(labels, ks, cells).view(sum(ks), *small.shape[1:]))
    if factor == 1:
        refined = _winners(maps, ks)
    else:
        refined = back_to_pixels(maps, ks, small, colors, factor)
    return np.stack([join_specks(label_map, SPECK * height * width) for label_map in refined])


def spread(image: Colors, maps: Maps, distances: Sequence[int]) -> Maps:
    """Each pixel takes over from neighbors that look like it, one distance after the other."""
    every = sorted(set(distances))
    scale = CONTRAST * local_deviation(image, every).clamp(min=LEAST_DEVIATION)
    weights = {d: neighbor_weights(image, (d,), scale) for d in every}
    for distance in distances:
        maps = average_neighbors(maps, (distance,), weights[distance])
    return maps


def guided_filter(
    image: Colors,
    maps: Maps,
    radius: int = RADIUS,
    least_variance: float = LEAST_VARIANCE,
    coarser: int = COARSER,
) -> Maps:
    """The guided filter with a color guide (He, Sun and Tang 2013, eq. 19 to 21), made fast.

    Coefficients are found on a grid ``coarser`` times coarser and upsampled (He and Sun 2015).
    Windows at the image's rim hold what is inside of it.

    Args:
        image: The guide, in [0, 1].
        maps: What is filtered, each map alone.
        radius: Of the windows, in pixels.
        least_variance: Epsilon, which keeps coefficients small where colors hardly vary.
        coarser: 1 for the filter as it was published first.
    """
    reach = max(1, round(radius / coarser))

    def mean(planes: Float[Tensor, "*plane rows columns"]) -> Float[Tensor, "*plane rows columns"]:
        flat = planes.reshape(-1, *planes.shape[-2:])
        means = F.avg_pool2d(flat, 2 * reach + 1, 1, reach, count_include_pad=False)
        return means.view(planes.shape)

    guide, shares = (F.avg_pool2d(x, coarser, ceil_mode=True) for x in (image, maps))
    mean_guide, mean_shares = mean(guide), mean(shares)
    variance = mean(guide[:, None] * guide) - mean_guide[:, None] * mean_guide
    covariance = mean(guide[:, None] * shares) - mean_guide[:, None] * mean_shares
    noise = least_variance * torch.eye(len(guide))
    slopes = torch.linalg.solve(
        variance.permute(2, 3, 0, 1) + noise, covariance.permute(2, 3, 0, 1)
    ).permute(2, 3, 0, 1)  # channel, map, row, column
    offsets = mean_shares - (slopes * mean_guide[:, None]).sum(0)
    both = mean(torch.cat([slopes, offsets[None]]))
    if coarser > 1:
        both = F.interpolate(both, scale_factor=coarser, mode="bilinear", align_corners=False)
    height, width = image.shape[1:]
    both = both[..., :height, :width]
    filtered = both[-1].clone()
    for slope, channel in zip(both[:-1], image, strict=True):
        filtered.addcmul_(slope, channel)
    return filtered


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
    a weight is zero. Where one cluster of a k wins in all nine it wins: only borders are computed.
    """
    height, width = colors.shape[1:]
    rows, columns = small.shape[1:]
    winners = _winners(maps, ks)
    differs = [ndimage.maximum_filter(w, 3) != ndimage.minimum_filter(w, 3) for w in winners]
    crossed = torch.from_numpy(np.stack(differs)).flatten(1)  # k, cell
    at_border = crossed.any(0).nonzero()[:, 0]
    below, beside = rows * factor - height, columns * factor - width
    blocks = F.pad(colors[None], (0, beside, 0, below), mode="replicate")[0]
    pixels = blocks.view(3, rows, factor, columns, factor).permute(0, 2, 4, 1, 3)
    pixels = pixels.reshape(3, factor**2, 1, rows * columns)
    padded = (F.pad(part[None], (1, 1, 1, 1), mode="replicate")[0] for part in (small, maps))
    colors_around, shares_around = (part.flatten(1) for part in padded)
    shares_around = shares_around.T.contiguous()
    offsets = torch.tensor([dy * (columns + 2) + dx for dy, dx in _NINE])[:, None]
    inside = (torch.arange(factor) + 0.5) / factor - 0.5  # of a cell, from its center
    near = torch.stack([(1.5 - (d - inside).abs()).clamp(min=0) for d in (-1, 0, 1)], 1)
    reach = (near[:, None, :, None] * near[None, :, None, :]).reshape(factor**2, 9, 1)
    labels = torch.from_numpy(winners).flatten(1)[:, :, None].repeat(1, 1, factor**2)
    for cells in torch.split(at_border, 1024):  # the cell axis last: small sums are slow there
        nine = (cells // columns + 1) * (columns + 2) + cells % columns + 1 + offsets
        color = colors_around[:, nine]  # channel, neighbor, cell
        scale = CONTRAST * _deviation(color.movedim(1, 0)).clamp(min=LEAST_DEVIATION)
        unlike = ((color[:, None] - pixels[..., cells]).abs() / scale[:, None, None]).mean(0)
        weights = ((-unlike).softmax(1) * reach).permute(2, 0, 1).contiguous()
        shares = torch.split(shares_around[nine.T], list(ks), -1)
        for k, (here, share) in enumerate(zip(crossed[:, cells], shares, strict=True)):
            scores = weights[here] @ share[here]  # cell, pixel, cluster
            labels[k, cells[here]] = scores.argmax(-1).to(torch.uint8)
    labels = labels.view(len(ks), rows, columns, factor, factor).transpose(2, 3)
    return labels.reshape(len(ks), rows * factor, columns * factor)[:, :height, :width].numpy()


def _deviation(values: Float[Tensor, "neighbor ..."]) -> Float[Tensor, ...]:
    """Standard deviation over the neighbors; ``std`` takes four times as long."""
    mean = values.mean(0)
    return (values.square().mean(0) - mean.square()).clamp(min=0).sqrt()
