"""Which classes a dataset has: given, pinned, warned about, the same by whatever file's name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from tiny_run import OVERRIDES, tiny_config, tree_hashes, write_prompts
from typer.testing import CliRunner

from synthgen import jobs
from synthgen.cli import app
from synthgen.config import Config, load
from synthgen.dataset.labels import class_ids, class_names
from synthgen.dataset.loader import open_dataset
from synthgen.diffusion.cards import load_cards
from synthgen.embedded.vocabulary import CLASSES
from synthgen.jobs.classes import check_names, warn_of_classes
from synthgen.prompts.class_list import read_classes

LABELED = ("labeling.method=clusters", "labeling.presence=0.01", "num=3")


def classes_of(*values: str) -> dict[str, int] | None:
    return load(overrides=[f"classes={value}" for value in values]).classes


def test_classes_are_names_or_ids() -> None:
    assert classes_of("[cat, dog]") == {"cat": 1, "dog": 2}
    assert classes_of("[Background, cat, dog]") == {"cat": 1, "dog": 2}
    assert classes_of("{dog: 7, cat: 3, background: 0, ignore: 255}") == {"cat": 3, "dog": 7}
    assert load(overrides=["classes.cat=4"]).classes == {"cat": 4}
    assert Config().classes is None
    assert "classes" not in Config().digest_settings()
    assert load(overrides=["classes=[cat]"]).digest_settings()["classes"] == {"cat": 1}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("[cat, cat]", "must name each class once. Got 'cat' again"),
        ("{cat: 1, dog: 1}", "each once. Got 'dog' as 1"),
        ("{cat: 255}", "must have ids of 1 to 254"),
        ("{background: 3}", "must give 'background' the id 0"),
        ("{}", "at least one class"),
        ("[3]", "must be names"),
        ("{'': 1}", "1 to 200 characters"),
    ],
)
def test_impossible_classes_are_refused(value: str, problem: str) -> None:
    with pytest.raises(ValueError, match="classes is not valid") as caught:
        classes_of(value)
    assert problem in str(caught.value)


def test_classes_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("# ADE\nwall\ndoor, double door\n\n")
    assert read_classes(str(path)) == ["wall", "door, double door"]
    coco = {"categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]}
    ours = {"0": "background", "2": "cat", "255": "ignore"}
    for tree, expected in (
        (["a", "b"], ["a", "b"]),
        ({"cat": 2}, {"cat": 2}),
        (ours, {"background": 0, "cat": 2, "ignore": 255}),
        (coco, {"dog": 18, "car": 3}),
    ):
        path.write_text(json.dumps(tree))
        assert read_classes(str(path)) == expected
    for bad in ({"1": "a", "2": "a"}, {"a": "b"}, {"a": {}}):
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match="must be a list of names"):
            read_classes(str(path))
    with pytest.raises(ValueError, match="there is no such file"):
        read_classes(str(tmp_path / "none.txt"))


def test_text_captions_are_labeled_by_given_classes(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a photo of a red car\ntwo dogs under a tree\nthe sky\n")
    (tmp_path / "c.txt").write_text("tree\ndog\ncar\nboat\n")
    sets = [*OVERRIDES[1:], f"model.card={tiny_pipeline}", *LABELED]
    arguments = ["--engine", "inline", "--out", str(tmp_path / "d")]
    for value in sets:
        arguments += ["--set", value]
    found = CliRunner().invoke(
        app, ["generate", f"{tmp_path}/p.txt", "--classes", f"{tmp_path}/c.txt", *arguments]
    )
    assert found.exit_code == 0, found.output
    assert class_ids(class_names(tmp_path / "d")) == {"tree": 1, "dog": 2, "car": 3, "boat": 4}
    named = [sample["json"]["classes"] for sample in open_dataset(tmp_path / "d")]
    assert named == [["car"], ["tree", "dog"], []]


def test_pinned_ids_are_kept_by_extensions_and_merges(tiny_pipeline: Path, tmp_path: Path) -> None:
    outs = []
    for name, classes in (
        ("a", "{tree: 9, car: 4, dog: 2}"),
        ("b", "{boat: 1, car: 4}"),
        ("c", ""),
    ):
        rows = ({"prompt": f"a car {name}", "classes": ["car"]},)
        config = tiny_config(
            tiny_pipeline,
            write_prompts(tmp_path / f"{name}.jsonl", rows),
            *LABELED,
            *([f"classes={classes}"] if classes else []),
        )
        jobs.generate(config, tmp_path / name)
        outs.append(tmp_path / name)
    pinned = {"dog": 2, "car": 4, "tree": 9}
    jobs.extend(outs[0], 1)
    assert class_ids(class_names(outs[0])) == pinned
    jobs.merge(outs, tmp_path / "all")
    assert class_ids(class_names(tmp_path / "all")) == {**pinned, "boat": 1}
    assert load(tmp_path / "all" / "config.yaml").classes == {**pinned, "boat": 1}
    assert {i for s in open_dataset(tmp_path / "all") for i in s["semantic"].ravel()} <= {
        0,
        4,
        255,
    }
    config = tiny_config(
        tiny_pipeline, tmp_path / "c.jsonl", *LABELED, "classes={car: 5}", "seed=1"
    )
    jobs.generate(config, tmp_path / "d")
    with pytest.raises(ValueError, match=r"pin different ids. Got 'car' as 5 in .*/d, and 'car'"):
        jobs.merge([outs[0], tmp_path / "d"], tmp_path / "none")


def test_classes_of_prompts_must_be_among_those_given(tiny_pipeline: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl")
    with pytest.raises(ValueError, match=r"p.jsonl:2: .*Got 'dog'. Did you mean 'dogs'"):
        jobs.plan(tiny_config(tiny_pipeline, prompts, "classes=[car, dogs]"))


def test_classes_that_the_model_cannot_draw_are_warned_about(tmp_path: Path) -> None:
    assert load_cards()["scenes"].vocabulary == CLASSES
    path = tmp_path / "p.txt"
    path.write_text("a care and a Haus, a ball\n")
    command = ["plan", str(path), "--set", "labeling.method=clusters", "--classes"]
    with pytest.warns(
        UserWarning, match=r"2 class.*'scenes' can draw, first 'care'. Did you mean 'car'"
    ):
        assert CliRunner().invoke(app, [*command, "care,Haus,ball"]).exit_code == 0
    labeled = load(overrides=["labeling.method=clusters", "model.card=sd21-base"])
    with pytest.warns(UserWarning, match="'bicycle' and 'bycicle' are two ids"):
        warn_of_classes(labeled, ["bicycle", "bycicle", "car", "cat"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_classes(labeled, ["horse", "house", "care"])
        warn_of_classes(load(), ["care"])


def test_synonyms_of_one_class_are_no_other_class() -> None:
    check_names(["screen door, screen", "screen, projection screen", "door;double door"])
    with pytest.raises(ValueError, match="one name"):
        check_names(["door;double door", "door"])


NAMES = (
    "list #2.jsonl",
    "[v1] list.jsonl",
    "{a}.jsonl",
    "@list.jsonl",
    "set: one.jsonl",
    "- x.txt",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_of_that_name_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "list", ({"prompt": "wrong", "classes": []},) * 3)
    write_prompts(tmp_path / name, ({"prompt": "right", "classes": ["ball"]},))
    shown = CliRunner().invoke(app, ["config", "show", "--", name])
    assert shown.exit_code == 0, shown.output
    (tmp_path / "config.yaml").write_text(shown.stdout)
    assert load(tmp_path / "config.yaml").prompts == name
    assert CliRunner().invoke(app, ["plan", "--num", "1", "--", name]).exit_code == 0


def test_content_decides_not_the_name_of_the_file(tiny_dataset: Path, tmp_path: Path) -> None:
    config = load(tiny_dataset / "config.yaml")
    prompts = Path(config.prompts).read_bytes()
    for name in ("another name.jsonl", "third.jsonl.txt.jsonl"):
        (tmp_path / name).write_bytes(prompts)
        renamed = config.model_copy(update={"prompts": str(tmp_path / name)})
        jobs.generate(renamed, tmp_path / f"{name} out")
        made, expected = tree_hashes(tmp_path / f"{name} out"), tree_hashes(tiny_dataset)
        assert {k for k in made if made[k] != expected.get(k)} <= {"config.yaml"}


def test_a_word_that_the_model_does_not_know_is_not_found(tmp_path: Path) -> None:
    rows = ({"id": "a", "prompt": "a red ball in the snow", "classes": ["ball", "dog", "Haus"]},)
    prompts = write_prompts(tmp_path / "prompts.jsonl", rows)
    given = (f"prompts={prompts}", "num=1", "generation.num_inference_steps=3")
    with pytest.warns(UserWarning, match="none that model .scenes. can draw"):
        jobs.generate(load(overrides=[*given, *LABELED[:1]]), tmp_path / "out")
    sample = next(iter(open_dataset(tmp_path / "out")))
    assert sample["json"]["not_found"] == ["dog", "Haus"]
