"""The downstream comparison: labeled data, arms, jobs in other processes, the command line."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from evaluation_children import note, refuse, wait_for_the_end
from made_dataset import MadeSample, make_sample, write_dataset
from PIL import Image
from typer.testing import CliRunner

from synthgen import progress
from synthgen.cli import app
from synthgen.config import Config, LabelConfig, ModelConfig, load_section
from synthgen.diffusion.backbones import load_backbone
from synthgen.embedded.vocabulary import CLASSES, TUNING_SEEDS
from synthgen.lab.downstream.experiment import DownstreamSettings, SyntheticData, compare
from synthgen.lab.downstream.experiment import evaluate_downstream as evaluate
from synthgen.lab.downstream.jobs import Job, run_jobs
from synthgen.lab.downstream.labeled_images import SCENE_CLASSES, dataset_images, with_names
from synthgen.lab.downstream.labels import label_table, labeled, recorded
from synthgen.lab.downstream.report import markdown, write_downstream
from synthgen.lab.downstream.trainer import TrainSettings, load_averaged
from synthgen.lab.world.render import render
from synthgen.registry import LABELERS, REFINERS
from synthgen.types import IGNORE, LabelMap, Prompt

ARMS = ("synthetic", "rendered", "few", "few+synthetic")
TINY = TrainSettings(steps=2, batch=2, size=32, warm_up=2, validate_every=1)


@pytest.fixture
def stop_switch() -> Iterator[None]:
    """Takes back every request to stop after the test."""
    yield
    progress._stop.clear()


def write_labeled(root: Path, num: int = 4) -> list[np.ndarray]:
    """A finished dataset whose smooth regions are cars and stars; in one, no star was found."""
    samples, semantics = [], []
    for seed in range(num):
        made = make_sample(seed, "a car and a star", (32, 32), preview=False)
        regions = made.segmentation.labels[1]  # k = 5
        semantic = np.array([0, 1, 1 if seed == 2 else 2, 0, IGNORE], np.uint8)[regions]
        none = np.zeros(len(made.record.mask_set))
        labels = LabelMap(
            class_names=("star", "car"),
            semantic=semantic,
            scores=np.ones(semantic.shape, np.float32),
            mask_labels=none.astype(np.uint8),
            mask_scores=none,
            not_found=("car",) if seed == 2 else (),
        )
        prompt = Prompt(f"p{seed}", "a car and a star", ("car", "star"))
        ids = {"car": 1, "star": 2}
        record = replace(made.record, prompt=prompt, labels=labels, class_ids=ids)
        samples.append(MadeSample(record, made.segmentation, preview=False))
        semantics.append(np.array([0, 2, 1], np.uint8)[np.minimum(semantic, 2)])
        semantics[-1][semantic == IGNORE] = IGNORE
    write_dataset(root, samples, num, shard_size=3)
    return semantics


def test_a_labeled_dataset_is_read_with_the_ids_of_its_own_table(tmp_path: Path) -> None:
    expected = write_labeled(tmp_path / "made")
    data = dataset_images(tmp_path / "made")
    assert data.class_names == ("background", "car", "star")
    assert len(data) == 4
    for semantic, wanted in zip(data.semantics, expected, strict=True):
        assert (semantic == wanted).all()
    scenes = with_names(data, SCENE_CLASSES)
    for before, after in zip(data.semantics, scenes.semantics, strict=True):
        assert ((before == 1) == (after == 1 + CLASSES.index("car"))).all()
        assert ((before == 2) == (after == 1 + CLASSES.index("star"))).all()
    assert len(dataset_images(tmp_path / "made", num=2)) == 2
    found = dataset_images(tmp_path / "made", found_only=True)
    assert [(a == b).all() for a, b in zip(found.images, data.images, strict=False)][:2] == [
        True
    ] * 2
    assert len(found) == 3
    with pytest.raises(ValueError, match="Got 4 of 3"):
        dataset_images(tmp_path / "made", num=4, found_only=True)


def test_a_dataset_without_labels_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "bare", [make_sample(0, "a cat", (32, 32))], 1)
    with pytest.raises(ValueError, match=r"must carry labels\. Got none in sample 0000000000"):
        dataset_images(tmp_path / "bare")


class Heard(logging.Handler):
    """Keeps the process and event of what is reported."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str | None, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append((record.processName, getattr(record, "event", "")))


def test_jobs_run_in_processes_and_are_heard(tmp_path: Path) -> None:
    heard = Heard()
    progress.logger.addHandler(heard)
    try:
        run_jobs([Job(f"job {i}", note, (tmp_path, str(i))) for i in range(3)], workers=2)
    finally:
        progress.logger.removeHandler(heard)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert sorted(heard.events) == [(f"job {i}", "step") for i in range(3)]


