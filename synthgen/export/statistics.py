"""What an export counts while its samples go by: small, and added up over shards.

Near-duplicate images are found by 64-bit perceptual hashes: the signs of the lowest 8 × 8 cosine
frequencies of a 32 × 32 gray image, against their median. Two hashes that differ in at most 3 of
64 bits agree in one of four 16-bit bands, so only images that share a band are compared (Manku,
Jain, Das Sarma, WWW 2007, section 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8, UInt64
from PIL import Image
from scipy.fft import dctn

from synthgen.export.format import ExportSample
from synthgen.progress import Progress, report

MAX_DISTANCE = 3
"""Bits in which near-duplicates may differ; Manku et al. use 3 of 64."""

_BANDS = MAX_DISTANCE + 1
_CHUNK = 1024
_COUNTERS = ("splits", "left_out", "images", "instances", "pixels")


@dataclass(slots=True)
class Tally:
    """Counts of some samples."""

    splits: Counter[str] = field(default_factory=Counter)  # samples
    left_out: Counter[str] = field(default_factory=Counter)  # rejected samples by reason
    images: Counter[str] = field(default_factory=Counter)  # with an object of a class
    instances: Counter[str] = field(default_factory=Counter)  # objects of a class
    pixels: Counter[str] = field(default_factory=Counter)  # of a class; masks overlap
    all_pixels: int = 0  # of all images
    hashes: list[tuple[str, int]] = field(default_factory=list)  # perceptual, with their keys

    def watch(
        self,
        samples: Iterable[ExportSample],
        classes: Mapping[int, str],
        progress: Progress = report,
    ) -> Iterator[ExportSample]:
        """The samples, counted as they pass."""
        for sample in samples:
            yield sample
            self.hashes.append((sample.key, perceptual_hash(sample.pixels)))
            self.splits[sample.split] += 1
            self.all_pixels += sample.size[0] * sample.size[1]
            self.images.update({classes[item.class_id] for item in sample.instances})
            for item in sample.instances:
                self.instances[classes[item.class_id]] += 1
                self.pixels[classes[item.class_id]] += int(item.mask.sum())
            progress("samples", count=1)

    def counts(self) -> dict[str, Any]:
        """The counts as a shard's marker holds them."""
        counted = {name: dict(sorted(getattr(self, name).items())) for name in _COUNTERS}
        return {**counted, "all_pixels": self.all_pixels}

    def add(self, counts: Mapping[str, Any]) -> None:
        """Add the counts of a shard's marker.

        >>> tally = Tally(splits=Counter(val=1))
        >>> tally.add({"splits": {"val": 2}})
        >>> tally.splits["val"]
        3
        """
        for name in _COUNTERS:
            getattr(self, name).update(counts.get(name, {}))
        self.all_pixels += counts.get("all_pixels", 0)


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
