"""The images of a study: drawn from prompts, or rendered scenes sent through image-to-image.

Generated images have no truth; they are judged by an auditor, as in BL. Rendered scenes have: they
are inverted with an empty prompt at BL's low strength (section 5), so that a row can be scored
against objects and parts as well. Scenes come from the tuning seeds, for a study is there to
choose settings by.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from synthgen.auditing.annotations import NO_POINT
from synthgen.config import CaptureConfig, Config
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.generate import generate, resolve_settings
from synthgen.diffusion.invert import invert
from synthgen.embedded.vocabulary import IMAGE_SIZE, TUNING_SEEDS
from synthgen.jobs.identity import environment, model_content
from synthgen.jobs.plan import batches, plan, prompts_of
from synthgen.lab.world.render import Scene, render
from synthgen.lab.world.truth import scene_scores, true_objects, true_parts
from synthgen.types import Annotations, Failure, PlannedSample, Prompt, Sample, Segmentation

Source = Literal["generated", "rendered"]
Batch = tuple[PlannedSample, ...]

STRENGTH, STEPS = 0.05, 40  # BL section 5: two effective steps of forty
STUDY_VERSION = 1
"""Raised whenever a change of ours changes captures or scores."""


def plan_images(config: Config, source: Source) -> tuple[Batch, ...]:
    """The images of a study in the batches that they are made in.

    Raises:
        ValueError: If the prompts cannot be read, or there are fewer scenes than asked for.
    """
    size = config.generation.batch_size
    if source == "generated":
        return tuple(group for spec in plan(config) for group in batches(spec.samples, size))
    if config.num > len(TUNING_SEEDS):
        raise ValueError(f"--num must be at most {len(TUNING_SEEDS)} scenes. Got {config.num}.")
    scenes = [
        PlannedSample(f"{index:010d}", Prompt(f"scene-{seed}", ""), 0, seed)
        for index, seed in enumerate(TUNING_SEEDS[: config.num])
    ]
    return tuple(batches(scenes, size))


def make_images(
    backbone: Backbone, batch: Batch, config: Config, capture: CaptureConfig, source: Source
) -> list[Sample | Failure]:
    """The images of a batch with what was captured of them."""
    prompts, seeds = [item.prompt for item in batch], [item.seed for item in batch]
    if source == "generated":
        return generate(backbone, prompts, seeds, config.generation, capture)
    images = np.stack([render(seed).image for seed in seeds])
    return invert(backbone, images, prompts, seeds, config.generation, capture, STRENGTH, STEPS)


def image_size(backbone: Backbone, config: Config, source: Source) -> tuple[int, int]:
    """Height and width of the images in pixels."""
    if source == "rendered":
        return IMAGE_SIZE, IMAGE_SIZE
    settings = resolve_settings(backbone, config.generation)
    return settings.height, settings.width


def images_identity(config: Config, source: Source) -> dict[str, Any]:
    """Everything that determines the captures of an image but the layers that are kept."""
    settings = config.digest_settings()
    kept = {name: settings[name] for name in ("seed", "model", "generation", "algorithm_version")}
    decided = ("layers", "grids")
    capture = {k: v for k, v in settings["capture"].items() if k not in decided}
    if source == "generated":
        origin: dict[str, Any] = {"prompts": prompts_of(config).digest}
    else:
        origin = {"scenes": TUNING_SEEDS.start, "strength": STRENGTH, "steps": STEPS}
    return {
        "version": STUDY_VERSION,
        "images": origin,
        "settings": {**kept, "capture": capture},
        **model_content(config.model),
        "environment": environment(config),
    }


def truth_annotations(scene: Scene) -> Annotations:
    """A scene as a perfect auditor would see it: background, objects and their parts.

    Objects and parts of fewer than 20 visible pixels are left out, as in the evaluation of
    scenes-sam.
    """
    background = (scene.instance == 0)[None]
    masks = np.concatenate([background, true_objects(scene), true_parts(scene)])
    ones = (1.0,) * len(masks)
    return Annotations(masks, ones, ones, (NO_POINT,) * len(masks), ("",) * len(masks))


def truth_scores(scene: Scene, segmentation: Segmentation) -> dict[str, float]:
    """Scores against a scene's truth: mean best IoU of its classes and of its parts (BL section
    5, averaged per image), one-to-one IoU of its objects, ARI of the best k.
    """
    found = scene_scores(scene, segmentation)
    means = {
        name: float(np.mean(list(found[name].values()))) if found[name] else float("nan")
        for name in ("class_iou", "part_iou")
    }
    return {**means, "object_hungarian": found["hungarian_iou"], "ari": found["ari"]}
