"""What synthetic data is worth downstream: the same network and budget on four sets of images.

| arm | learns from |
|---|---|
| ``synthetic`` | N generated images (or several times N) with our labels, from prompts alone |
| ``rendered`` | N rendered scenes with exact truth: what a perfect annotator would give |
| ``few`` | the first 100 of those |
| ``few+synthetic`` | these 100 and the N generated ones, each as often as the other |

All are tested on rendered scenes that nothing was fitted on. The ratio of the first two is the
figure that Dataset Diffusion reports on VOC (0.80 to 0.81, its table 2: 61.6 / 77.4 for
DeepLabV3-R50, 64.8 / 79.9 for R101). Every run has its folder, is gone on with after a stop, and
ends in the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from synthgen.config.settings import Section
from synthgen.embedded.vocabulary import TRAIN_SEEDS, TUNING_SEEDS, VALIDATION_SEEDS
from synthgen.lab.downstream.jobs import Job, run_jobs
from synthgen.lab.downstream.labeled_images import (
    SCENE_CLASSES,
    LabeledImages,
    dataset_images,
    rendered_images,
    with_names,
)
from synthgen.lab.downstream.trainer import TrainSettings, finished_history, train

Arm = Literal["synthetic", "rendered", "few", "few+synthetic"]

FIRST_RENDERED = TRAIN_SEEDS.start + 500_000
"""Rendered training scenes are none of those that the embedded models were fitted on."""

RATIO_BAR = 0.88  # ours; Dataset Diffusion, table 2: 0.80 to 0.81
GAIN_BAR = 0.02


class SyntheticData(Section):
    """Which generated images are learned from, see `dataset_images`."""

    url: str
    labels: str | None = None
    audited: str | None = None
    found_only: bool = False


class DownstreamSettings(Section):
    """What is compared, and with which budget; the training's seed is replaced."""

    synthetic: SyntheticData
    num: int = Field(500, ge=1, description="N, of generated and of rendered images.")
    times: int = Field(1, ge=1, description="Generated images for each rendered one.")
    few: int = Field(100, ge=1, description="Rendered images of the small arms.")
    test: int = Field(500, ge=1, description="Rendered scenes that are tested on.")
    tuning: bool = Field(False, description="Test on scenes on which settings may be chosen.")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="One training of each.")
    arms: tuple[Arm, ...] = Field(
        ("synthetic", "rendered", "few", "few+synthetic"), min_length=1, description="Which."
    )
    training: TrainSettings = TrainSettings()
    threads: int = Field(1, ge=1, description="Of each process.")

    @model_validator(mode="after")
    def _few_are_some(self) -> DownstreamSettings:
        if self.few > self.num:
            raise ValueError(f"few must be at most num. Got {self.few} and {self.num}.")
        return self

    def seeded(self, seed: int) -> TrainSettings:
        """The training of a seed."""
        return self.training.model_copy(update={"seed": seed})


def evaluate_downstream(
    out: Path, settings: DownstreamSettings, workers: int = 2
) -> dict[str, Any]:
    """Train every arm with every seed and compare them; done runs are not repeated.

    Args:
        out: Folder of the rendered scenes and of the runs.
        settings: What is compared.
        workers: Trainings at once; 0 trains in this process.

    Returns:
        See `compare`, with the settings.

    Raises:
        ValueError: If the data does not fit, or the folder holds runs of other settings.
    """
    data = load_data(out, settings, max(workers, 1))

    def history(arm: str, seed: int) -> list[dict[str, Any]] | None:
        folder = run_folder(out, arm, seed)
        return finished_history(_sources(data, arm), data["test"], folder, settings.seeded(seed))

    runs = [(arm, seed) for seed in settings.seeds for arm in settings.arms]
    missing = [run for run in runs if history(*run) is None]
    jobs = [Job(f"{arm} {seed}", run_arm, (out, settings, arm, seed)) for arm, seed in missing]
    run_jobs(jobs, workers)
    finals: dict[str, list[dict[str, Any]]] = {
        arm: [(history(arm, seed) or [])[-1] for seed in settings.seeds] for arm in settings.arms
    }
    return {"settings": settings.model_dump(mode="json"), **compare(finals)}


