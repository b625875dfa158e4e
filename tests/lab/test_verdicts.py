"""Verdicts on a good and on a broken dataset: scenes whose truth the auditor knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from truth_world import make_dataset

from synthgen.config import VerdictConfig, load_audit
from synthgen.dataset.loader import open_dataset
from synthgen.lab.bench.verdicts import audited, break_dataset, quantiles
from synthgen.types import Verdict

NUM = 8
SETTINGS = load_audit(["auditor.name=truth_world:load_truth"])


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verdicts") / "good"
    make_dataset(out, NUM, shard_size=4)
    return out


def test_a_broken_dataset_has_the_masks_of_the_next_sample(good: Path, tmp_path: Path) -> None:
    break_dataset(good, tmp_path / "broken")
    before, after = list(open_dataset(good)), list(open_dataset(tmp_path / "broken"))
    for index, (own, got) in enumerate(zip(before, after, strict=True)):
        following = before[index + 1 if index % 4 < 3 else index - 3]
        assert got["key"] == own["key"]
        assert np.array_equal(got["image"], own["image"])
        assert np.array_equal(got["masks"], following["masks"])
        assert np.array_equal(got["mask"], following["mask"])
    assert len(after) == NUM


def test_a_good_dataset_is_kept_and_a_broken_one_rejected(good: Path, tmp_path: Path) -> None:
    break_dataset(good, tmp_path / "broken")
    kept, rejected = audited(good, SETTINGS), audited(tmp_path / "broken", SETTINGS)
    assert kept["kept"] >= 0.8
    assert rejected["kept"] <= 0.05
    assert kept["top_5"] > kept["color_baseline_top_5"]
    assert rejected["top_5"] < rejected["shuffled_masks_top_5"], "the right masks are among those"


def test_quantiles_are_those_of_what_the_thresholds_are_about() -> None:
    verdicts = [
        Verdict(
            True,
            "",
            {
                "top_5": value,
                "shuffled_masks_top_5": 0.25,
                "color_baseline_top_5": float("nan") if value > 0.8 else 0.5,
                "boundary_f": 1 - value,
                "coverage": 1.0,
            },
        )
        for value in np.linspace(0, 1, 101)
    ]
    found = quantiles(verdicts, VerdictConfig())
    assert found["min_top_n"]["5 %"] == pytest.approx(0.05)
    assert found["min_over_shuffled_masks"]["50 %"] == pytest.approx(0.25)
    assert found["min_over_color_baseline"]["50 %"] == pytest.approx(-0.1)
