"""SLiMe's figures on scenes: each differs in one way; rows are kept; the table has the layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synthgen.embedded.vocabulary import TUNING_SEEDS
from synthgen.lab.oneshot import evaluate
from synthgen.lab.oneshot.data import EXAMPLES, class_seeds, part_scenes, single
from synthgen.lab.oneshot.evaluate import OneshotSettings
from synthgen.lab.oneshot.figures import (
    CONDITIONS,
    beside_similar,
    camouflaged,
    evaluate_figures,
    figures_table,
    num_measured,
    occluded,
    tiny,
)
from synthgen.oneshot.settings import PartSettings

SEED = next(class_seeds("car", True, EXAMPLES))


def test_changed_scenes_differ_in_one_way() -> None:
    ordinary, hidden = single(SEED), camouflaged(SEED)
    np.testing.assert_array_equal(hidden.part, ordinary.part)
    outside, body = ordinary.semantic == 0, ordinary.part == ordinary.part.max()
    assert (hidden.image != ordinary.image)[outside].mean() < 0.05  # its antialiased border
    assert not np.array_equal(hidden.image[~outside], ordinary.image[~outside])
    assert body.any()
    small = tiny(SEED)
    share = (small.semantic > 0).sum() / (ordinary.semantic > 0).sum()
    assert abs(share - 0.4**2) < 0.03
    assert small.background == ordinary.background
    covered, both = occluded(SEED), beside_similar(SEED)
    assert 0.4 < (covered.instance == 1).sum() / (ordinary.instance == 1).sum() < 0.95
    assert [item.class_name for item in both.objects] == ["car", "boat"]
    assert both.objects[0].colors == both.objects[1].colors
    assert SEED in TUNING_SEEDS


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: c.title)
def test_truth_knows_other_objects(condition) -> None:
    tests = condition.tests("face", 2, True)
    assert tests.names == ("head", "eye", "mouth", "hair", "others")
    pairs = [read() for read in tests.tests]
    for pixels, mask in pairs:
        assert pixels.shape[:2] == mask.shape
    shown = {int(cls) for _, mask in pairs for cls in np.unique(mask)}
    others = condition.carried or condition.found in (occluded, beside_similar)
    assert (5 in shown) == others
    assert (1 in shown) != condition.carried
    assert 2 in shown


def test_occluded_examples_show_all_parts() -> None:
    data = part_scenes("face", 3, 0, True, occluded)
    assert all(set(np.unique(read()[1])) == set(range(5)) for read in data.examples)


def test_figures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = OneshotSettings(
        classes=("cup", "tree"), inits=1, num=1, tuning=True, parts=PartSettings(epochs=1)
    )
    result = evaluate_figures(tmp_path, settings)
    assert num_measured(settings) == len(result["rows"]) == 2 * len(CONDITIONS) - 1
    table = (tmp_path / "figures.md").read_text()
    assert table == figures_table(result)
    assert table.startswith("| figure | scenes | cup | tree | mean |")
    assert "| 9 | another class with these parts | – | " in table
    assert (tmp_path / "figures.png").stat().st_size > 10_000
    monkeypatch.setattr(evaluate, "confusion", None)  # nothing is measured again
    assert evaluate_figures(tmp_path, settings) == result
    with pytest.raises(ValueError, match="data must be scenes for figures"):
        evaluate_figures(tmp_path, settings.model_copy(update={"data": "celebamask"}))
