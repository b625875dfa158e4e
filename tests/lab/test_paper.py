"""Equations by number. BL: Beyond Labels (Stillger et al., VISAPP 2025)."""

from __future__ import annotations

import numpy as np
import torch

from synthgen.config import FeatureConfig, SegmentationConfig
from synthgen.segmentation.features import feature_blocks, upsampling_error
from synthgen.segmentation.masks import build_masks
from synthgen.types import HeadFeatures


def test_bl_eq_5_multiplies_the_features_of_a_grid_by_its_share_of_the_largest() -> None:
    grids = (16, 32, 64)
    values = {f"up.{r}": torch.randn(2, r * r, 4) for r in grids}
    features = HeadFeatures(values, {f"up.{r}": (r, r) for r in grids})
    plain = feature_blocks(features, FeatureConfig(components=2))
    weighted = feature_blocks(features, FeatureConfig(components=2, reweight=True))
    for r, before, after in zip(grids, plain, weighted, strict=True):
        torch.testing.assert_close(after, before * r / 64)


def test_bl_eq_6_upsampling_error_is_the_mean_over_components_of_bilinear_less_nearest() -> None:
    blocks = [torch.randn(8, 8, 3), torch.randn(16, 16, 5)]
    total = torch.zeros(64, 64)
    for block in blocks:
        image = block.permute(2, 0, 1)[None]
        smooth = torch.nn.functional.interpolate(image, size=64, mode="bilinear")
        steps = torch.nn.functional.interpolate(image, size=64, mode="nearest")
        total += ((smooth - steps) ** 2).sqrt()[0].sum(0)
    torch.testing.assert_close(upsampling_error(blocks, (64, 64)), total / 8)


def test_bl_section_4_1_clusters_at_five_counts_into_43_masks() -> None:
    ks = SegmentationConfig().clusters.ks
    assert ks == (2, 5, 6, 10, 20)
    pixels = np.arange(60 * 60).reshape(60, 60)
    labels = np.stack([(pixels * 7 // 11) % k for k in ks]).astype(np.uint8)
    mask_set = build_masks(labels, ks, min_area=0.0, merge_iou=1.0)
    assert sum(len(own) for own in mask_set.members) == 43
