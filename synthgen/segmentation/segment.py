"""The paper on one page: head features to features, clusters, masks (BL section 4.1, figure 4).

`segment` takes what was recorded and says all there is to choose in its signature. Datasets go
through `segment_sample`, which finds a segmenter by the name in its configuration: any callable
``(sample, config) -> Segmentation``, a row of ``registry.SEGMENTERS`` or ``module:attribute``.
Same input, same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from synthgen.config import SegmentationConfig
from synthgen.registry import SEGMENTERS, resolve
from synthgen.segmentation.features import head_blocks, rgbxy_block
from synthgen.segmentation.interpolation import Interpolation
from synthgen.segmentation.kmeans import KS, cluster
from synthgen.segmentation.knots import knot_size
from synthgen.segmentation.masks import build_masks
from synthgen.segmentation.refine import refine_clusters
from synthgen.types import HeadFeatures, Recorded, Sample, Segmentation


@runtime_checkable
class Segmenter(Protocol):
    """What a row of SEGMENTERS must be; `tests/helpers/contracts.py` says what it must satisfy."""

    def __call__(self, sample: Sample, config: SegmentationConfig) -> Segmentation:
        """Segment one image, at the resolution of the image."""
        ...


def segment(
    recorded: HeadFeatures | Recorded,
    size: tuple[int, int] | None = None,
    *,
    ks: Sequence[int] = KS,
    components: int = 8,
    image: UInt8[np.ndarray, "height width 3"] | None = None,
    average_heads: bool = False,
    reweight: bool = False,
    normalization: Literal["none", "minmax", "std"] = "std",
    xy: float = 0.0,
    interpolation: Interpolation = "bilinear",
    resolution: int | Literal["image"] = "image",
    max_iterations: int = 300,
    tolerance: float = 2e-5,
    refiner: str = "affinity-guided",
    merge_iou: float = 0.9,
    min_area: float = 0.0005,
    split_components: bool = False,
    fill_holes: bool = False,
    containment: float = 0.95,
) -> Any:
    """Masks of an image from what its attention heads wrote: PCA, k-means, merged clusters.

    Args:
        recorded: A recording (`synthgen.record`), or the features of one image.
        size: Height and width of the masks; None: those of the recorded image.
        ks: Numbers of clusters, increasing.
        components: Principal components kept of each head (BL table 6: 8 are good).
        image: The image, whose edges the masks follow; None: the recorded one.
        average_heads: Average the heads of each layer before PCA, which BL argues against.
        reweight: BL eq. 5; off is better (BL table 2).
        normalization: Of each component: std (every head speaks as loud), minmax; none: as in BL.
        xy: Weight of the pixel's position among the features.
        interpolation: How grids become pixels, bilinear or nearest.
        resolution: Longer side in pixels that is clustered at; image: that of the masks.
        max_iterations: Of k-means at each k.
        tolerance: Gain of an update, as a share of the features' variance, that ends k-means.
        refiner: What moves the clusters' borders to the image's edges: affinity, guided,
            affinity-guided, superpixel; none: as in BL.
        merge_iou: Masks of at least this IoU become one.
        min_area: Share of the image below which a mask is dropped.
        split_components: Each connected piece of a cluster is a mask of its own.
        fill_holes: Pixels that a mask encloses become part of it.
        containment: Share of a mask that lies in its parent.

    Returns:
        A `Segmentation`, which is a `MaskSet`; for a recording of several images a tuple of them.

    Raises:
        ValueError: For features that are not finite, or without a size or image that is needed.

    >>> import synthgen
    >>> pipe = synthgen.load_model()
    >>> with synthgen.record(pipe) as recording:
    ...     image = pipe("a red car", num_inference_steps=4).images[0]
    >>> masks = synthgen.segment(recording)
    >>> masks.masks.shape[1:], masks.masks.dtype
    ((128, 128), dtype('bool'))
    """
    alone = isinstance(recorded, HeadFeatures)
    every = (recorded,) if isinstance(recorded, HeadFeatures) else recorded.features()
    seen = () if isinstance(recorded, HeadFeatures) else recorded.images
    if size is None and image is not None:
        size = image.shape[0], image.shape[1]
    if size is None and not isinstance(recorded, HeadFeatures):
        size = recorded.size
    if size is None:
        raise ValueError("size must be (height, width) of the masks. Got None for features alone.")
    found = []
    for index, features in enumerate(every):
        blocks = head_blocks(
            features,
            components,
            reweight=reweight,
            normalization=normalization,
            xy=xy,
            average_heads=average_heads,
        )
        picture = seen[index] if image is None and seen else image
        found.append(
            segment_blocks(
                blocks,
                size,
                picture,
                ks=ks,
                interpolation=interpolation,
                resolution=resolution,
                max_iterations=max_iterations,
                tolerance=tolerance,
                refiner=refiner,
                merge_iou=merge_iou,
                min_area=min_area,
                split_components=split_components,
                fill_holes=fill_holes,
                containment=containment,
            )
        )
    return found[0] if alone or len(found) == 1 else tuple(found)


def segment_blocks(
    blocks: Sequence[Float[Tensor, "_height _width _feature"]],
    size: tuple[int, int],
    image: UInt8[np.ndarray, "height width 3"] | None = None,
    *,
    ks: Sequence[int] = KS,
    interpolation: Interpolation = "bilinear",
    resolution: int | Literal["image"] = "image",
    max_iterations: int = 300,
    tolerance: float = 2e-5,
    refiner: str = "none",
    **masks: Any,
) -> Segmentation:
    """Clusters and masks of any features on grids, smallest grid first; see `segment`.

    Where the grids do not divide a size, as of photographs, pixels of the least larger size that
    they do divide are clustered, and each pixel of the image takes its nearest one's cluster.
    """
    at = label_size(size, resolution)
    if interpolation == "bilinear" and resolution == "image":
        rows, columns = (
            knot_size([block.shape[axis] for block in blocks], at[axis]) for axis in (0, 1)
        )
        at = rows, columns
    clustering = cluster(
        blocks,
        at,
        ks,
        max_iterations=max_iterations,
        tolerance=tolerance,
        interpolation=interpolation,
    )
    labels = _resize_nearest(clustering.labels, size)
    labels = refine_clusters(labels, clustering.ks, image, refiner)
    merged = build_masks(labels, clustering.ks, **masks)
    steps, still = max(clustering.iterations), clustering.converged
    return Segmentation.of(merged, clustering.ks, labels, steps, still)


def segment_sample(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """Segment one image of a dataset by the method that the configuration names.

    Raises:
        ValueError: For an unknown method, or features that are not finite.
    """
    segmenter: Segmenter = resolve(config.method, SEGMENTERS, "segmentation.method")
    return segmenter(sample, config)


def segment_per_head(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """BL: PCA per head, concatenation, k-means at every k, masks merged into a hierarchy."""
    return _segment_heads(sample, config)


def segment_head_average(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """The same with the heads of each layer averaged before PCA, which BL argues against."""
    return _segment_heads(sample, config, average_heads=True)


def segment_rgbxy(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """The color baseline: color and position in place of features, everything else the same."""
    return segment_colors(sample.image, config)


def segment_colors(
    image: UInt8[np.ndarray, "height width 3"], config: SegmentationConfig
) -> Segmentation:
    """What k-means on color and position alone finds in an image."""
    size = (image.shape[0], image.shape[1])
    return segment_blocks([rgbxy_block(image)], size, image, **_clusters_and_masks(config))


def label_size(size: tuple[int, int], resolution: int | Literal["image"]) -> tuple[int, int]:
    """Height and width that pixels are clustered at: the image's, or scaled to the longer side.

    >>> label_size((512, 768), 96)
    (64, 96)
    """
    if resolution == "image":
        return size
    scale = resolution / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _segment_heads(
    sample: Sample, config: SegmentationConfig, average_heads: bool = False
) -> Segmentation:
    own = {**dict(config.features), **_clusters_and_masks(config), "average_heads": average_heads}
    found: Segmentation = segment(sample.features, image=sample.image, **own)
    return found


def _clusters_and_masks(config: SegmentationConfig) -> dict[str, Any]:
    return {**dict(config.clusters), **dict(config.masks), "refiner": config.refiner}


def _resize_nearest(
    labels: UInt8[np.ndarray, "k height width"], size: tuple[int, int]
) -> UInt8[np.ndarray, "k out_height out_width"]:
    rows, columns = (
        np.arange(out) * side // out for out, side in zip(size, labels.shape[1:], strict=True)
    )
    return np.ascontiguousarray(labels[:, rows[:, None], columns])
