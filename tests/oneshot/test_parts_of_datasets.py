"""Datasets whose labels are of learned parts: drawn images and photographs, same bytes again."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny_config, write_prompts

import synthgen
from synthgen import jobs
from synthgen.cli.options import of_parts
from synthgen.config import Config, LabelConfig, ModelConfig, load
from synthgen.diffusion.generate import load_model
from synthgen.jobs.from_prompts import annotating
from synthgen.jobs.plan import prompts_of

NAMES = ("hole", "body")


@pytest.fixture(scope="module")
def parts(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[8:50, 8:50], mask[20:30, 20:30] = 2, 1
    folder = tmp_path_factory.mktemp("parts") / "parts"
    options = {"names": NAMES, "epochs": 6, "presence": 0.0, "lr": 1.0}
    synthgen.learn_parts(load_model(str(tiny_pipeline)), image, mask, **options).save(folder)
    return folder


@pytest.fixture
def config(tiny_pipeline: Path, parts: Path, tmp_path: Path) -> Config:
    plain = tiny_config(tiny_pipeline, write_prompts(tmp_path / "prompts.jsonl"))
    labeling = LabelConfig(method="parts", parts=str(parts))
    return Config(**{**dict(plain), "classes": NAMES, "labeling": labeling})


def test_every_drawn_sample_has_its_parts(config: Config, tmp_path: Path) -> None:
    manifest = jobs.generate(config, tmp_path / "out")
    assert set(manifest["labels"]["classes"]) == set(NAMES)
    table = json.loads((tmp_path / "out/classes.json").read_text())
    assert (table["1"], table["2"]) == NAMES
    samples = list(synthgen.open_dataset(tmp_path / "out"))
    assert len(samples) == 8
    held = set().union(*(np.unique(sample["semantic"]).tolist() for sample in samples))
    assert held <= {0, 1, 2}
    assert held & {1, 2}
    assert all(sample["json"]["classes"] == [*NAMES] for sample in samples)
    assert "3" not in table
    assert all(jobs.replay(tmp_path / "out", "0000000000").values())
    jobs.generate(config, tmp_path / "again")
    for tar in sorted((tmp_path / "out/data").iterdir()):
        assert tar.read_bytes() == (tmp_path / "again/data" / tar.name).read_bytes()


def test_prompts_need_no_classes(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "plain.txt"
    path.write_text("a cat\n")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert len(prompts_of(Config(**{**dict(config), "prompts": str(path)}))) == 1
    assert not said


def test_photographs_have_their_parts(tiny_pipeline: Path, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(1).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos/a.png")
    overrides, given = of_parts(str(parts), None)
    base = load(None, overrides, {**given, "model": ModelConfig(card=str(tiny_pipeline))})
    jobs.generate(annotating(base, [tmp_path / "photos"]), tmp_path / "out")
    (sample,) = synthgen.open_dataset(tmp_path / "out")
    assert sample["semantic"].shape == (60, 90)
    assert set(np.unique(sample["semantic"])) <= {0, 1, 2}


def test_other_parts_are_another_dataset(config: Config, parts: Path, tmp_path: Path) -> None:
    own = tmp_path / "parts"
    shutil.copytree(parts, own)
    moved = config.model_copy(update={"labeling": LabelConfig(method="parts", parts=str(own))})
    assert jobs.config_digest(moved) == jobs.config_digest(config)
    about = own / "parts.json"
    about.write_text(about.read_text().replace('"noises": 1', '"noises": 2'))
    assert jobs.config_digest(moved) != jobs.config_digest(config)


def test_mistakes_are_one_line(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder where method is parts"):
        LabelConfig(method="parts")
    with pytest.raises(ValueError, match="--classes has no effect with --parts"):
        of_parts("parts", "cat")
    other = config.model_copy(update={"classes": {"cat": 1}})
    with pytest.raises(ValueError, match=r"the names of labeling\.parts, hole, body\. Got cat"):
        jobs.generate(other, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    missing = LabelConfig(method="parts", parts=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"must hold parts\.json"):
        jobs.generate(config.model_copy(update={"labeling": missing}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
