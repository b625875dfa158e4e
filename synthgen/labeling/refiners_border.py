"""Refiners that touch only uncertain pixels near a border between classes (BL section 4.2, eq. 6).

The upsampling error says where the grid that a label came from was too coarse to say which pixel
is which. It also marks contours inside of objects, such as that of a wheel on a car; there all
neighbors have one class and nothing is to decide. So a pixel is *uncertain* if its error exceeds
the mean of the image and another class is near. `ignore_uncertain` undecides those pixels;
`recolor_uncertain` lets the certain pixels around each vote, the more alike in color the louder
(a joint bilateral vote, Kopf et al. 2007 eq. 1, of labels).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from synthgen.labeling.refine import ErrorMap, Picture, Scores, Semantic
from synthgen.types import IGNORE

REACH = 1 / 32
"""How far from a border a pixel can be uncertain, as a share of the longer side: a cell of a 32
grid, the finest of the embedded model."""

VOTING_REACH = 2.0
"""Radius of the voters, in units of the reach of uncertainty: certain pixels lie beyond it."""

COLOR_SIGMA = 24.0
"""Standard deviation of the weight of a voter's color distance, in 0-255 per channel."""

_CHUNK = 8192  # pixels that vote at a time: 20 MB at a radius of 8


def ignore_uncertain(
    semantic: Semantic, image: Picture, scores: Scores | None = None, uncertainty: ErrorMap = None
) -> Semantic:
    """Uncertain pixels become 255: nothing is learned from them.

    Raises:
        ValueError: Without an uncertainty map.
    """
    refined = semantic.copy()
    refined[uncertain_pixels(semantic, _required(uncertainty))] = IGNORE
    return refined


def recolor_uncertain(
    semantic: Semantic, image: Picture, scores: Scores | None = None, uncertainty: ErrorMap = None
) -> Semantic:
    """Uncertain pixels take the class of the certain ones around them that look alike.

    A pixel that no certain one is near keeps what it has; undecided pixels stay undecided.

    Raises:
        ValueError: Without an uncertainty map.
    """
    uncertain = uncertain_pixels(semantic, _required(uncertainty)) & (semantic != IGNORE)
    classes = np.setdiff1d(np.unique(semantic), [IGNORE])
    refined = semantic.copy()
    radius = max(1, round(VOTING_REACH * reach_pixels(semantic.shape)))
    at = np.argwhere(uncertain)
    for start in range(0, len(at), _CHUNK):
        part = at[start : start + _CHUNK]
        votes = color_votes(part, semantic, image, ~uncertain, classes, radius)
        rows, columns = part[votes.any(1)].T
        refined[rows, columns] = classes[votes[votes.any(1)].argmax(1)]
    return refined


def uncertain_pixels(
    semantic: Semantic, uncertainty: Float[np.ndarray, "height width"]
) -> Bool[np.ndarray, "height width"]:
    """Pixels whose error exceeds the mean of the image, with another class near.

    >>> uncertain_pixels(np.array([[1, 1, 0, 0]], np.uint8), np.array([[1.0, 9.0, 8.0, 7.0]]))
    array([[False,  True,  True, False]])
    """
    window = 2 * reach_pixels(semantic.shape) + 1
    highest = ndimage.maximum_filter(semantic, window, mode="nearest")
    lowest = ndimage.minimum_filter(semantic, window, mode="nearest")
    found: Bool[np.ndarray, "height width"] = (highest != lowest) & (
        uncertainty > uncertainty.mean()
    )
    return found


def reach_pixels(shape: tuple[int, ...]) -> int:
    """`REACH` in pixels of an image, at least 1.

    >>> reach_pixels((128, 96)), reach_pixels((8, 8))
    (4, 1)
    """
    return max(1, round(REACH * max(shape)))


def color_votes(
    at: Int[np.ndarray, "pixel 2"],
    semantic: Semantic,
    image: Picture,
    certain: Bool[np.ndarray, "height width"],
    classes: UInt8[np.ndarray, " cls"],
    radius: int,
) -> Float[np.ndarray, "pixel cls"]:
    """Weight of the certain pixels of each class in the square around each pixel.

    A voter weighs ``exp(-|color difference|² / 2 s² - |offset|² / 2 r²)`` with s = `COLOR_SIGMA`
    and r the radius.
    """
    margin = ((radius, radius), (radius, radius))
    colors = np.pad(image.astype(np.float32), (*margin, (0, 0)))
    labels = np.pad(np.where(certain, semantic, IGNORE), margin, constant_values=IGNORE)
    steps = np.arange(2 * radius + 1)
    down, right = (axis.ravel() for axis in np.meshgrid(steps, steps, indexing="ij"))
    rows, columns = at[:, :1] + down, at[:, 1:] + right
    own = image[at[:, 0], at[:, 1]].astype(np.float32)
    distance = np.square(colors[rows, columns] - own[:, None]).sum(-1) / (2 * COLOR_SIGMA**2)
    distance += ((down - radius) ** 2 + (right - radius) ** 2) / (2 * radius**2)
    weights, seen = np.exp(-distance), labels[rows, columns]
    return np.stack([np.where(seen == cls, weights, 0.0).sum(1) for cls in classes], axis=1)


def _required(uncertainty: ErrorMap) -> Float[np.ndarray, "height width"]:
    if uncertainty is None:
        raise ValueError(
            "This refiner needs the upsampling error of the features at each pixel. Got None; "
            "choose 'pamr' or 'color-majority', which look at the image alone."
        )
    return uncertainty
