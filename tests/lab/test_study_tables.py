"""What a study says: the paper's figures, its rows on any model, what is real, the tables."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from synthgen.lab.study.bootstrap import DRAWS, Interval, paired_intervals, redraws
from synthgen.lab.study.claims import sentences, study_claims, verdict
from synthgen.lab.study.markdown import study_markdown
from synthgen.lab.study.paper import ALL_GRIDS, TABLES, paper_row
from synthgen.lab.study.results import Results
from synthgen.lab.study.settings import (
    STUDIES,
    Layout,
    Setting,
    StudyName,
    needed_layers,
    study_rows,
)
from synthgen.types import PlannedSample, Prompt

SD21 = Layout((64, 32, 16), 64, 512, 64, True)
SCENES = Layout((32, 16, 8), 32, 128, 16, True)
NAMES: tuple[StudyName, ...] = ("layers", "components", "resolutions", "mid", "upsampling")


# --- the paper ---------------------------------------------------------------------------------


def test_tables_have_the_rows_of_the_paper() -> None:
    assert {table: len(rows) for table, rows in TABLES.items()} == {2: 6, 6: 32, 7: 16, 8: 6}
    assert [row.id for row in TABLES[2]] == [0, 1, 2, 6, 7, 8]
    assert [row.id for row in TABLES[6]] == list(range(32))
    assert {len(row.sam) for row in TABLES[6] + TABLES[7]} == {5}
    assert {tuple(row.m2f) for row in TABLES[2] + TABLES[8]} == {(1, 3, 5)}


def test_figures_of_the_paper_by_hand() -> None:
    best = paper_row(7, 1)
    assert (best.components, best.grids, best.resolution, best.samples) == (32, ALL_GRIDS, 256, 41)
    assert best.sam == {1: 0.86, 3: 0.83, 5: 0.82, 10: 0.75, 15: 0.70}
    assert best.m2f == {1: 0.79, 2: 0.79, 3: 0.78, 5: 0.68, 10: 0.62}
    assert paper_row(2, 7).sam == {1: 0.85, 3: 0.83, 5: 0.80}
    assert (paper_row(2, 0).layer, paper_row(2, 0).m2f[5]) == ("down", 0.64)
    last = paper_row(6, 31)
    assert (last.grids, last.components, last.m2f[10], last.reweight) == ((64,), 1, 0.54, True)


def test_the_published_figures_bear_out_what_the_text_says_of_them() -> None:
    """A slip in a digit would show: no reweight is never behind, one component always is."""
    for down, up in ((0, 1), (6, 7)):
        assert all(paper_row(2, up).sam[n] >= paper_row(2, down).sam[n] for n in (1, 3, 5))
    for weighted, plain in ((0, 6), (1, 7), (2, 8)):
        assert all(paper_row(2, plain).sam[n] >= paper_row(2, weighted).sam[n] for n in (1, 3, 5))
    for row in TABLES[6] + TABLES[7]:
        values = list(row.sam.values())
        assert values == sorted(values, reverse=True)
        if row.components > 1:
            last = next(r for r in TABLES[row.table] if (r.grids, r.components) == (row.grids, 1))
            assert all(row.sam[n] > last.sam[n] for n in row.sam)
    for coarse, fine in zip(TABLES[6][:16], TABLES[7], strict=True):
        gains = [fine.sam[n] - coarse.sam[n] for n in (1, 3, 5, 10, 15)]
        assert all(-0.005 < gain < 0.045 for gain in gains)


def test_table_6_agrees_with_both_layers_better_than_with_up() -> None:
    """Row 6 is table 2's setting with reweighting; the tables' layers are not named."""
    row = paper_row(6, 6)
    same = {"reweight": True, "grids": ALL_GRIDS, "components": 3, "resolution": 64}
    assert all(getattr(row, name) == value for name, value in same.items())
    agreeing = {
        paper.layer: sum(
            mine[n] == theirs[n]
            for mine, theirs in ((row.sam, paper.sam), (row.m2f, paper.m2f))
            for n in theirs
        )
        for paper in TABLES[2]
        if paper.reweight
    }
    assert agreeing == {"down": 0, "up": 2, "both": 5}
    for name, table in (("resolutions", 6), ("components", 7)):
        num = len(TABLES[table])
        layers = [row.setting.layers for row in study_rows(name, SD21) if row.papers]
        assert layers == ["up"] * num + ["both"] * num
        text = study_markdown(made_results(name, lambda s: 0.0))
        assert "in 5 of 6 columns" in text
    assert "in 5 of 6 columns" not in study_markdown(made_results("upsampling", lambda s: 0.0))


# --- rows on a model ---------------------------------------------------------------------------


def test_on_sd21_the_rows_are_the_papers_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in NAMES:
            rows = [row for row in study_rows(name, SD21) if row.papers]
            assert [row.papers for row in rows] == [(paper,) for paper in STUDIES[name].papers]
            for row in rows:
                (paper,), setting = row.papers, row.setting
                assert (setting.grids, setting.components) == (paper.grids, paper.components)
                assert (setting.resolution, setting.reweight) == (paper.resolution, paper.reweight)
                assert setting.mid == paper.layer.endswith("mid")


def test_components_are_clamped_with_one_warning() -> None:
    with pytest.warns(UserWarning, match="head dimension. Got 64, 32 for heads of 16") as caught:
        rows = study_rows("resolutions", SCENES)
    assert len(caught) == 1
    by_grids = {
        grids: [row.setting.components for row in rows if row.setting.grids == grids]
        for grids in ((8, 16, 32), (16, 32), (8, 16), (32,))
    }
    assert set(map(tuple, by_grids.values())) == {(16, 10, 8, 5, 3, 1) * 2}  # up, then both
    assert [paper.id for paper in rows[0].papers] == [0, 1, 2]
    assert [row.setting.name for row in rows if not row.papers] == ["rgbxy at 32"]


def test_resolutions_follow_the_finest_grid_and_missing_grids_have_no_rows() -> None:
    with pytest.warns(UserWarning, match="Components must be"):
        rows = study_rows("upsampling", SCENES)
    assert sorted({row.setting.resolution for row in rows}) == [32, 64, 128], "up to the image's"
    two = Layout((64, 32), 64, 1024, 64, False)
    found = {row.setting.grids for row in study_rows("resolutions", two) if row.papers}
    assert found == {(32, 64), (64,)}  # [16, 32] needs a third; all grids are two here
    with pytest.raises(ValueError, match="Got none; choose another"):
        study_rows("mid", two)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("mid", "all"), ("layers", "both"), ("upsampling", "up"), ("components", "both")],
)
def test_what_is_captured_is_what_some_row_needs(name: StudyName, layers: str) -> None:
    assert needed_layers(row.setting for row in study_rows(name, SD21)) == layers


# --- paired bootstrap --------------------------------------------------------------------------


def test_bootstrap_equals_the_slow_one() -> None:
    rng = np.random.default_rng(3)
    ours, reference = rng.random((3, 11)), rng.random(11)
    fast = paired_intervals(ours, reference)
    counts = redraws(11)
    assert counts.shape == (DRAWS, 11)
    assert (counts.sum(1) == 11).all()
    for row, interval in zip(ours, fast, strict=True):
        means = []
        for draw in counts.astype(int):
            picked = [i for i, times in enumerate(draw) for _ in range(times)]
            means.append(sum(row[i] - reference[i] for i in picked) / len(picked))
        low, high = np.percentile(means, [2.5, 97.5])
        assert interval.mean == pytest.approx(np.mean(row - reference))
        assert (interval.low, interval.high) == pytest.approx((low, high))


def test_images_without_a_value_are_left_out_and_one_image_proves_nothing() -> None:
    reference = np.array([0.5, np.nan, 0.5])
    (two,) = paired_intervals(np.array([[0.6, 0.9, 0.8]]), reference)
    assert two.mean == pytest.approx(0.2)
    (one,) = paired_intervals(np.array([[0.6, 0.9, np.nan]]), reference)
    assert (one.mean, one.is_real) == (pytest.approx(0.1), False)
    assert str(one) == "+0.100"
    assert str(Interval(-1e-5, -2e-5, 0.25)) == "+0.000 [0.000, 0.250]"
    (none,) = paired_intervals(np.full((1, 3), np.nan), reference)
    assert (str(none), none.is_real) == ("–", False)


# --- claims and tables -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "margin", "said"),
    [
        (0.01, 0.05, None, "yes"),
        (-0.05, -0.01, None, "no"),
        (-0.01, 0.02, None, "no difference seen"),
        (math.nan, math.nan, None, "undecided"),
        (-0.05, 0.009, 0.01, "yes"),
        (0.001, 0.009, 0.01, "yes"),
        (0.01, 0.03, 0.01, "no"),
        (-0.01, 0.03, 0.01, "undecided"),
    ],
)
def test_verdicts(low: float, high: float, margin: float | None, said: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high), margin) == said


def made_results(
    name: StudyName, effect: Callable[[Setting], float], is_sd21: bool = True, num: int = 30
) -> Results:
    """Images of differing hardness; a setting adds its effect to every Top-n."""
    rows, rng = study_rows(name, SD21), np.random.default_rng(1)
    images = tuple(PlannedSample(f"{i:010d}", Prompt(f"p{i}", "x"), 0, i) for i in range(num))
    hardness = 0.3 + 0.4 * rng.random(num)
    top = np.stack(
        [hardness + effect(row.setting) + 0.01 * rng.standard_normal(num) for row in rows]
    )
    metrics = {f"top_{n}": top for n in (1, 3, 5, 10, 15)}
    metrics |= {"num_annotations": np.full_like(top, 20), "num_masks": np.full_like(top, 30)}
    about = {"backbone": "made", "images": "made", "k": "2, 5", "auditor": "scenes-sam"}
    return Results(name, rows, images, metrics, Counter(), about, is_sd21, "SAM")


def said_of(results: Results, claim: str) -> list[str]:
    return [sentence for sentence in sentences(results) if sentence.startswith(claim)]


def test_planted_effects_are_told_in_sentences() -> None:
    good = made_results("layers", lambda s: 0.05 * (s.layers != "down") + 0.03 * (not s.reweight))
    (weighted, plain) = said_of(good, "up ≥ down")
    for sentence, paper in ((weighted, "+0.03"), (plain, "+0.01")):
        assert "**yes**, Top-5 +0.0" in sentence
        assert f"in the paper {paper}" in sentence
    assert all("**yes**" in s for s in said_of(good, "no reweight"))
    assert all("**yes**" in s for s in said_of(good, "down layers add nothing"))
    bad = made_results("layers", lambda s: 0.05 * (s.layers == "down"))
    assert all("**no**" in s for s in said_of(bad, "up ≥ down"))
    assert all("**no difference seen**" in s for s in said_of(bad, "no reweight"))


def test_every_study_has_claims_and_their_rows_differ_in_one_setting() -> None:
    for name in NAMES:
        claims = study_claims(made_results(name, lambda s: 0.0))
        assert claims
        for claim in claims:
            fields = ("layers", "mid", "grids", "components", "reweight", "resolution")
            more, less = claim.more.setting, claim.less.setting
            assert sum(getattr(more, f) != getattr(less, f) for f in fields) == 1


def test_few_components_mid_and_resolution_claims() -> None:
    poor = made_results("components", lambda s: -0.1 * (s.components == 3))
    assert all("**no**" in s for s in said_of(poor, "3 components are enough"))
    assert all("**yes**" in s for s in said_of(poor, "8 components are enough"))
    assert "in the paper +0.01" in said_of(poor, "3 components are enough")[0]  # .82 and .81
    helpful = made_results("mid", lambda s: 0.1 * s.mid)
    assert all("**no**" in s for s in said_of(helpful, "mid adds nothing"))
    finer = made_results("upsampling", lambda s: 0.02 * (s.resolution == 512))
    top15 = said_of(finer, "clustering at 256 ≥ at 64 in Top-15 (8 components)")
    assert "no difference" in top15[0]
    assert "in the paper +0.02" in top15[0]  # .68 against .66
    grids = said_of(made_results("resolutions", lambda s: 0.1 * (s.grids == ALL_GRIDS)), "all")
    assert [s[s.index("≥") :].split("]")[0] for s in grids] == [
        f"≥ {layers} [{sides}" for sides in ("32, 64", "16, 32", "64") for layers in ("up", "both")
    ]
    assert all("**yes**" in s for s in grids)


@pytest.mark.parametrize("name", NAMES)
def test_markdown_is_a_table_with_the_papers_columns(name: StudyName) -> None:
    text = study_markdown(made_results(name, lambda s: 0.01 * s.reweight))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    rows = study_rows(name, SD21)
    assert len(cells) == 2 + len(rows)
    tops = [f"SAM Top-{n}" for n in (1, 3, 5, 10, 15)]
    about = ["Reweight", "Layer", "Attention Resolution", "#Principal Components"]
    expected = (
        ["ID", *tops, *about, "Upsample Resolution", "Sample Count"]
        if name in ("components", "resolutions", "upsampling")
        else ["ID", "Reweight", "Layer", *tops]
    )
    assert cells[0][: len(expected)] == expected
    assert sum("reference" in row for row in cells) == 1
    assert "RGB+XY" in cells[-1]


def test_what_markdown_says_of_figures() -> None:
    """The paper's for its own backbone; bold where real; few images are hints."""
    results = made_results("layers", lambda s: -0.15 * (s.layers == "down"))
    text = study_markdown(results)
    line = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert all(f"({value})" in line["7"] for value in ("0.85", "0.83", "0.80"))
    assert "**-0.1" in line["6"]
    assert "**" not in line["8"]
    assert "hints only" not in text
    assert "(0.85)" not in study_markdown(replace(results, is_sd21=False))
    assert "(0.81)" in study_markdown(replace(results, family="M2F"))
    few = made_results("layers", lambda s: 0.0, num=19)
    assert "hints only" in study_markdown(few)
