"""Surface patterns and noise textures.

A pattern is a field of weights in [0, 1]: 0 paints the first color, 1 the second. Periods never
fall below `MIN_PERIOD` pixels, so that latents that are reduced by 4 still carry them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image

MIN_PERIOD = 12.0
"""Smallest period of a pattern, in pixels."""

TEXTURES = 48
"""Number of noise textures in the bank."""

Plane = Float32[np.ndarray, "height width"]


def _soft_step(distance_px: Plane) -> Plane:
    """0 below, 1 above, linear over the one pixel around the edge."""
    return np.clip(distance_px + 0.5, 0.0, 1.0)


def _wave(position_px: Plane, period: float) -> Plane:
    """Bands of half a period each, antialiased over one pixel."""
    phase = np.abs((position_px / period) % 1.0 - 0.5) - 0.25
    return _soft_step(phase * period)


def pattern_weights(
    kind: str, u: Plane, v: Plane, radius: float, vertical: bool
) -> Float32[np.ndarray, "height width"]:
    """Weight of the second color at each pixel.

    Args:
        kind: A key of `vocabulary.PATTERNS`.
        u: Distance to the object's center along its own x axis, in pixels.
        v: The same along its y axis.
        radius: Radius of the object, in pixels; periods grow with it.
        vertical: Whether halves and bands run along the y axis.

    Returns:
        Weights in [0, 1].

    Raises:
        ValueError: If `kind` is unknown.
    """
    along = u if vertical else v
    if kind == "solid":
        return np.zeros_like(u)
    if kind == "halves":
        return _soft_step(along)
    if kind == "striped":
        return _wave(along, max(MIN_PERIOD, 0.6 * radius))
    if kind == "dotted":
        period = max(MIN_PERIOD, 0.62 * radius)
        x, y = (np.abs((p / period) % 1.0 - 0.5) for p in (u, v))
        return _soft_step((0.38 - np.sqrt(x * x + y * y)) * period)
    if kind == "checkered":
        period = max(1.3 * MIN_PERIOD, 0.8 * radius)
        x, y = _wave(u, period), _wave(v, period)
        mixed: Plane = x * (1 - y) + y * (1 - x)
        return mixed
    raise ValueError(f"pattern must be a key of vocabulary.PATTERNS. Got {kind!r}.")


def _smooth_noise(rng: np.random.Generator, cells: int, size: int) -> Plane:
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


@cache
def texture_bank(size: int) -> Float[np.ndarray, "texture height width"]:
    """Noise of about unit deviation, mostly below 1/8 cycles per pixel, the same in every run."""
    rng = np.random.default_rng(20_261_121)
    planes = [
        0.7 * _smooth_noise(rng, 8, size)
        + 0.6 * _smooth_noise(rng, 22, size)
        + 0.3 * rng.normal(size=(size, size)).astype(np.float32)
        for _ in range(TEXTURES)
    ]
    return np.stack(planes).astype(np.float32)
