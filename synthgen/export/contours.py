"""Outlines of masks as polygons, along the edges of their pixels.

Such an outline encloses the mask's pixels and nothing else at whatever size it is filled
(even-odd): at the image's own the mask comes back pixel for pixel, also from pycocotools, and at
a larger one each pixel is a square. Components and holes become one closed line through bridges
that are walked twice and enclose nothing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial.distance import cdist


def polygons(mask: Bool[np.ndarray, "height width"]) -> list[Float[np.ndarray, "_vertex 2"]]:
    """One polygon per 4-connected component, its holes bridged; see `outline`."""
    components, num = ndimage.label(mask)
    return [outline(components == number) for number in range(1, num + 1)]


def outline(
    mask: Bool[np.ndarray, "height width"], inset: float = 0.0
) -> Float[np.ndarray, "vertex 2"]:
    """One closed polygon around a mask, its last vertex joined to its first.

    Args:
        mask: At least one pixel.
        inset: How far edges stay inside of their pixels. Tools that cut coordinates off to whole
            pixels and fill the outline too (OpenCV) would else take a row and a column more.

    Returns:
        Vertices (x, y) in pixels, the image's corner at (0, 0): 0..width and 0..height.

    >>> outline(np.array([[True]])).tolist()
    [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    """
    rings = trace_rings(mask, inset)
    assert rings, "an empty mask has no outline"
    joined = rings[0]
    for ring in rings[1:]:
        joined = _bridge(joined, ring)
    return joined


def trace_rings(
    mask: Bool[np.ndarray, "height width"], inset: float = 0.0
) -> list[Float[np.ndarray, "_vertex 2"]]:
    """Outlines of every component and hole, the longest first; see `outline`.

    Their corners are where an odd number of the four pixels around belong to the mask, and twice
    where two diagonal ones do. In each row of corners the first and second are joined, the third
    and fourth, and so on; in each column likewise.
    """
    padded = np.pad(mask, 1)
    four = padded.astype(np.int8)
    turns = four[:-1, :-1] - four[:-1, 1:] - four[1:, :-1] + four[1:, 1:]
    ys, xs = np.nonzero(turns)
    corners = np.repeat(np.stack([xs, ys], axis=1), np.abs(turns[ys, xs]), axis=0)
    across = np.lexsort((corners[:, 0], corners[:, 1])).reshape(-1, 2)
    down = np.lexsort((corners[:, 1], corners[:, 0])).reshape(-1, 2)
    moved = corners.astype(np.float64)
    left, top = corners[across[:, 0]], corners[down[:, 0]]
    is_below = padded[left[:, 1] + 1, left[:, 0] + 1]
    is_right = padded[top[:, 1] + 1, top[:, 0] + 1]
    moved[across, 1] += np.where(is_below, inset, -inset)[:, None]
    moved[down, 0] += np.where(is_right, inset, -inset)[:, None]
    in_row, in_column = _partners(across), _partners(down)
    rings, seen = [], set[int]()
    for start in range(len(corners)):
        ring, here = [], start
        while here not in seen:
            ring += [here, in_row[here]]
            seen.update(ring[-2:])
            here = in_column[ring[-1]]
        rings += [moved[ring]] * bool(ring)
    return sorted(rings, key=lambda ring: -len(ring))


def _partners(pairs: Int[np.ndarray, "pair 2"]) -> dict[int, int]:
    """Each corner's other end of its edge."""
    return dict(np.concatenate([pairs, pairs[:, ::-1]]).tolist())


def _bridge(
    ring: Float[np.ndarray, "vertex 2"], other: Float[np.ndarray, "more 2"]
) -> Float[np.ndarray, "joined 2"]:
    """Walk a ring, over to the nearest vertex of the other, around it, back, and on."""
    distances = cdist(ring, other)
    here, there = np.unravel_index(int(distances.argmin()), distances.shape)
    around = np.concatenate([other[there:], other[: there + 1]])
    return np.concatenate([ring[: here + 1], around, ring[here:]])