def run_arm(out: Path, settings: DownstreamSettings, arm: str, seed: int) -> None:
    """One training; goes on where it was stopped."""
    data = load_data(out, settings, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        sources, folder = _sources(data, arm), run_folder(out, arm, seed)
        for _ in train(sources, data["test"], folder, settings.seeded(seed)):
            pass  # progress is reported
    finally:
        torch.set_num_threads(threads)


def load_data(out: Path, settings: DownstreamSettings, workers: int) -> dict[str, LabeledImages]:
    """The sets of images by name, with the classes of the scenes; what is given comes first.

    Raises:
        ValueError: If there is no such dataset, before any scene is rendered.
    """
    data: dict[str, LabeledImages] = {}
    if any("synthetic" in arm for arm in settings.arms):
        s = settings.synthetic
        num = settings.num * settings.times
        found = dataset_images(s.url, s.labels, num, s.audited, s.found_only)
        data["synthetic"] = with_names(found, SCENE_CLASSES)
    rendered = rendered_images(out / "rendered", settings.num, FIRST_RENDERED, workers)
    data["rendered"], data["few"] = rendered, rendered.first(settings.few)
    split, seeds = ("validation", VALIDATION_SEEDS), ("tuning", TUNING_SEEDS)
    folder, scenes = seeds if settings.tuning else split
    data["test"] = rendered_images(out / folder, settings.test, scenes.start, workers)
    return data


def _sources(data: Mapping[str, LabeledImages], arm: str) -> list[LabeledImages]:
    return [data[name] for name in arm.split("+")]


def run_folder(out: Path, arm: str, seed: int) -> Path:
    """Where a training keeps its checkpoint."""
    return out / "runs" / f"{arm}-{seed}"


def compare(finals: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, the ratio of BL's bar and the gain.

    Args:
        finals: Per arm and seed the scores after the last step.

    Returns:
        ``arms`` (per arm and score ``mean``, ``sd``, ``values``), ``class_iou`` (per arm the
        means), and where the arms are there ``ratio``, ``object_ratio`` (synthetic by rendered),
        ``gain`` (few+synthetic less few), each with whether its bar is met.
    """
    arms = {
        arm: {name: _spread([row[name] for row in rows]) for name in ("miou", "object_miou")}
        for arm, rows in finals.items()
    }
    result: dict[str, Any] = {"arms": arms}
    result["class_iou"] = {arm: _class_means(rows) for arm, rows in finals.items()}
    means = {arm: scores["miou"]["mean"] for arm, scores in arms.items()}
    if {"synthetic", "rendered"} <= arms.keys():
        objects = {arm: scores["object_miou"]["mean"] for arm, scores in arms.items()}
        for name, known in (("ratio", means), ("object_ratio", objects)):
            rendered = known["rendered"]  # 0 where even truth has taught nothing
            result[name] = known["synthetic"] / rendered if rendered else 0.0
        result["ratio_bar_met"] = result["ratio"] >= RATIO_BAR
    if {"few", "few+synthetic"} <= arms.keys():
        result["gain"] = means["few+synthetic"] - means["few"]
        result["gain_bar_met"] = result["gain"] >= GAIN_BAR
    return result


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation.

    >>> _spread([0.5, 0.7])["sd"].__round__(4)
    0.1414
    """
    deviation = stdev(values) if len(values) > 1 else 0.0
    return {"mean": fmean(values), "sd": deviation, "values": list(values)}


def _class_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row["class_iou"])
    return {name: fmean(row["class_iou"].get(name, 0.0) for row in rows) for name in names}
