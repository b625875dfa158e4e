"""Previews: what a sample looked like inside, kept for 1 in n samples.

``previews/train-000000.tar`` holds per sample ``KEY.kNN.png`` (label map per k, 8-bit, values
0..k-1), ``KEY.pca.png`` (first three principal components of all features as RGB) and
``KEY.upsampling.png`` (eq. 6, scaled to 0..255). They are for eyes: nothing reads them to train.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from synthgen.config import DatasetConfig, FeatureConfig
from synthgen.dataset.manifest import preview_name
from synthgen.dataset.records import decode_image, encode_image
from synthgen.dataset.shards import read_span, scan, spans
from synthgen.storage.publish import Storage, open_storage
from synthgen.types import Sample, Segmentation

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # readers of previews load no torch

_LABELS = re.compile(r"k([0-9]{2,3})\.png")


@dataclass(frozen=True, slots=True)
class Preview:
    """What a sample looked like inside."""

    labels: Mapping[int, UInt8[np.ndarray, "_height _width"]]  # label map by k, values 0..k-1
    pca: UInt8[np.ndarray, "_height _width 3"]  # first three principal components as RGB
    upsampling: UInt8[np.ndarray, "_height _width"]  # error of eq. 6, stretched to 0..255


def has_preview(key: str, config: DatasetConfig) -> bool:
    """Whether a sample that was drawn is one of those that have a preview.

    >>> every_other = DatasetConfig(shard_size=3, preview_every=2)
    >>> has_preview("0000010000", every_other), has_preview("0000010001", every_other)
    (False, True)
    """
    index = int(key[:6]) * config.shard_size + int(key[6:])
    return config.preview_every > 0 and index % config.preview_every == 0


def preview_members(
    key: str, sample: Sample, segmentation: Segmentation, config: FeatureConfig
) -> dict[str, bytes]:
    """Tar members of one sample's preview, by file name.

    Args:
        sample: Gives the features.
        segmentation: Gives the label map of every k.
        config: How features are reduced.
    """
    from synthgen.segmentation.features import feature_blocks, upsampling_error

    members = {
        f"{key}.k{k:02d}.png": encode_image(labels, "png")
        for k, labels in zip(segmentation.ks, segmentation.labels, strict=True)
    }
    blocks = feature_blocks(sample.features, config)
    size = (sample.image.shape[0], sample.image.shape[1])
    members[f"{key}.pca.png"] = encode_image(pca_colors(blocks, size), "png")
    error = upsampling_error(blocks, size).cpu().numpy()[..., None]
    members[f"{key}.upsampling.png"] = encode_image(_scaled(error)[..., 0], "png")
    return members


def pca_colors(
    blocks: Sequence[Float[Tensor, "_grid_height _grid_width _feature"]], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """The first three principal components of all features as red, green and blue (BL fig. 3)."""
    import torch

    from synthgen.segmentation.features import pca_heads
    from synthgen.segmentation.interpolation import upsample

    grid = max((block.shape[0], block.shape[1]) for block in blocks)
    stacked = torch.cat([upsample(block, grid) for block in blocks], dim=-1)
    components = torch.unflatten(pca_heads(stacked.flatten(0, 1)[None], 3)[0], 0, grid)
    return _scaled(upsample(components, size).cpu().numpy())


def read_previews(root: Path) -> Mapping[str, Mapping[int, UInt8[np.ndarray, "height width"]]]:
    """Label maps by sample key and k, from every preview tar of a dataset."""
    storage = open_storage(root)
    return {
        key: _label_maps(members)
        for name in storage.names("previews")
        for key, members in _members(storage, name)
    }


def preview_keys(storage: Storage, shard: str) -> list[str]:
    """Keys of a shard's samples that have a preview, from the headers of its tar alone."""
    name = preview_name(shard)
    if storage.size(name) is None:
        return []
    with storage.open(name) as stream:
        return [span.key for span in spans(scan(stream))]


def shard_previews(
    storage: Storage, shard: str, keys: Collection[str]
) -> Iterator[tuple[str, Preview]]:
    """The previews of those of the keys that have one; the others' pixels are not read.

    Raises:
        ValueError: If the tar is broken, or a preview is no set of our images.
    """
    name = preview_name(shard)
    for key, members in _members(storage, name, keys):
        try:
            labels, pca = _label_maps(members), decode_image(members["pca.png"])
            found = Preview(labels, pca, decode_image(members["upsampling.png"], "L"))
        except (KeyError, ValueError) as error:
            raise ValueError(f"Preview {key} in {name} must be readable. Got {error}.") from None
        yield key, found


def _label_maps(members: Mapping[str, bytes]) -> dict[int, UInt8[np.ndarray, "_height _width"]]:
    matches = ((_LABELS.fullmatch(suffix), data) for suffix, data in members.items())
    return {int(match[1]): decode_image(data, "L") for match, data in matches if match}


def _members(
    storage: Storage, name: str, keys: Collection[str] | None = None
) -> Iterator[tuple[str, dict[str, bytes]]]:
    if storage.size(name) is not None:
        with storage.open(name) as stream:
            for span in spans(scan(stream)):
                if keys is None or span.key in keys:
                    yield span.key, read_span(stream, span)


def _scaled(
    values: Float[np.ndarray, "height width channel"],
) -> UInt8[np.ndarray, "height width channel"]:
    """Each channel stretched to 0..255."""
    low, high = values.min((0, 1)), values.max((0, 1))
    scaled = (values - low) * (255.0 / np.maximum(high - low, 1e-12))
    return np.asarray(scaled.round(), dtype=np.uint8)
