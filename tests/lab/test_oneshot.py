"""Evaluation of parts: rows are kept and gone on with, rivals learn, tables have the layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from synthgen.embedded.vocabulary import CLASS_PARTS
from synthgen.lab.oneshot import evaluate
from synthgen.lab.oneshot.data import part_scenes
from synthgen.lab.oneshot.evaluate import (
    TABLES,
    OneshotSettings,
    evaluate_oneshot,
    num_rows,
    oneshot_table,
)
from synthgen.lab.oneshot.rivals import labeled_places, nearest_centroid, train_mlp
from synthgen.oneshot.settings import PartSettings

SETTINGS = OneshotSettings(
    classes=("tree",), shots=(1,), inits=2, num=1, tuning=True, parts=PartSettings(epochs=1)
)


def test_examples_and_tests_are_apart_and_have_all_parts() -> None:
    data, more = part_scenes("tree", 4, 2, True), part_scenes("tree", 6, 5, True)
    pairs = [read() for read in (*more.examples, *more.tests)]
    assert len({pixels.tobytes() for pixels, _ in pairs}) == 11
    for few, many in ((data.examples, more.examples), (data.tests, more.tests)):
        for one, other in zip(few, many, strict=False):  # those that are there stay
            np.testing.assert_array_equal(one()[0], other()[0])
    assert all(set(np.unique(mask)) == {0, 1, 2} for _, mask in pairs)


def test_rows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate_oneshot(tmp_path, SETTINGS)
    methods = {row["method"] for row in result["rows"]}
    assert {"WAS", "cross, refined", "masks", "centroid", "MLP, refined"} <= methods
    assert num_rows(SETTINGS) == 2 * len(evaluate.METHODS)
    table = oneshot_table(result)
    assert table.startswith("| tree | examples | trunk | crown | background | average |")
    monkeypatch.setattr(evaluate, "learn_parts", None)  # nothing is measured again
    monkeypatch.setattr(evaluate, "head_features", None)
    assert evaluate_oneshot(tmp_path, SETTINGS) == result
    monkeypatch.undo()
    evaluate_oneshot(tmp_path, SETTINGS.model_copy(update={"num": 2}))  # the second test alone
    assert evaluate_oneshot(tmp_path, SETTINGS) == result


@pytest.mark.parametrize("table", TABLES)
def test_every_ablation_is_of_settings(table: str) -> None:
    for changes in TABLES[table].values():
        PartSettings().changed(**evaluate._values(changes))


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"classes must be of car, .* Got 'ball'"):
        evaluate_oneshot(tmp_path, OneshotSettings(classes=("ball",)))
    with pytest.raises(ValueError, match="table must be one of 1, 5"):
        evaluate_oneshot(tmp_path, OneshotSettings.model_validate({"table": 2}))
    assert len(CLASS_PARTS["ball"]) == 1


@pytest.mark.parametrize("rival", ["centroid", "MLP"])
def test_rivals_learn_what_is_in_the_features(rival: str) -> None:
    rng = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 20, generator=rng)
    truth = torch.arange(64)[:, None].expand(64, 64) // 22
    features = centers[truth].movedim(2, 0) + torch.randn(20, 64, 64, generator=rng)
    mask = truth.numpy().astype(np.uint8)
    mask[:2] = 255
    places = labeled_places([(features, mask)])
    assert len(places[0]) == 62 * 64
    learned = nearest_centroid(*places, 3) if rival == "centroid" else train_mlp(*places, 3, 0)
    other = centers[truth.T].movedim(2, 0) + torch.randn(20, 64, 64, generator=rng)
    assert (learned(other).argmax(0) == truth.T).float().mean() > 0.95
