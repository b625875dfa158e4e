"""Features: PCA per head against scikit-learn, normalization, equations 5 and 6, blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import random_sample
from sklearn.decomposition import PCA

from synthgen.lab.bench.explicit import materialize
from synthgen.segmentation.features import (
    head_blocks,
    normalize,
    pca_heads,
    rgbxy_block,
    upsampling_error,
    xy_block,
)
from synthgen.segmentation.interpolation import Interpolant, upsample
from synthgen.types import HeadFeatures


def random_heads(heads: int = 3, pos: int = 64, dim: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(3, 0.5, dim)
    return torch.randn(heads, pos, dim, generator=generator) * scales + 5


@pytest.mark.parametrize("components", [1, 3, 16])
@pytest.mark.parametrize("pos", [9, 64, 300])
def test_pca_equals_sklearn_with_its_signs(components: int, pos: int) -> None:
    values = random_heads(pos=pos)
    kept = min(components, pos - 1)  # with few positions the last axes have no variance
    for ours, head in zip(pca_heads(values, components), values, strict=True):
        theirs = PCA(kept, svd_solver="full").fit_transform(head.double().numpy())
        np.testing.assert_allclose(ours[:, :kept].numpy(), theirs[:, :kept], atol=1e-5)


def test_pca_of_constant_heads_is_zero_not_nan() -> None:
    values = random_heads()
    values[1] = 7.0
    reduced = pca_heads(values, 4)
    assert reduced[1].abs().max() == 0
    assert reduced.isfinite().all()


def test_pca_is_clamped_to_the_head_dimension_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="at most the head dimension. Got 64 for heads of 16"):
        assert pca_heads(random_heads(), 64).shape == (3, 64, 16)


def test_pca_of_half_precision_is_float32() -> None:
    values = random_heads()
    reduced = pca_heads(values.bfloat16(), 4)
    assert reduced.dtype == torch.float32
    torch.testing.assert_close(reduced, pca_heads(values.bfloat16().float(), 4))


def test_normalizations() -> None:
    block = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)) * 9
    block[..., 2] = 1.5
    assert normalize(block, "none") is block
    scaled = normalize(block, "minmax")
    np.testing.assert_allclose(scaled.amin((0, 1)), [0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(scaled.amax((0, 1)), [1, 1, 0], atol=1e-6)
    spread = normalize(block, "std").std((0, 1), correction=0)
    np.testing.assert_allclose(spread, [1, 1, 0], atol=1e-5)
    block[..., 1] *= 1e-9
    assert 0 < normalize(block, "std")[..., 1].std() < 1e-3  # rounding is not made a feature


def test_blocks_gather_the_layers_of_one_grid_head_by_head() -> None:
    sample = random_sample(((8, 12), (4, 6)), heads=3)
    blocks = head_blocks(sample.features, 2, normalization="none")
    assert [tuple(block.shape) for block in blocks] == [(4, 6, 12), (8, 12, 12)]
    heads = pca_heads(sample.features.values["up.8.1"], 2)
    torch.testing.assert_close(blocks[1][2, 5, 8:10], heads[1, 2 * 12 + 5])


def test_averaged_heads_give_one_set_of_components_per_layer() -> None:
    sample = random_sample(heads=3)
    blocks = head_blocks(sample.features, 2, average_heads=True, normalization="none")
    assert [tuple(block.shape) for block in blocks] == [(4, 4, 4), (8, 8, 4)]
    mean = sample.features.values["up.8.0"].mean(0, keepdim=True)
    expected = pca_heads(mean, 2)[0].reshape(8, 8, 2)
    torch.testing.assert_close(blocks[1][..., :2], expected)


def test_position_is_appended_to_the_largest_grid() -> None:
    features = random_sample().features
    plain = head_blocks(features, 2)
    with_xy = head_blocks(features, 2, xy=0.5)
    assert torch.equal(plain[0], with_xy[0])
    torch.testing.assert_close(with_xy[1][..., -2:], 0.5 * xy_block(8, 8, plain[0]))


def test_rgbxy_is_within_one() -> None:
    image = random_sample(size=(4, 6)).image
    block = rgbxy_block(image)
    assert block.shape == (4, 6, 5)
    assert block.min() >= 0
    assert block.max() <= 1
    np.testing.assert_allclose(block[..., :3], image / 255, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    features = random_sample().features
    features.values["up.8.1"][0, 3, 1] = bad
    with pytest.raises(ValueError, match=r"finite\. Got NaN or infinity in up\.8\.1"):
        head_blocks(features)


def test_no_features_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        head_blocks(HeadFeatures({}, {}))


@pytest.mark.parametrize("kind", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(16, 16), (10, 33), (4, 6), (3, 2)])
def test_upsampling_equals_torch(kind: str, size: tuple[int, int]) -> None:
    block = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    options = {"align_corners": False} if kind == "bilinear" else {}
    expected = torch.nn.functional.interpolate(
        block.permute(2, 0, 1)[None], size=size, mode=kind, **options
    )
    torch.testing.assert_close(upsample(block, size, kind), expected[0].permute(1, 2, 0))


@pytest.mark.parametrize("size", [(16, 24), (7, 9), (8, 12)])
def test_interpolant_equals_the_features_in_full(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = [
        torch.randn(4, 6, 3, generator=generator).double(),
        torch.randn(8, 12, 2, generator=generator).double(),
    ]
    full = materialize(blocks, size)
    pixels = Interpolant.at([block[None] for block in blocks], size)
    vectors = torch.randn(1, 4, 5, generator=generator).double()
    torch.testing.assert_close(pixels.project(vectors)[0], full @ vectors[0].T)
    weights = torch.rand(1, *size, 4, generator=generator).double()
    expected = torch.einsum("hwc,hwf->cf", weights[0], full)
    torch.testing.assert_close(pixels.gather(weights)[0], expected)
    row, column = torch.tensor([0, 3, 6]), torch.tensor([8, 0, 5])
    torch.testing.assert_close(pixels.pick(row, column)[0], full[row, column])
    total, energy = pixels.totals(), pixels.energy()
    torch.testing.assert_close(total[0], full.sum((0, 1)))
    torch.testing.assert_close(energy[0], full.square().sum())


def test_upsampling_error_is_large_at_contours_only() -> None:
    block = torch.zeros(8, 8, 2)
    block[:, 4:] = 1.0
    error = upsampling_error([block, torch.zeros(4, 4, 5)], (64, 64))
    assert error.shape == (64, 64)
    assert error[:, 28:36].min() > 0
    assert error[:, :27].abs().max() == 0
