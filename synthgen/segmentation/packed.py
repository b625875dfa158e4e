"""Masks packed to one bit per pixel: IoU of all pairs of two sets by counting bits.

Intersections are whole numbers, so every IoU equals that of the boolean masks exactly. Measured
on one core for 43 x 100 masks at 512 x 512: 28 ms, packing included; a float32 product of the
unpacked masks in blocks takes 59 ms, boolean ``&`` and ``|`` per pair 1,240 ms
(``synthgen bench audit``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

WORDS = 4096
"""Words per block: 43 masks x 4,096 words are 1.4 MB, which stays in the cache."""


@dataclass(frozen=True, slots=True)
class PackedMasks:
    """Masks of one image, an eighth of their size: 254 of 2048 x 2048 are 133 MB."""

    # as `pack_masks` packs them
    bits: UInt64[np.ndarray, "mask word"]
    height: int
    width: int

    @classmethod
    def of(
        cls, masks: Iterable[Bool[np.ndarray, "height width"]], height: int, width: int
    ) -> PackedMasks:
        """Pack masks one after the other, so that no two need be in memory."""
        rows = [pack_masks(mask[None]) for mask in masks]
        empty = np.zeros((0, -(-height * width // 64)), dtype=np.uint64)
        return cls(np.concatenate(rows) if rows else empty, height, width)

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, index: int) -> Bool[np.ndarray, "height width"]:
        """One mask, unpacked.

        >>> PackedMasks.of([np.eye(2, dtype=bool)], 2, 2)[0].tolist()
        [[True, False], [False, True]]
        """
        return self.union([index])

    def union(self, rows: Iterable[int]) -> Bool[np.ndarray, "height width"]:
        """The pixels that any of these masks holds."""
        bits = np.bitwise_or.reduce(self.bits[[*rows]], axis=0, initial=np.uint64(0))
        flat = np.unpackbits(bits.view(np.uint8), count=self.height * self.width)
        return flat.view(bool).reshape(self.height, self.width)


def pack_masks(masks: Bool[np.ndarray, "mask height width"]) -> UInt64[np.ndarray, "mask word"]:
    """The pixels of each mask as bits, row-major, padded with zeros to whole words of 64.

    >>> np.bitwise_count(pack_masks(np.ones((2, 5, 13), dtype=bool))).tolist()
    [[64, 1], [64, 1]]
    """
    num_pixels = masks.shape[1] * masks.shape[2]
    packed = np.zeros((len(masks), -(-num_pixels // 64) * 8), dtype=np.uint8)
    packed[:, : -(-num_pixels // 8)] = np.packbits(masks.reshape(len(masks), num_pixels), axis=1)
    return packed.view(np.uint64)


def packed_areas(packed: UInt64[np.ndarray, "mask word"]) -> Int[np.ndarray, " mask"]:
    """Pixels of each packed mask."""
    areas: Int[np.ndarray, " mask"] = np.bitwise_count(packed).sum(1, dtype=np.int64)
    return areas


def shared_pixels(
    packed: UInt64[np.ndarray, "mask word"], others: UInt64[np.ndarray, "other word"]
) -> Int[np.ndarray, "mask other"]:
    """Pixels that each pair of packed masks has in common; exact for any size.

    Of masks among themselves (``others`` is ``packed``) each pair is counted once.
    """
    shared = np.zeros((len(packed), len(others)), dtype=np.int64)
    for start in range(0, packed.shape[1], WORDS):
        block = np.ascontiguousarray(packed[:, start : start + WORDS])
        for column, other in enumerate(others[:, start : start + WORDS]):
            rows = slice(column if others is packed else 0, None)
            shared[rows, column] += np.bitwise_count(block[rows] & other).sum(1, dtype=np.uint32)
    return np.maximum(shared, shared.T) if others is packed else shared


def packed_iou(
    packed: UInt64[np.ndarray, "mask word"], others: UInt64[np.ndarray, "other word"]
) -> Float[np.ndarray, "mask other"]:
    """BL eq. 3 of every pair of packed masks: |A and B| / |A or B|; 0 for two empty masks."""
    shared = shared_pixels(packed, others)
    union = packed_areas(packed)[:, None] + packed_areas(others) - shared
    iou: Float[np.ndarray, "mask other"] = shared / np.maximum(union, 1)
    return iou


def iou_matrix(
    masks: Bool[np.ndarray, "mask height width"], others: Bool[np.ndarray, "other height width"]
) -> Float[np.ndarray, "mask other"]:
    """BL eq. 3 of every pair of boolean masks of one image.

    >>> a = np.array([[[True, True, False]], [[False, True, False]]])
    >>> iou_matrix(a, a).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    packed = pack_masks(masks)
    return packed_iou(packed, packed if others is masks else pack_masks(others))
