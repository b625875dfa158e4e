"""Refiners that look at the colors of the whole image: PAMR and the k-means majority of PCC.

- `refine_by_pamr`: pixel-adaptive mask refinement (PAMR; Araslanov and Roth, CVPR 2020, section
  3.3). Ten times, the class maps of a pixel become the mean of those of 48 neighbors, weighed by
  how alike their colors are, relative to the local contrast.
- `refine_by_color_majority`: BL's labeled dataset (PCC, methods.md section 2). K-means on color
  and position; every cluster takes the class of its majority, if that is clear.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from synthgen.labeling.refine import ErrorMap, Picture, Scores, Semantic
from synthgen.segmentation.features import rgbxy_block
from synthgen.segmentation.kmeans import cluster
from synthgen.segmentation.masks import label_components
from synthgen.segmentation.refine import (
    average_neighbors,
    back_to_pixels,
    cell_means,
    neighbor_weights,
    shifted_views,
    square_cells,
)
from synthgen.types import IGNORE

ITERATIONS = 10  # PAMR section 4
DILATIONS = (1, 2, 4, 8, 12, 24)  # PAMR section 4
CONTRAST = 0.1
"""Factor of the local standard deviation that color differences are measured in (PAMR's code)."""

CLUSTERS = 20  # PCC
MAJORITY = 2  # PCC: the first must have more than twice the votes of the second
MIN_COMPONENT = 10  # PCC: pixels


def refine_by_pamr(
    semantic: Semantic, image: Picture, scores: Scores | None = None, uncertainty: ErrorMap = None
) -> Semantic:
    """PAMR of the map's classes, or of their scores where all of them have some; largest wins.

    An image much larger than `refine.SIDE` is refined at about that side, as clusters are: its
    neighbors then lie as far apart as in the images that everything here was tuned on. Undecided
    pixels count for no class and stay undecided.
    """
    classes = np.setdiff1d(np.unique(semantic), [IGNORE])
    if not len(classes):
        return semantic.copy()
    scored = scores if scores is not None and all(int(cls) in scores for cls in classes) else None
    maps = np.stack([_class_map(semantic, scored, int(cls)) for cls in classes])
    pixels = torch.from_numpy(image.astype(np.float32) / 255).movedim(-1, 0).contiguous()
    factor, cells = square_cells(semantic.shape)
    if factor == 1:
        winners = classes[pamr(pixels, torch.from_numpy(maps)).argmax(0).numpy()]
    else:
        small = cell_means(pixels, cells)
        refined = pamr(small, cell_means(torch.from_numpy(maps), cells))
        winners = classes[back_to_pixels(refined, [len(classes)], small, pixels, factor)[0]]
    return np.where(semantic == IGNORE, np.uint8(IGNORE), winners)


def pamr(
    image: Float[Tensor, "channel height width"],
    maps: Float[Tensor, "cls height width"],
    iterations: int = ITERATIONS,
    dilations: Sequence[int] = DILATIONS,
) -> Float[Tensor, "cls height width"]:
    """Pixel-adaptive mask refinement (Araslanov and Roth 2020, eq. 2 and 3).

    Weights of the neighbors: softmax over them of ``-|I_i - I_j| / (0.1 s_i)``, averaged over
    the channels before the softmax; s is the standard deviation over the neighbors and the pixel
    itself. Edges are replicated.
    """
    stacked = torch.stack(shifted_views(image, dilations))
    with_self = torch.cat([stacked, image[None].expand(len(dilations), *image.shape)])
    scale = 1e-8 + CONTRAST * with_self.std(0)
    weights = neighbor_weights(image, dilations, scale)
    for _ in range(iterations):
        maps = average_neighbors(maps, dilations, weights)
    return maps


def refine_by_color_majority(
    semantic: Semantic, image: Picture, scores: Scores | None = None, uncertainty: ErrorMap = None
) -> Semantic:
    """PCC: clusters of color and position take the class of their majority, or become 255.

    Undecided pixels vote for 255. Components of fewer than 10 pixels become 255 too.
    """
    size = (image.shape[0], image.shape[1])
    clusters = cluster([rgbxy_block(image)], size, (CLUSTERS,)).labels[0]
    return drop_components(majority(semantic, clusters), MIN_COMPONENT)


def majority(semantic: Semantic, clusters: UInt8[np.ndarray, "height width"]) -> Semantic:
    """The class of most pixels of each cluster; 255 without more than twice the second's.

    >>> votes = np.array([[3, 3, 3, 4, 5, 6]], np.uint8)
    >>> majority(votes, np.array([[0, 0, 0, 0, 1, 1]], np.uint8)).tolist()
    [[3, 3, 3, 3, 255, 255]]
    """
    pairs = clusters.astype(np.int64).ravel() * 256 + semantic.ravel()
    counts = np.bincount(pairs, minlength=256 * (int(clusters.max()) + 1)).reshape(-1, 256)
    second, first = np.partition(counts, -2, axis=1)[:, -2:].T
    winners = np.where(first > MAJORITY * second, counts.argmax(1), IGNORE).astype(np.uint8)
    refined: Semantic = winners[clusters]
    return refined


def drop_components(semantic: Semantic, min_pixels: int) -> Semantic:
    """8-connected regions of one class with fewer pixels than given become 255.

    >>> drop_components(np.array([[0, 0, 0, 7, 7]], np.uint8), 3).tolist()
    [[0, 0, 0, 255, 255]]
    """
    refined = semantic.copy()
    for cls in np.setdiff1d(np.unique(semantic), [IGNORE]):
        components, _ = label_components(semantic == cls)
        small = np.bincount(components.ravel()) < min_pixels
        small[0] = False  # everything else
        refined[small[components]] = IGNORE
    return refined


def _class_map(
    semantic: Semantic, scores: Scores | None, cls: int
) -> Float[np.ndarray, "height width"]:
    """Scores of a class where they are given, else ones where the map holds it."""
    plane = (semantic == cls) if scores is None else scores[cls]
    return np.where(semantic == IGNORE, 0.0, plane).astype(np.float32)
