"""The color baseline: what k-means on color and position alone gives for the same image.

Best-of-many matching is optimistic: 43 masks of anything match something. The same number of
clusters on RGB+XY, merged by the same rule, shows how much of an agreement that explains.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from synthgen.config import SegmentationConfig
from synthgen.segmentation.features import rgbxy_block
from synthgen.segmentation.masks import build_masks
from synthgen.segmentation.segment import segment_blocks
from synthgen.types import MaskSet


def color_baseline_masks(
    image: UInt8[np.ndarray, "height width 3"], settings: SegmentationConfig, resolution: int
) -> MaskSet:
    """Masks of k-means on RGB+XY, with the ks, starts and merging of the dataset.

    Args:
        image: As it stands in the dataset.
        settings: How the dataset was segmented.
        resolution: Longer side in pixels that pixels are clustered at; larger images are
            averaged down to it and their labels resized back (nearest).
    """
    height, width = image.shape[:2]
    scale = min(1.0, resolution / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    clusters = {**dict(settings.clusters), "resolution": "image"}
    found = segment_blocks(
        [rgbxy_block(small)], small.shape[:2], small, refiner=settings.refiner, **clusters
    )
    rows = np.arange(height) * size[1] // height
    columns = np.arange(width) * size[0] // width
    labels = np.ascontiguousarray(found.labels[:, rows[:, None], columns])
    return build_masks(labels, found.ks, **dict(settings.masks))
