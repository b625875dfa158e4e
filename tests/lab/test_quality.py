"""The bench of masks against truth: every row, and the mirror among its levers."""

from __future__ import annotations

import numpy as np
import torch
from planted import planted_sample

from synthgen.lab.bench.quality import METHODS, bench_quality, mirrored


def test_every_method_is_scored() -> None:
    result = bench_quality(1)
    names = {"class_iou", "part_iou", "hungarian_iou", "ari", "boundary_f", "masks"}
    assert all(set(result[method]) == names for method in METHODS)
    assert set(result["caption"]) == {"per_head", "head_average"}
    refined, plain = result["per_head"], result["per_head_unrefined"]
    assert refined["boundary_f"] > plain["boundary_f"] + 0.1
    assert result["refine_512_core_s"] > 0


def test_a_mirrored_sample_is_mirrored_everywhere() -> None:
    sample = planted_sample()
    once = mirrored(sample)
    assert np.array_equal(once.image, sample.image[:, ::-1])
    for name, value in sample.features.values.items():
        height, width = sample.features.grids[name]
        for y, x in np.ndindex(height, width):
            place = y * width + width - 1 - x
            assert torch.equal(once.features.values[name][:, y * width + x], value[:, place])
