"""What synthetic data is worth downstream: the same network and budget on four sets of images.

| arm | learns from |
|---|---|
| ``synthetic`` | N generated images with our labels: nothing but prompts was given |
| ``rendered`` | N rendered scenes with exact truth: what a perfect annotator would give |
| ``few`` | the first 100 of those |
| ``few+synthetic`` | these 100 and the N generated ones, each as often as the other |

All are tested on rendered scenes that nothing was fitted on. The ratio of the first two is the
figure that Dataset Diffusion reports on VOC (0.80 to 0.81, its table 2: 61.6 / 77.4 for
DeepLabV3-R50, 64.8 / 79.9 for R101). Every run has its folder, is gone on with after a stop, and
ends in the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

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

ARMS: Mapping[str, tuple[str, ...]] = {
    "synthetic": ("synthetic",),
    "rendered": ("rendered",),
    "few": ("few",),
    "few+synthetic": ("few", "synthetic"),
}
"""Arm to the sets of images that it learns from."""

FIRST_RENDERED = TRAIN_SEEDS.start + 500_000
"""Rendered training scenes are none of those that the embedded models were fitted on."""

RATIO_BAR = 0.80  # Dataset Diffusion, table 2
GAIN_BAR = 0.02


@dataclass(frozen=True, slots=True)
class SyntheticData:
    """Which generated images are learned from, see `dataset_images`."""

    url: str
    labels: str | None = None
    audited: str | None = None
    found_only: bool = False


@dataclass(frozen=True, slots=True)
class DownstreamSettings:
    """What is compared, and with which budget.

    Args:
        synthetic: The generated images.
        num: N, of generated and of rendered images.
        few: Rendered images of the small arms.
        test: Rendered scenes that are tested on.
        tuning: Test on tuning scenes, on which settings may be chosen.
        seeds: One training of each arm for each of them.
        arms: Rows of ARMS.
        training: The network and its budget, the same for all arms; its seed is replaced.
        threads: Of each process.
    """

    synthetic: SyntheticData
    num: int = 500
    few: int = 100
    test: int = 500
    tuning: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(ARMS)
    training: TrainSettings = field(default_factory=TrainSettings)
    threads: int = 1

    def __post_init__(self) -> None:
        if not set(self.arms) <= set(ARMS) or not self.arms or not self.seeds:
            raise ValueError(
                f"arms must be of {', '.join(ARMS)}, with at least one seed. Got {self.arms} and "
                f"{len(self.seeds)} seeds."
            )
        if self.few > self.num:
            raise ValueError(f"few must be at most num. Got {self.few} and {self.num}.")


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
    runs = [(arm, seed) for seed in settings.seeds for arm in settings.arms]
    missing = [run for run in runs if _history(out, settings, data, *run) is None]
    jobs = [Job(f"{arm} {seed}", run_arm, (out, settings, arm, seed)) for arm, seed in missing]
    run_jobs(jobs, workers)
    histories = {run: _history(out, settings, data, *run) or [] for run in runs}
    finals = {arm: [histories[arm, seed][-1] for seed in settings.seeds] for arm in settings.arms}
    return {"settings": json.loads(json.dumps(asdict(settings))), **compare(finals)}


def run_arm(out: Path, settings: DownstreamSettings, arm: str, seed: int) -> None:
    """One training; goes on where it was stopped."""
    data = load_data(out, settings, 1)
    training = replace(settings.training, seed=seed)
    sources = [data[name] for name in ARMS[arm]]
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        for _ in train(sources, data["test"], run_folder(out, arm, seed), training):
            pass  # progress is reported
    finally:
        torch.set_num_threads(threads)


def load_data(out: Path, settings: DownstreamSettings, workers: int) -> dict[str, LabeledImages]:
    """The sets of images by name, with the classes of the scenes; what is given comes first.

    Raises:
        ValueError: If there is no such dataset, before any scene is rendered.
    """
    data: dict[str, LabeledImages] = {}
    if any("synthetic" in ARMS[arm] for arm in settings.arms):
        data["synthetic"] = _synthetic_images(settings)
    seeds = TUNING_SEEDS if settings.tuning else VALIDATION_SEEDS
    split = "tuning" if settings.tuning else "validation"
    rendered = rendered_images(out / "rendered", settings.num, FIRST_RENDERED, workers)
    data["rendered"], data["few"] = rendered, rendered.first(settings.few)
    data["test"] = rendered_images(out / split, settings.test, seeds.start, workers)
    return data


def _synthetic_images(settings: DownstreamSettings) -> LabeledImages:
    wanted = settings.synthetic
    found = dataset_images(
        wanted.url, wanted.labels, settings.num, wanted.audited, wanted.found_only
    )
    return with_names(found, SCENE_CLASSES)


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
        result["ratio"] = _ratio(means)
        result["object_ratio"] = _ratio(objects)
        result["ratio_bar_met"] = result["ratio"] >= RATIO_BAR
    if {"few", "few+synthetic"} <= arms.keys():
        result["gain"] = means["few+synthetic"] - means["few"]
        result["gain_bar_met"] = result["gain"] >= GAIN_BAR
    return result


def _history(
    out: Path,
    settings: DownstreamSettings,
    data: Mapping[str, LabeledImages],
    arm: str,
    seed: int,
) -> list[dict[str, Any]] | None:
    """The validations of a finished training, None where it is not finished."""
    sources = [data[name] for name in ARMS[arm]]
    training = replace(settings.training, seed=seed)
    return finished_history(sources, data["test"], run_folder(out, arm, seed), training)


def _ratio(scores: Mapping[str, float]) -> float:
    """Synthetic by rendered; 0 where even truth has taught nothing."""
    return scores["synthetic"] / scores["rendered"] if scores["rendered"] else 0.0


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation.

    >>> _spread([0.5, 0.7])["sd"].__round__(4)
    0.1414
    """
    deviation = stdev(values) if len(values) > 1 else 0.0
    return {"mean": fmean(values), "sd": deviation, "values": list(values)}


def _class_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = list(dict.fromkeys(name for row in rows for name in row["class_iou"]))
    return {name: fmean(row["class_iou"].get(name, 0.0) for row in rows) for name in names}
