"""The k-means bench itself: its rows, on features of toy size, and its quick form in full."""

from __future__ import annotations

import pytest
from planted import random_sample

from synthgen.lab.bench import kmeans as bench

ROW = {"seconds", "sklearn_seconds", "ratio", "agree_fp32", "agree_fp64", "boundary_share"}


def test_a_row_times_both_and_compares_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SD21_UP", ((8, 12), (16, 6), (32, 3)))
    blocks = bench.made_blocks(bench.ROUGH)
    assert [tuple(block.shape) for block in blocks] == [(8, 8, 12), (16, 16, 6), (32, 32, 3)]
    row = bench._measure("toy", blocks, 64)
    assert set(row) == ROW
    assert row["ratio"] == pytest.approx(row["sklearn_seconds"] / row["seconds"])
    assert row["agree_fp64"] == 1.0
    assert row["agree_fp32"] >= 0.9999
    assert 0 < row["boundary_share"] < 1
    alone = bench._measure("toy", blocks, 64, against_sklearn=False)
    assert alone["sklearn_seconds"] is None
    assert alone["ratio"] is None


def test_agreement_thins_features_that_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SD21_UP", ((16, 12), (32, 6), (64, 3)))
    monkeypatch.setattr(bench, "FULL_BYTES", dict.fromkeys(bench.FULL_BYTES, 500_000))
    said: list[str] = []
    monkeypatch.setattr(bench, "_say", said.append)
    dtype = next(iter(bench.FULL_BYTES))
    assert bench._agreement("toy", bench.made_blocks(bench.SMOOTH), 128, dtype) >= 0.9999
    assert "one in 3 features" in said[0]


@pytest.mark.slow
def test_quick_bench_prints_every_key() -> None:
    embedded = random_sample(((8, 8), (16, 16), (32, 32)), dim=16).features
    result = bench.bench_kmeans(embedded, quick=True)
    assert set(result) == {"smooth", "rough", "embedded", "peak_extra_ratio", "inertia_ratio"}
    assert set(result["smooth"]) == {"128", "256"}
    for rows in (result["smooth"], result["rough"], result["embedded"]):
        for row in rows.values():
            assert set(row) == ROW
            assert row["agree_fp64"] == 1.0
    assert result["peak_extra_ratio"] < 1 / 3
    assert result["inertia_ratio"] == pytest.approx(1, abs=0.03)
