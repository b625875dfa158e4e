"""Outlines of masks as polygons, for formats that have nothing else.

Marching squares at the half-way level between pixel centers: the outline holds the centers of
all the mask's pixels and no other, so filling it (even-odd, at pixel centers) gives the mask
back, pixel for pixel. Components and holes become one closed line through bridges that are walked
twice and enclose nothing.
"""

from __future__ import annotations

import numpy as np
from contourpy import contour_generator
from jaxtyping import Bool, Float
from scipy.spatial.distance import cdist


def outline(mask: Bool[np.ndarray, "height width"]) -> Float[np.ndarray, "vertex 2"]:
    """One closed polygon around a mask, its last vertex joined to its first.

    Args:
        mask: At least one pixel.

    Returns:
        Vertices (x, y) in pixels, the image's corner at (0, 0): 0..width and 0..height.

    >>> outline(np.array([[True]])).tolist()
    [[0.0, 0.5], [0.5, 0.0], [1.0, 0.5], [0.5, 1.0]]
    """
    rings = trace_rings(mask)
    joined = rings[0]
    for ring in rings[1:]:
        joined = _bridge(joined, ring)
    return joined


def trace_rings(mask: Bool[np.ndarray, "height width"]) -> list[Float[np.ndarray, "vertex 2"]]:
    """Outlines of every component and hole, the longest first; see `outline`."""
    padded = np.pad(mask, 1).astype(np.float64)
    lines = contour_generator(z=padded, line_type="Separate").lines(0.5)
    rings = [_straighten(np.asarray(line, dtype=np.float64)[:-1] - 0.5) for line in lines]
    assert rings, "an empty mask has no outline"
    return sorted(rings, key=lambda ring: -len(ring))


def _straighten(ring: Float[np.ndarray, "vertex 2"]) -> Float[np.ndarray, "kept 2"]:
    """The ring without vertices on a straight line."""
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept: Float[np.ndarray, "kept 2"] = ring[turns]
    return kept


def _bridge(
    ring: Float[np.ndarray, "vertex 2"], other: Float[np.ndarray, "more 2"]
) -> Float[np.ndarray, "joined 2"]:
    """Walk a ring, over to the nearest vertex of the other, around it, back, and on."""
    distances = cdist(ring, other)
    here, there = np.unravel_index(int(distances.argmin()), distances.shape)
    around = np.concatenate([other[there:], other[: there + 1]])
    return np.concatenate([ring[: here + 1], around, ring[here:]])
