"""The paper on one page: head features to features, clusters, masks (BL section 4.1, figure 4).

A segmenter is any callable ``(sample, config) -> Segmentation``; `segment` finds it by name in
``registry.SEGMENTERS`` or as ``module:attribute``. Same input, same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from synthgen.config import ClusterConfig, SegmentationConfig
from synthgen.registry import SEGMENTERS, resolve
from synthgen.segmentation.features import feature_blocks, rgbxy_block
from synthgen.segmentation.interpolation import Interpolation
from synthgen.segmentation.kmeans import cluster
from synthgen.segmentation.masks import build_masks
from synthgen.segmentation.refine import refine_clusters
from synthgen.types import Sample, Segmentation


@runtime_checkable
class Segmenter(Protocol):
    """What a row of SEGMENTERS must be; `tests/helpers/contracts.py` says what it must satisfy."""

    def __call__(self, sample: Sample, config: SegmentationConfig) -> Segmentation:
        """Segment one image, at the resolution of the image."""
        ...


def segment(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """Segment one image by the method that the configuration names.

    Raises:
        ValueError: For an unknown method, or features that are not finite.
    """
    segmenter: Segmenter = resolve(config.method, SEGMENTERS, "segmentation.method")
    return segmenter(sample, config)


def segment_per_head(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """BL: PCA per head, concatenation, k-means at every k, masks merged into a hierarchy."""
    blocks = feature_blocks(sample.features, config.features)
    return _segment(blocks, sample.image, config, config.features.interpolation)


def segment_head_average(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """The same with the heads of each layer averaged before PCA, which BL argues against."""
    blocks = feature_blocks(sample.features, config.features, average_heads=True)
    return _segment(blocks, sample.image, config, config.features.interpolation)


def segment_rgbxy(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """The chance baseline: color and position in place of features, everything else the same."""
    return _segment([rgbxy_block(sample.image)], sample.image, config, "bilinear")


def label_size(
    image: UInt8[np.ndarray, "height width 3"], config: ClusterConfig
) -> tuple[int, int]:
    """Height and width that pixels are clustered at: the image's, or scaled to the longer side.

    >>> label_size(np.zeros((512, 768, 3), dtype=np.uint8), ClusterConfig(resolution=96))
    (64, 96)
    """
    height, width = image.shape[:2]
    if config.resolution == "image":
        return height, width
    scale = config.resolution / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _segment(
    blocks: Sequence[Float[Tensor, "_height _width _feature"]],
    image: UInt8[np.ndarray, "height width 3"],
    config: SegmentationConfig,
    interpolation: Interpolation,
) -> Segmentation:
    size = label_size(image, config.clusters)
    clustering = cluster(blocks, size, config.clusters, interpolation)
    labels = _resize_nearest(clustering.labels, (image.shape[0], image.shape[1]))
    if config.refiner == "affinity":
        labels = refine_clusters(labels, clustering.ks, image)
    masks = build_masks(labels, clustering.ks, config.masks)
    return Segmentation.of(
        masks, clustering.ks, labels, max(clustering.iterations), clustering.converged
    )


def _resize_nearest(
    labels: UInt8[np.ndarray, "k height width"], size: tuple[int, int]
) -> UInt8[np.ndarray, "k out_height out_width"]:
    rows, columns = (
        np.arange(out) * side // out for out, side in zip(size, labels.shape[1:], strict=True)
    )
    return np.ascontiguousarray(labels[:, rows[:, None], columns])