def test_a_job_that_fails_ends_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job("endless", wait_for_the_end, (tmp_path,)), Job("bad", refuse, (tmp_path,))]
    with pytest.raises(RuntimeError, match="run bad failed with exit code 1"):
        run_jobs(jobs, workers=2)
    assert "synthgen: run bad:" in capfd.readouterr().err


@pytest.mark.usefixtures("stop_switch")
def test_a_stop_reaches_the_jobs(tmp_path: Path) -> None:
    def stop_soon() -> None:
        deadline = time.monotonic() + 200
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        progress.request_stop()

    thread = threading.Thread(target=stop_soon)
    thread.start()
    with pytest.raises(progress.Stopped):
        run_jobs([Job("endless", wait_for_the_end, (tmp_path,))], workers=1)
    thread.join()
    assert (tmp_path / "stopped").exists(), "it ended by itself"


def tiny_settings(
    url: str = "none", arms: tuple[str, ...] = ("rendered", "few")
) -> DownstreamSettings:
    return DownstreamSettings(
        synthetic=SyntheticData(url=url),
        num=4,
        few=2,
        test=3,
        seeds=(0, 1),
        arms=arms,
        training=TINY,
    )


def with_changes(settings: DownstreamSettings, **changes: object) -> DownstreamSettings:
    return settings.model_copy(update=changes)


def test_arms_are_trained_once_and_compared(tmp_path: Path) -> None:
    settings = tiny_settings()
    result = evaluate(tmp_path, settings, workers=0)
    assert set(result["arms"]) == {"rendered", "few"}
    assert "ratio" not in result
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(stamps) == 4
    assert evaluate(tmp_path, settings, workers=0) == result
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    for arm, seed in product(("rendered", "few"), (0, 1)):
        _, meta = load_averaged(tmp_path / "runs" / f"{arm}-{seed}")
        assert result["arms"][arm]["miou"]["values"][seed] == meta["history"][-1]["miou"]
    written = write_downstream(tmp_path, result)
    assert [path.name for path in written] == [
        "downstream.json",
        "downstream.md",
        "downstream.png",
    ]
    assert json.loads(written[0].read_text()) == result
    assert Image.open(written[2]).size[0] > 800
    alone = with_changes(tiny_settings(arms=("few",)), seeds=(0,))
    found = evaluate(tmp_path / "other", alone, workers=1)["arms"]["few"]["miou"]["values"]
    assert found == result["arms"]["few"]["miou"]["values"][:1], "another process, the same bits"
    changed = with_changes(settings, training=TINY.model_copy(update={"lr": 0.5}))
    with pytest.raises(ValueError, match="Got another lr"):
        evaluate(tmp_path, changed, workers=0)


def test_all_arms_learn_from_a_labeled_dataset(tmp_path: Path) -> None:
    write_labeled(tmp_path / "made")
    settings = tiny_settings(str(tmp_path / "made"), ARMS)
    result = evaluate(tmp_path / "out", with_changes(settings, seeds=(0,)), workers=0)
    assert set(result["arms"]) == set(ARMS)
    means = {arm: scores["miou"]["mean"] for arm, scores in result["arms"].items()}
    assert result["ratio"] == pytest.approx(means["synthetic"] / means["rendered"])
    page = markdown(result)
    assert "| 2 rendered + 4 synthetic |" in page
    assert "Ratio synthetic / rendered" in page
    write_labeled(tmp_path / "other", 5)
    other = SyntheticData(url=str(tmp_path / "other"))
    short = with_changes(settings, synthetic=other, num=6)
    with pytest.raises(ValueError, match="Got 6 of 5"):
        evaluate(tmp_path / "short", short, workers=0)


def test_the_comparison_is_of_means_over_seeds() -> None:
    def rows(*values: float) -> list[dict[str, object]]:
        return [{"miou": v, "object_miou": v - 0.1, "class_iou": {"cat": v}} for v in values]

    finals = {
        "synthetic": rows(0.43, 0.47),
        "rendered": rows(0.50, 0.50),
        "few": rows(0.30, 0.34),
        "few+synthetic": rows(0.45, 0.47),
    }
    assert set(finals) == set(ARMS)
    result = compare(finals)
    assert result["arms"]["synthetic"]["miou"]["mean"] == pytest.approx(0.45)
    assert result["arms"]["synthetic"]["miou"]["sd"] == pytest.approx(np.std([0.43, 0.47], ddof=1))
    assert result["ratio"] == pytest.approx(0.90)
    assert result["object_ratio"] == pytest.approx(0.35 / 0.40)
    assert result["gain"] == pytest.approx(0.14)
    assert result["ratio_bar_met"]
    assert result["gain_bar_met"]
    assert not compare({**finals, "synthetic": rows(0.43)})["ratio_bar_met"]
    training = {"model": "segformer", "steps": 7, "batch": 2}
    settings = {"num": 250, "times": 2, "few": 100, "test": 9, "seeds": [0, 1], "tuning": False}
    page = markdown({"settings": {**settings, "training": training}, **result})
    assert "| 500 synthetic, our labels | 0.450 ± 0.028 | 0.350 ± 0.028 | 0.430, 0.470 |" in page
    assert "Ratio synthetic / rendered: 0.900 (without background 0.875); bar 0.88: met." in page
    assert "| cat | 0.45 | 0.50 | 0.32 | 0.46 |" in page


