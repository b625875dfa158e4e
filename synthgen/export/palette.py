"""Palette PNGs: ids with colors for people, as PASCAL VOC stores them."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def voc_colors() -> UInt8[np.ndarray, "256 3"]:
    """PASCAL VOC's color of every id: its bits, dealt to red, green and blue in turn.

    >>> voc_colors()[[0, 1, 15, 255]].tolist()
    [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]
    """
    ids = np.arange(256)[:, None] >> np.array([0, 1, 2])
    channels = sum(((ids >> 3 * place) & 1) << (7 - place) for place in range(3))
    return np.asarray(channels, dtype=np.uint8)


def encode_palette(ids: UInt8[np.ndarray, "height width"]) -> bytes:
    """A PNG of mode P whose pixels are the ids and whose palette is VOC's."""
    image = Image.frombytes("P", (ids.shape[1], ids.shape[0]), np.ascontiguousarray(ids).tobytes())
    image.putpalette(voc_colors().tobytes())
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=6)
    return stream.getvalue()
