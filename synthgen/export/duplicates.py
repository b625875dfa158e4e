"""Near-duplicate images: 64-bit perceptual hashes, compared by Hamming distance.

The hash keeps the signs of the lowest 8 × 8 cosine frequencies of a 32 × 32 gray image, against
their median. Two hashes that differ in at most 3 of 64 bits agree in one of four 16-bit bands,
so only images that share a band are compared (Manku, Jain, Das Sarma, WWW 2007, section 3).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, UInt8, UInt64
from PIL import Image
from scipy.fft import dctn

MAX_DISTANCE = 3
"""Bits in which near-duplicates may differ; Manku et al. use 3 of 64."""

_BANDS = MAX_DISTANCE + 1
_CHUNK = 1024


def perceptual_hash(pixels: UInt8[np.ndarray, "height width 3"]) -> int:
    """The 64-bit hash of an image.

    >>> ramp = np.repeat(np.arange(64, dtype=np.uint8), 64 * 3).reshape(64, 64, 3)
    >>> perceptual_hash(ramp) == perceptual_hash(ramp + 9)
    True
    """
    gray = Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(gray, dtype=np.float64))[:8, :8].ravel()
    bits = low > np.median(low[1:])  # without the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def count_near_duplicates(hashes: UInt64[np.ndarray, " image"]) -> int:
    """Images with an earlier one at most `MAX_DISTANCE` bits away.

    >>> count_near_duplicates(np.array([0, 0, 7, 15, 2**63 - 1], dtype=np.uint64))
    3
    """
    unique, first = np.unique(hashes, return_index=True)
    ordered = unique[np.argsort(first)]
    near = np.zeros(len(ordered), dtype=bool)
    for band in range(_BANDS):
        keys = (ordered >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=np.uint64(1 << 20)))
        for group in np.split(order, starts[1:]):
            near[group] |= _has_earlier(ordered[group])
    return int(near.sum()) + len(hashes) - len(ordered)


def _has_earlier(hashes: UInt64[np.ndarray, " image"]) -> Bool[np.ndarray, " image"]:
    """Which of some hashes have an earlier one nearby; quadratic, in bounded memory."""
    found = np.zeros(len(hashes), dtype=bool)
    for start in range(0, len(hashes) if len(hashes) > 1 else 0, _CHUNK):
        rows = hashes[start : start + _CHUNK]
        near = np.bitwise_count(rows[:, None] ^ hashes[None]) <= MAX_DISTANCE
        found[start : start + _CHUNK] = np.tril(near, start - 1).any(1)
    return found