def test_settings_that_make_no_sense_are_one_line() -> None:
    for settings, words in (
        (["training.size=100"], r"training\.size is not valid: must be a multiple of 32"),
        (["few=9"], r"few must be at most num\. Got 9 and 4"),
        (["arms=[real]"], "arms"),
        (["training.lrr=1"], r"training\.lrr must be a known setting.* 'training.lr'"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            load_section(DownstreamSettings, settings, synthetic={"url": "x"}, num=4)
        assert "\n" not in str(error.value)


def test_the_command_line_trains_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["train", "scenes", "--val", "scenes", "--out", str(out), "--num", "4"]
    command += [
        "--val-num",
        "2",
        "--set",
        "batch=2",
        "--set",
        "size=32",
        "--epochs",
        "1",
        "--json",
    ]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    result = json.loads(first.stdout)
    assert (result["images"], result["validated_on"], result["step"]) == (4, 2, 2)
    assert "segformer: step 2, loss" in first.stderr
    for name in ("weights.safetensors", "segmenter.json", "history.json", "curves.png"):
        assert (out / name).stat().st_size > 100
    again = CliRunner().invoke(app, command)
    assert json.loads(again.stdout) == result
    assert "loss" not in again.stderr, "nothing is trained twice"


def test_the_command_line_measures_refiners() -> None:
    shown = CliRunner().invoke(app, ["evaluate", "refiners", "--num", "1", "--tuning"])
    assert shown.exit_code == 0, shown.output
    assert "1 tuning scenes, truth on a 32 x 32 grid" in shown.stdout
    assert "| pamr |" in shown.stdout


def test_the_command_line_measures_labels() -> None:
    """Labels of a scene stand under the ids of the scenes; the table has every pair."""
    command = ["evaluate", "labels", "--num", "1", "--tuning"]
    shown = CliRunner().invoke(app, [*command, "--json"])
    assert shown.exit_code == 0, shown.output
    scores = json.loads(shown.stdout)["scores"]
    assert {name: set(row) for name, row in scores.items()} == {
        name: set(REFINERS) for name in LABELERS
    }
    found = scores["clusters"]["none"]
    assert found["miou"] <= found["decided_miou"] <= 1
    assert 0.5 < found["decided"] <= 1
    table = label_table({"num": 1, "scenes": "tuning", "scores": scores})
    start = f"| clusters | {found['decided']:.1%} | {found['instances']:.3f} |"
    assert f"{start} {found['miou']:.3f} (" in table


def test_labels_of_a_scene_have_its_ids() -> None:
    backbone, scene = load_backbone(ModelConfig()), render(TUNING_SEEDS[1])
    (sample,) = recorded(backbone, [scene], LabelConfig())
    (semantic,) = labeled(sample, Config(), ["clusters"], ["pamr"]).values()
    there = set(np.unique(scene.semantic).tolist())
    assert set(np.unique(semantic).tolist()) <= there | {IGNORE}
    assert {SCENE_CLASSES.index(name) for name in sample.prompt.class_names} == there - {0}


def test_without_data_the_images_are_made_first(tmp_path: Path) -> None:
    """The command alone: prompts of one to four objects, labeled images, trainings, the table."""
    arguments = ["evaluate", "downstream", "--out", str(tmp_path), "--workers", "0", "--json"]
    for setting in (
        *("num=4", "times=2", "few=2", "test=2", "tuning=true", "seeds=[0]", "arms=[synthetic]"),
        *("training.steps=2", "training.batch=2", "training.size=32"),
        *("generate.generation.num_inference_steps=2", "generate.segmentation.clusters.ks=[2,5]"),
    ):
        arguments += ["--set", setting]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["arms"]) == {"synthetic"}
    made = dataset_images(tmp_path / "synthetic")
    assert len(made) == 8
    prompts = [json.loads(row) for row in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert {len(prompt["classes"]) for prompt in prompts} > {1}
