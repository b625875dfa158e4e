"""Large images in tiles: where they lie, what they join to, and masks of the image's own size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_samples import CAPTURE, CAR, samples
from made_photos import picture

import synthgen
from synthgen.config import CaptureConfig, GenerationConfig, SegmentationConfig
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.invert import invert, invert_any
from synthgen.diffusion.tiles import Tiling, cut, fit_image, join_tiles, plan_tiles
from synthgen.segmentation.segment import segment_sample
from synthgen.types import HeadFeatures


def features(grids: dict[str, tuple[int, int]], seed: int) -> HeadFeatures:
    generator = torch.Generator().manual_seed(seed)
    values = {n: torch.randn(2, h * w, 3, generator=generator) for n, (h, w) in grids.items()}
    return HeadFeatures(values, grids)


@pytest.mark.parametrize(
    "size", [(64, 65), (900, 700), (300, 3000), (4000, 150), (20, 400), (513, 513)]
)
@pytest.mark.parametrize("most", [2, 3, 5])
def test_tiles_hold_every_pixel_and_lie_on_the_grids(size: tuple[int, int], most: int) -> None:
    tiling = plan_tiles(size, (64, 64), 32, most)
    assert tiling is not None
    seen = np.zeros(tiling.size, dtype=int)
    for top, left in tiling.corners:
        assert top % 32 == left % 32 == 0
        part = seen[top : top + tiling.tile[0], left : left + tiling.tile[1]]
        assert part.shape == tiling.tile
        part += 1
    assert seen.min() >= 1
    assert len(tiling.corners) <= most**2
    assert max(tiling.tile) <= 64
    assert max(tiling.size) <= 64 + 32 * most


def test_an_image_that_the_model_holds_has_no_tiles() -> None:
    assert plan_tiles((64, 50), (64, 64), 32, 4) is None
    assert plan_tiles((640, 640), (64, 64), 32, 1) is None


def test_joined_features_are_weighted_means_of_the_tiles_that_hold_a_place() -> None:
    """Place by place; weights fall towards the sides of a tile."""
    tiling = Tiling((96, 64), (64, 64), ((0, 0), (32, 0)))
    grids = {"fine": (8, 8), "coarse": (2, 2)}
    tiles, whole = [features(grids, seed) for seed in (1, 2)], features({"fine": (8, 8)}, 3)
    joined = join_tiles(tiling, tiles, whole)
    assert torch.equal(joined.values["fine"], whole.values["fine"])
    for layer, (height, width) in grids.items():
        cell = 64 // height
        rows = 96 // cell
        assert joined.grids[f"tiles:{layer}"] == (rows, width)
        found = joined.values[f"tiles:{layer}"].reshape(2, rows, width, 3)
        for row in range(rows):
            for column in range(width):
                total, shares = torch.zeros(2, 3), 0.0
                for tile, (top, _) in zip(tiles, tiling.corners, strict=True):
                    own = row - top // cell
                    if 0 <= own < height:
                        weight = min(own + 1, height - own) * min(column + 1, width - column)
                        value = tile.values[layer].reshape(2, height, width, 3)
                        total += weight * value[:, own, column]
                        shares += weight
                torch.testing.assert_close(found[:, row, column], total / shares)


def test_tiles_are_what_the_model_sees_of_each_part(backbone: Backbone) -> None:
    """A part of one color, in which nothing could be segmented, fails no image."""
    image = picture(80, 150)
    image[:, 100:] = 7
    capture = CaptureConfig(layers="up")
    given = ([image], [CAR], [5], GenerationConfig(batch_size=2))
    (plain,) = samples(invert_any(backbone, *given, capture))
    (tiled,) = samples(invert_any(backbone, *given, capture, tiles=3))
    tiling = plan_tiles(image.shape, backbone.native_size, backbone.size_step, 3)
    assert tiling is not None
    parts = cut(image, tiling)
    assert all(part.shape[:2] == tiling.tile for part in parts)
    assert np.array_equal(parts[0], fit_image(image, tiling.size)[: tiling.tile[0], :64])
    for layer, value in plain.features.values.items():
        assert torch.equal(tiled.features.values[layer], value)
    seen = [
        samples(invert(backbone, part[None], [CAR], [5], GenerationConfig(), capture))[0].features
        for part in (p if p.min() < p.max() else picture(*tiling.tile) for p in parts)
    ]
    first = join_tiles(tiling, seen, plain.features).values
    top = tiled.features.values["tiles:up_blocks.3.attentions.0.transformer_blocks.0.attn1"]
    other = first["tiles:up_blocks.3.attentions.0.transformer_blocks.0.attn1"]
    torch.testing.assert_close(top[:, :4], other[:, :4], atol=1e-4, rtol=1e-4)
    masks = segment_sample(tiled, SegmentationConfig(clusters={"ks": (2, 3)}))
    assert masks.masks.shape[1:] == (80, 150)
    tight = capture.model_copy(update={"memory_budget_mb": plain.features.num_bytes * 1.5 / 1e6})
    with pytest.raises(ValueError, match="memory_budget_mb must be at least"):
        invert_any(backbone, *given, tight, tiles=3)


@pytest.mark.parametrize("size", [(70, 70), (33, 400), (300, 9), (64, 64)])
def test_a_recorded_image_has_masks_of_its_own_size(
    backbone: Backbone, size: tuple[int, int]
) -> None:
    pipe, image = backbone.pipeline, picture(*size)
    kept = synthgen.record_image(pipe, image, "a car", tiles=3, timestep=100, noises=2)
    masks = synthgen.segment(kept, ks=(2, 3))
    assert masks.masks.shape[1:] == size
    (found,) = kept.features()
    assert any(name.startswith("tiles:") for name in found.values) == (max(size) > 64)
    (given,) = samples(
        invert_any(
            backbone,
            [image],
            [replace(CAR, text="a car")],
            [0],
            GenerationConfig(batch_size=1),
            CAPTURE,
            tiles=3,
            timestep=100,
            noises=2,
        )
    )
    for layer, value in given.features.values.items():
        torch.testing.assert_close(value, found.values[layer])
