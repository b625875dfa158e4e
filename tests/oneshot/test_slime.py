"""SLiMe's equations against loops that are slow and obvious, and what they say of masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from synthgen.oneshot.augment import PRESETS, augment, change_background, recolor
from synthgen.oneshot.learn import resize_mask
from synthgen.oneshot.slime import (
    Projected,
    class_weights,
    cross_maps,
    mask_on_grid,
    slime_losses,
    was_maps,
)

HEADS, DIM, TOKENS, CLASSES = 2, 3, 7, 3


def projected(grid: tuple[int, int], keys: int, seed: int) -> Projected:
    rng = torch.Generator().manual_seed(seed)
    query = torch.randn(1, grid[0] * grid[1], HEADS * DIM, generator=rng)
    key = torch.randn(1, keys, HEADS * DIM, generator=rng)
    return Projected(query, key, HEADS, DIM**-0.5, grid)


def probabilities(layer: Projected) -> np.ndarray:
    """Softmax of every query over all keys, head by head, and then their mean."""
    query, key = layer.query[0].numpy(), layer.key[0].numpy()
    total = np.zeros((len(query), len(key)))
    for head in range(HEADS):
        own = slice(head * DIM, (head + 1) * DIM)
        for place in range(len(query)):
            scores = [math.exp(query[place, own] @ k[own] * layer.scale) for k in key]
            total[place] += np.array(scores) / sum(scores) / HEADS
    return total


def enlarged(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    tensor = torch.from_numpy(maps)[None]
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0].numpy()


def test_cross_maps_are_the_mean_of_resized_layers() -> None:
    layers = [projected((2, 3), TOKENS, 0), projected((4, 6), TOKENS, 1)]
    expected = np.mean(
        [
            enlarged(probabilities(x)[:, :CLASSES].T.reshape(CLASSES, *x.grid), (4, 6))
            for x in layers
        ],
        0,
    )
    found = cross_maps(layers, CLASSES, (4, 6))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_was_maps_add_up_the_places_that_look_at_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = (4, 6)
    layers = [projected(grid, 24, seed) for seed in (2, 3)]
    cross = torch.rand(1, CLASSES, 2, 3, generator=torch.Generator().manual_seed(4))
    attention = np.mean([probabilities(layer) for layer in layers], 0)  # eq. 5
    weights = enlarged(cross[0].numpy(), grid).reshape(CLASSES, -1)
    expected = np.zeros((CLASSES, 24))
    for cls in range(CLASSES):
        for place in range(24):
            expected[cls] += weights[cls, place] * attention[place]
    monkeypatch.setattr("synthgen.oneshot.slime._CHUNK", 24 * HEADS * 5)  # uneven chunks
    with torch.no_grad():
        found = was_maps(cross, layers)[0].reshape(CLASSES, -1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gradients_flow_through_cross_and_self_attention() -> None:
    layers = [projected((3, 3), 9, 5)]
    own = layers[0].key.clone().requires_grad_()
    query = layers[0].query

    def value(key: torch.Tensor) -> torch.Tensor:
        layer = Projected(query, key, HEADS, DIM**-0.5, (3, 3))
        return was_maps(cross, [layer]).square().sum()

    cross = torch.rand(1, CLASSES, 3, 3, generator=torch.Generator().manual_seed(6))
    (gradient,) = torch.autograd.grad(value(own), [own])
    step = torch.zeros_like(own)
    step[0, 4, 2] = 1e-2
    with torch.no_grad():  # probabilities are made in float32
        slope = (value(own + step) - value(own - step)) / 2e-2
    assert gradient[0, 4, 2] == pytest.approx(float(slope), rel=0.02)


def test_losses_are_those_of_loops_over_places() -> None:
    rng = torch.Generator().manual_seed(7)
    cross = torch.rand(1, CLASSES, 3, 4, generator=rng).softmax(1)
    was = torch.rand(1, CLASSES, 3, 4, generator=rng)
    mask = torch.tensor([[[0, 0, 0, 0], [1, 1, 2, 255], [0, 0, 255, 0]]])
    counts = {0: 7, 1: 2, 2: 1}
    entropy = squares = total = 0.0
    for y in range(3):
        for x in range(4):
            cls = int(mask[0, y, x])
            if cls == 255:
                continue
            weight = 10 / counts[cls]
            entropy -= weight * math.log(float(cross[0, cls, y, x]))
            total += weight
            for k in range(CLASSES):
                squares += (float(was[0, k, y, x]) - (k == cls)) ** 2
    found = slime_losses(cross, was, mask)
    assert float(found[0]) == pytest.approx(entropy / total, rel=1e-5)
    assert float(found[1]) == pytest.approx(squares / 10, rel=1e-5)
    assert class_weights(mask, CLASSES).tolist() == pytest.approx([10 / 7, 5, 10])


def test_self_attention_layers_share_a_grid() -> None:
    cross = torch.rand(1, CLASSES, 2, 2)
    with pytest.raises(ValueError, match="must have one grid"):
        was_maps(cross, [projected((2, 2), 4, 0), projected((4, 4), 16, 0)])


def test_a_part_of_one_pixel_keeps_a_cell_and_a_pixel() -> None:
    mask = torch.zeros(64, 64, dtype=torch.long)
    mask[10:50, 10:50], mask[33, 21] = 1, 2
    on_grid = mask_on_grid(mask, 3, (8, 8))
    assert (on_grid == 2).sum() == 1
    assert on_grid[4, 2] == 2
    smaller = resize_mask(mask, (16, 16))
    assert (smaller == 2).sum() == 1
    assert smaller[8, 5] == 2


@pytest.mark.parametrize("preset", ["none", *PRESETS])
def test_views_keep_image_and_mask_together(preset: str) -> None:
    """A picture whose colors are its classes stays one."""
    mask = torch.zeros(48, 96, dtype=torch.long)
    mask[10:40, 30:70], mask[20:30, 40:50] = 1, 2
    image01 = F.one_hot(mask, 3).movedim(2, 0).float()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        view, classes = augment(image01, mask, preset, rng)
        assert view.shape == image01.shape
        assert classes.shape == mask.shape
        known = classes != 255
        agree = view.argmax(0)[known] == classes[known]
        assert agree.float().mean() > 0.97
        assert known.float().mean() > 0.5
        assert set(torch.unique(classes).tolist()) <= {0, 1, 2, 255}
    rng = np.random.default_rng(3)
    assert torch.equal(augment(image01, mask, preset, rng)[1], classes)


def test_another_background_leaves_parts_and_what_is_undecided_alone() -> None:
    image01 = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(8, 12, dtype=torch.long)
    mask[:, 4:8], mask[:, 8:] = 1, 255
    views = [change_background(image01, mask, np.random.default_rng(seed)) for seed in range(40)]
    again = change_background(image01, mask, np.random.default_rng(0))
    assert torch.equal(views[0], again)
    outside = torch.stack([view[:, :, :4] for view in views])
    assert all(torch.equal(view[:, :, 4:], image01[:, :, 4:]) for view in views)
    assert 0 <= outside.min() <= outside.max() <= 1
    assert outside.mean((1, 2, 3)).std() > 0.1  # darker and lighter ones
    plain = outside.flatten(2).std(2).amax(1) < 1e-5
    assert 0 < plain.float().mean() < 0.3  # an eighth is of one color


def test_other_colors_keep_what_is_gray_gray() -> None:
    image01 = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    image01[:, :4] = 0.5
    views = [recolor(image01, np.random.default_rng(seed)) for seed in (0, 1, 1)]
    assert torch.equal(views[1], views[2])
    assert not torch.equal(views[0], views[1])
    for view in views:
        assert view.min() >= 0
        assert view.max() <= 1
        assert torch.allclose(view[:1, :4].expand(3, -1, -1), view[:, :4], atol=1e-5)
