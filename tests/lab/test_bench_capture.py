"""The capture bench at small size: exactness and memory hold there too, times do not count."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from diffusers import UNet2DConditionModel

from synthgen.diffusion.selection import attention_layers
from synthgen.lab.bench.capture import (
    PACKAGE,
    RECOMPUTED,
    SD21_UNET,
    bench_capture,
    median_interval,
)


def test_bench_has_its_keys_and_exact_captures() -> None:
    pytest.importorskip("attention_map_diffusers")
    result = bench_capture(num_pairs=2, quick=True, num_rival_pairs=1)
    json.dumps(result)
    keys = {"time_ratio", "added_mb", "bit_identical"}
    assert keys | {"time_ratio_interval", "control_ratio"} <= set(result)
    assert result["bit_identical"]
    # up layers: 3 x (4 heads x 16 positions + 4 x 64 + 2 x 256) of 16 features in float32
    assert result["added_mb"] == pytest.approx(3 * (64 + 256 + 512) * 16 * 4 / 1e6, abs=0.01)
    rivals = result["rivals"]
    assert set(rivals) == {RECOMPUTED, f"{PACKAGE}==1.0.0"}
    assert all(keys <= set(rival) for rival in rivals.values())
    assert rivals[RECOMPUTED]["added_mb"] == result["added_mb"]
    assert rivals[f"{PACKAGE}==1.0.0"]["added_mb"] > result["added_mb"]


def test_full_size_architecture_is_that_of_sd21() -> None:
    """BL table 1: 195 heads of 64 features at 512 px, 175 without mid; no memory is taken."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD21_UNET)
    assert sum(p.numel() for p in unet.parameters()) == 865_910_724
    layers = attention_layers(unet, (64, 64))
    assert {layer.dim for layer in layers} == {64}
    per_grid = {
        part: [(x.heads, x.grid[0]) for x in layers if x.name.startswith(part)]
        for part in ("down", "mid", "up")
    }
    assert per_grid["down"] == [(5, 64)] * 2 + [(10, 32)] * 2 + [(20, 16)] * 2
    assert per_grid["mid"] == [(20, 8)]
    assert per_grid["up"] == [(20, 16)] * 3 + [(10, 32)] * 3 + [(5, 64)] * 3
    assert sum(layer.heads for layer in layers) == 195
    values = sum(layer.heads * layer.dim * math.prod(layer.grid) for layer in layers)
    assert 2 * values == pytest.approx(23e6, rel=0.01)  # in float16


def test_median_interval_covers_and_narrows() -> None:
    """Coverage by simulation: at least 95 % of intervals hold the true median 0."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 15, generator=generator).tolist()
    hits = [low <= 0 <= high for low, high in map(median_interval, draws)]
    assert sum(hits) / len(hits) >= 0.94
    widths = [
        sum(
            high - low
            for low, high in map(
                median_interval, torch.randn(200, n, generator=generator).tolist()
            )
        )
        for n in (9, 25, 75)
    ]
    assert all(wide > narrow for wide, narrow in pairwise(widths))
    assert median_interval([3.0, 1.0]) == (1.0, 3.0)
