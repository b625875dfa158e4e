"""Bad classes and labels, as users meet them: one line, exit code 2, and nothing is lost.

Issue 4's list. Its other tests: classes of new datasets and arguments of ``label`` stand in
``test_label_dir.py``, exports that are cut off in ``test_export.py`` and
``test_export.py``, classes that never occur in the first, ``test_export_formats.py`` and
``test_evaluation.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_export import NAMES, make_dataset, tree
from made_report import write_labeled
from pycocotools.coco import COCO
from tiny_run import OVERRIDES, vouch_again, write_prompts

from synthgen.cli import main
from synthgen.dataset.labels import class_names
from synthgen.dataset.loader import open_dataset

pytestmark = pytest.mark.timeout(1200)  # datasets of a model, on machines that are busy
Bad = Callable[..., str]


def code(*arguments: object) -> int:
    """Exit code of the command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["synthgen", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
    return int(exit_.value.code or 0)


@pytest.fixture
def bad(capsys: pytest.CaptureFixture[str]) -> Bad:
    """Runs a command that must fail; gives the one line that it says."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert code(*arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = printed.err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return run


@pytest.fixture
def plain(tiny_dataset: Path, tmp_path: Path) -> Path:
    """Masks alone, made by the tiny model; labels can be put beside them."""
    return shutil.copytree(tiny_dataset, tmp_path / "plain")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Four labeled samples of drawn shapes."""
    make_dataset(tmp_path / "world", num=4)
    return tmp_path / "world"


def write_classes(out: Path, names: dict[int, str]) -> None:
    table = {str(number): name for number, name in names.items()}
    (out / "classes.json").write_text(json.dumps(table))


def test_a_class_without_tokens_is_refused_before_a_folder_is_claimed(
    plain: Path, bad: Bad
) -> None:
    path = plain / "metadata" / "train-000002.parquet"  # the last shard: all are looked at
    table = pq.read_table(path)
    classes = pa.array([["zebra"]] * len(table), table.schema.field("classes").type)
    position = table.column_names.index("classes")
    pq.write_table(table.set_column(position, table.schema.field("classes"), classes), path)
    write_classes(plain, {**class_names(plain), 4: "zebra"})
    before = tree(plain)
    line = bad("label", plain, "--set", "labeling.text=prompt")
    assert "no token for 'zebra'" in line
    assert "labeling.text" in line, "and says what to do"
    assert tree(plain) == before


@pytest.mark.parametrize("name", ["coco", "coco-panoptic", "voc", "yolo-seg", "hf-parquet"])
def test_unknown_ids_stop_an_export_and_a_new_table_needs_a_new_folder(
    name: str, world: Path, tmp_path: Path, bad: Bad
) -> None:
    export = ("export", world, tmp_path / "out", "--format", name)
    write_classes(world, {number: text for number, text in NAMES.items() if number != 2})
    before = tree(world)
    line = bad(*export)
    assert "0000000000: sem.png must hold ids of classes.json. Got [2]; known: 0, 1, 7" in line
    assert tree(world) == before
    assert not (tmp_path / "out" / "export.json").exists()
    write_classes(world, NAMES)
    line = bad(*export)  # no export mixes two tables of classes
    assert "begun without class 2 'cat & <b>mouse</b>'. Choose another folder." in line
    assert code("export", world, tmp_path / "fresh", "--format", name) == 0
    assert (tmp_path / "fresh" / "export.json").exists()


def test_unknown_ids_are_named_by_the_report_and_to_readers(tmp_path: Path, bad: Bad) -> None:
    out = write_labeled(tmp_path / "made")
    write_classes(out, {0: "background", 1: "cat", 255: "ignore"})
    vouch_again(out)
    assert "Got [2]; known: 0, 1, 255" in bad("report", out)
    with pytest.raises(ValueError, match=r"Got \[2\]; known: 0, 1, 255"):
        list(open_dataset(out))
    assert not (out / "report").exists()


def test_a_broken_table_of_classes_is_named(world: Path, tmp_path: Path, bad: Bad) -> None:
    (world / "classes.json").write_text('["car"]')
    assert "classes.json must map ids to names" in bad("export", world, tmp_path / "out")


def test_prompts_without_classes_give_masks_that_export_as_masks_alone(
    tiny_pipeline: Path, tmp_path: Path, bad: Bad
) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", ({"prompt": "the sky", "classes": []},))
    settings = (*OVERRIDES, f"model.card={tiny_pipeline}")
    words = [word for setting in settings for word in ("--set", setting)]
    out = tmp_path / "out"
    assert code("generate", prompts, "--out", out, "--engine", "inline", *words, "--num", 1) == 0
    assert class_names(out) == {0: "background", 255: "ignore"}
    (sample,) = open_dataset(out)
    assert "semantic" not in sample
    assert "must have class labels" in bad("export", out, tmp_path / "voc", "--format", "voc")
    assert not (tmp_path / "voc").exists()
    assert code("export", out, tmp_path / "coco") == 0
    truth = COCO(str(tmp_path / "coco/annotations/instances_train.json"))
    masks = [truth.annToMask(item) for item in truth.anns.values()]
    np.testing.assert_array_equal(np.stack(masks).astype(bool), sample["masks"])
