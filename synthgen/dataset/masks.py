"""The samples of a finished dataset as an audit needs them: any of a shard's, at any time.

Everything read here is untrusted; a tar is audited only if it is the one that the manifest lists.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.config import SegmentationConfig, parse
from synthgen.dataset.listed import ListedShard
from synthgen.dataset.manifest import CONFIG
from synthgen.dataset.records import decode_sample, parse_sample
from synthgen.dataset.rle import iterate_masks
from synthgen.dataset.shards import read_span, scan, spans
from synthgen.segmentation.packed import PackedMasks
from synthgen.storage.publish import Storage, sha256_file
from synthgen.types import ByteStream

MAX_COMPARED = 2**20
"""Pixels at which an audit looks at an image and its masks; of larger ones it takes every n-th."""

Members = tuple[tuple[tuple[int, int], ...], ...]


def stride(height: int, width: int) -> int:
    """Every how many pixels a mask is compared, per axis.

    >>> stride(1024, 1024), stride(1024, 1025), stride(8192, 8192)
    (1, 2, 8)
    """
    return max(1, math.ceil(math.sqrt(height * width / MAX_COMPARED)))


def segmentation_settings(storage: Storage) -> SegmentationConfig:
    """How a dataset was segmented: the color baseline uses the same ks and merging.

    Raises:
        ValueError: If it does not say.
    """
    raw = storage.read(CONFIG)
    if raw is None:
        raise ValueError(f"A dataset must have a {CONFIG}. Got none in {storage.root}.")
    try:
        return parse(raw).segmentation
    except ValueError as error:
        raise ValueError(f"{CONFIG} must be a configuration of ours. Got: {error}") from None


class ShardSamples:
    """The samples of one shard, in order.

    Args:
        stream: Its open tar.
        shard: What the manifest says of it.
        kept: Samples whose masks stay in memory.

    Raises:
        ValueError: If the tar is not the one that the manifest lists.
    """

    def __init__(self, stream: ByteStream, shard: ListedShard, kept: int = 1) -> None:
        size = stream.seek(0, 2)
        stream.seek(0)
        if size != shard.num_bytes or sha256_file(stream) != shard.sha256:
            what = f"{size} bytes" if size != shard.num_bytes else "another sha256"
            raise ValueError(
                f"{shard.name} must be the tar of {shard.num_bytes} bytes that the manifest "
                f"lists. Got {what}; see 'synthgen verify'."
            )
        self._stream = stream
        self._spans = list(spans(scan(stream)))
        self.keys = tuple(span.key for span in self._spans)
        self.packed = lru_cache(maxsize=kept)(self._packed)

    def __len__(self) -> int:
        return len(self._spans)

    def members(self, index: int) -> dict[str, bytes]:
        """Content of a sample's members by suffix."""
        return read_span(self._stream, self._spans[index])

    def image(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        """A sample's image."""
        image: UInt8[np.ndarray, "height width 3"] = self._decoded(index)["image"]
        return image

    def labels(
        self, index: int
    ) -> tuple[UInt8[np.ndarray, "height width"], tuple[str, ...]] | None:
        """A sample's semantic map and the classes of its prompt; None without labels."""
        sample = self._decoded(index)
        if "semantic" not in sample:
            return None
        return sample["semantic"], tuple(sample["json"]["classes"])

    def _packed(self, index: int, size: tuple[int, int]) -> tuple[PackedMasks, Members] | None:
        """A sample's masks at every `stride`-th pixel and the (k, cluster) pairs of each.

        None where they are not all of ``size`` (height, width).

        Raises:
            ValueError: If its json is not one of ours.
        """
        try:
            info = parse_sample(self.members(index)["json"])
            segments, rles = info["segments"], [item["rle"] for item in info["segments"]]
            sizes = [(info["height"], info["width"]), *(tuple(rle["size"]) for rle in rles)]
            if any(found != size for found in sizes):
                return None
            members = (tuple((int(k), int(c)) for k, c in item["members"]) for item in segments)
            step = stride(*size)
            masks = (mask[::step, ::step] for mask in iterate_masks(rles, *size))
            return PackedMasks.of(masks, *(-(-side // step) for side in size)), tuple(members)
        except (KeyError, TypeError, ValueError) as error:
            key = self.keys[index]
            raise ValueError(f"Sample {key} must be readable. Got {error!r:.120}.") from None

    def _decoded(self, index: int) -> dict[str, Any]:
        return decode_sample(self.keys[index], self.members(index), masks=False)
