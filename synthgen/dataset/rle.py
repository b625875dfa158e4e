"""COCO's compressed run-length encoding of masks, checked before it is believed.

pycocotools encodes and decodes; its decoder leaves memory uninitialized where the runs of a
forged string do not fill the mask, so the runs are read and summed here first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco

from synthgen.storage.untrusted import quote

MAX_PIXELS = 2**32
"""Pixels of all masks of a sample: 254 of 4096 x 4096, or 64 of the largest image."""

MAX_DECODED = 2**30
"""Pixels of masks that are decoded at once, a byte each: 254 of 2048 x 2048, or 43 of a photograph
of 24 megapixels."""


def encode_masks(masks: Bool[np.ndarray, "mask height width"]) -> list[dict[str, Any]]:
    """One ``{size: [height, width], counts}`` per mask.

    >>> encode_masks(np.ones((1, 4, 4), dtype=bool))
    [{'size': [4, 4], 'counts': '0`0'}]
    """
    encoded = (coco.encode(np.asfortranarray(mask.view(np.uint8))) for mask in masks)
    return [
        {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
        for rle in encoded
    ]


def decode_masks(
    rles: Sequence[Mapping[str, Any]], height: int, width: int
) -> Bool[np.ndarray, "mask height width"]:
    """The masks of run-length encodings that must all have the given size.

    Raises:
        ValueError: If an encoding has another size or its runs do not fill it, or all of them
            have more than ``MAX_DECODED`` pixels.
    """
    each = iterate_masks(rles, height, width, MAX_DECODED)
    masks = np.zeros((len(rles), height, width), dtype=bool)
    for index, mask in enumerate(each):
        masks[index] = mask
    return masks


def iterate_masks(
    rles: Sequence[Mapping[str, Any]], height: int, width: int, most: int = MAX_PIXELS
) -> Iterator[Bool[np.ndarray, "height width"]]:
    """The masks of `decode_masks`, one at a time in memory; all are checked before the first."""
    checked = _checked(rles, height, width, most)
    return (coco.decode(rle).view(bool) for rle in checked)


def mask_ious(
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    height: int,
    width: int,
) -> Float[np.ndarray, "our their"]:
    """IoU of each of our masks with each of theirs, from the runs alone.

    Raises:
        ValueError: As for `decode_masks`.

    >>> mask = {"size": [2, 2], "counts": "121"}
    >>> mask_ious([mask], [mask], 2, 2).tolist()
    [[1.0]]
    """
    pairs = [_checked(rles, height, width) for rles in (ours, theirs)]
    if not all(pairs):
        return np.zeros((len(ours), len(theirs)))
    found: Float[np.ndarray, "our their"] = coco.iou(*pairs, [0] * len(theirs))
    return found


def _checked(
    rles: Sequence[Mapping[str, Any]], height: int, width: int, most: int = MAX_PIXELS
) -> list[dict[str, Any]]:
    if len(rles) * height * width > most:
        raise ValueError(
            f"Masks must have at most {most} pixels in all. Got {len(rles)} of "
            f"{height} x {width}; open_dataset(masks=False) leaves them out."
        )
    for rle in rles:
        if list(rle["size"]) != [height, width]:
            raise ValueError(f"rle.size must be [{height}, {width}]. Got {quote(rle['size'])}.")
        run_lengths(rle)
    return [{"size": [height, width], "counts": rle["counts"]} for rle in rles]


def run_lengths(rle: Mapping[str, Any]) -> Int[np.ndarray, " run"]:
    """Lengths of the runs of 0, 1, 0, 1, … in column-major order.

    Each run is a little-endian sequence of characters, 5 bits and a "more" bit each (offset 48,
    sign in the last), from the third on as the difference to the run before the last.

    Raises:
        ValueError: If the string is no such encoding or its runs do not fill the mask.

    >>> run_lengths({"size": [2, 2], "counts": "121"}).tolist()
    [1, 2, 1]
    """
    height, width = rle["size"]
    counts = rle["counts"]
    codes = np.frombuffer(str(counts).encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError(f"rle.counts must be a COCO run-length string. Got {quote(counts, 40)}.")
    last = (codes & 32) == 0  # of the characters of a run
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    lengths = np.diff(np.append(starts, codes.size))
    if lengths.max() > 7:  # 35 bits: more than any image has pixels
        raise ValueError("rle.counts must hold runs shorter than 2^34. Got a longer one.")
    shift = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shift, starts)
    runs -= np.where((codes[last] & 16) != 0, np.left_shift(1, 5 * lengths), 0)  # its sign
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    if runs.min() < 0 or int(runs.sum()) != height * width:
        raise ValueError(
            f"rle.counts must fill {height} x {width} pixels. Got {int(runs.sum())} pixels."
        )
    return runs
