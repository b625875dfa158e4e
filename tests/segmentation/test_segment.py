"""The pipeline from head features to masks: planted regions, contracts, plug-ins."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from contracts import check_segmenter
from planted import AS_PLANTED, planted_sample, quadrants, random_sample

from synthgen.config import ClusterConfig, SegmentationConfig
from synthgen.registry import SEGMENTERS, resolve
from synthgen.segmentation.features import head_blocks
from synthgen.segmentation.kmeans import cluster
from synthgen.segmentation.masks import build_masks
from synthgen.segmentation.metrics import adjusted_rand, class_iou
from synthgen.segmentation.segment import segment_blocks, segment_sample
from synthgen.types import HeadFeatures, Sample, Segmentation


def by_brightness(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """A third party's segmenter: two clusters by the mean of the channels."""
    labels = (sample.image.mean(-1) > 127).astype(np.uint8)[None]
    return Segmentation.of(build_masks(labels, (2,), **dict(config.masks)), (2,), labels)


def planted_scores(method: str, seed: int) -> list[float]:
    sample = planted_sample(seed=seed)
    segmentation = segment_sample(sample, SegmentationConfig(method=method, features=AS_PLANTED))
    regions = quadrants(sample.image.shape[0]) + np.uint8(1)
    return [*class_iou(regions, segmentation.mask_set.masks).values()]


def test_separate_heads_recover_regions_that_averaged_heads_cannot() -> None:
    """BL's claim in a form that can be checked, of components as they are (see `AS_PLANTED`)."""
    assert min(min(planted_scores("per-head", seed)) for seed in range(6)) > 0.9
    assert np.mean([planted_scores("head-average", seed) for seed in range(6)]) < 0.65


def test_all_components_give_the_labels_of_raw_features() -> None:
    features = random_sample(((8, 8), (16, 16)), heads=3, dim=6).features
    features = HeadFeatures({n: v.double() for n, v in features.values.items()}, features.grids)
    raw = [
        torch.cat([v.movedim(0, 1).flatten(1) for n, v in features.values.items() if g in n], -1)
        for g in (".8.", ".16.")
    ]
    raw = [block.reshape(n, n, -1) for block, n in zip(raw, (8, 16), strict=True)]
    blocks = head_blocks(features, 6, normalization="none")
    ours, plain = (cluster(each, (64, 64), (2, 5), max_iterations=10) for each in (blocks, raw))
    assert np.array_equal(ours.labels, plain.labels)
    assert ours.inertia == pytest.approx(plain.inertia)


@pytest.mark.parametrize("name", [*SEGMENTERS, "test_segment:by_brightness"])
def test_segmenters_keep_their_contract(name: str) -> None:
    check_segmenter(resolve(name, SEGMENTERS))


def test_plug_ins_are_found_by_name_and_near_misses_named() -> None:
    sample = random_sample()
    config = SegmentationConfig(method="test_segment:by_brightness")
    assert segment_sample(sample, config).ks == (2,)
    with pytest.raises(ValueError, match="Did you mean 'per-head'"):
        segment_sample(sample, SegmentationConfig(method="perhead"))


@pytest.mark.parametrize("resolution", [12, 24])
def test_labels_of_a_lower_resolution_are_brought_to_the_image(resolution: int) -> None:
    sample = random_sample(((4, 6), (8, 12)), (32, 48))
    config = SegmentationConfig(clusters=ClusterConfig(resolution=resolution), refiner="none")
    labels = segment_sample(sample, config).labels
    assert labels.shape == (5, 32, 48)
    factor = 48 // resolution
    assert np.array_equal(
        labels, labels[:, ::factor, ::factor].repeat(factor, 1).repeat(factor, 2)
    )


def test_a_finer_resolution_keeps_the_segmentation() -> None:
    sample = planted_sample()
    config = SegmentationConfig(features=AS_PLANTED, clusters=ClusterConfig(ks=(4,)))
    at_image = segment_sample(sample, config).labels[0]
    doubled = dataclasses.replace(sample, image=sample.image.repeat(2, 0).repeat(2, 1))
    finer = segment_sample(doubled, config).labels[0]
    assert adjusted_rand(finer[::2, ::2], at_image) > 0.9


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_both_interpolations_find_the_planted_regions(interpolation: str) -> None:
    config = SegmentationConfig(
        features=AS_PLANTED.model_copy(update={"interpolation": interpolation}),
        clusters=ClusterConfig(ks=(4,)),
    )
    labels = segment_sample(planted_sample(), config).labels[0]
    assert adjusted_rand(quadrants(64), labels) > 0.85


def test_sizes_that_grids_do_not_divide_are_clustered_at_the_next_that_they_do() -> None:
    rng = torch.Generator().manual_seed(0)
    blocks = [torch.randn(side, side + 2, 3, generator=rng).cumsum(0) for side in (4, 8)]
    found = segment_blocks(blocks, (61, 90), ks=(2, 5), min_area=0.0)
    whole = cluster(blocks, (64, 120), (2, 5)).labels
    rows, columns = np.arange(61) * 64 // 61, np.arange(90) * 120 // 90
    assert np.array_equal(found.labels, whole[:, rows[:, None], columns])
    exact = cluster(blocks, (61, 90), (2, 5)).labels
    assert adjusted_rand(found.labels[0], exact[0]) > 0.9
