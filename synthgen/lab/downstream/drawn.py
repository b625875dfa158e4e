"""Whether labels of drawn images name what is there: on prompts of several objects.

What an image shows nobody has said, so the embedded Mask2Former, which learned from rendered
scenes, is the witness: an object is there if it sees its class on `LEAST_PIXELS`, and has its
class if most of its pixels that a label names have it. Between objects that look alike to the
diffusion model labels go wrong most; in one image-to-image step they would not (`labels`).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.config import (
    CaptureConfig,
    Config,
    GenerationConfig,
    ModelConfig,
)
from synthgen.diffusion.backbones import load_backbone
from synthgen.diffusion.generate import generate
from synthgen.embedded.mask2former import load_m2f, m2f_weights_dir, predict_scores
from synthgen.embedded.vocabulary import TUNING_SEEDS, VALIDATION_SEEDS
from synthgen.lab.bench.scenes import LEAST_PIXELS, held_out_scenes
from synthgen.lab.downstream.labeled_images import SCENE_CLASSES
from synthgen.lab.downstream.labels import labeled
from synthgen.types import IGNORE, Prompt, Sample

OBJECTS = (2, 3, 4)
"""In the prompts, one third of them each."""

BATCH = 4


def measure_drawn(
    num: int = 72, tuning: bool = False, config: Config | None = None
) -> dict[str, Any]:
    """How the labels of drawn images agree with the embedded Mask2Former.

    Args:
        num: Images; whole thirds of two, three and four objects of different classes.
        tuning: Captions of tuning scenes, on which settings may be chosen.
        config: Settings of masks and labels; labeler `clusters` where they name none.

    Returns:
        ``num``, ``scenes``, ``objects`` that are there, ``class_right`` (share of these),
        ``iou`` (mean over them), ``not_found`` (classes of prompts that no pixel got).
    """
    backbone, (model, processor) = load_backbone(ModelConfig()), load_m2f(m2f_weights_dir())
    config = config or Config()
    if config.labeling.method == "none":
        clusters = config.labeling.model_copy(update={"method": "clusters"})
        config = config.model_copy(update={"labeling": clusters})
    settings = config.labeling
    seeds = TUNING_SEEDS if tuning else VALIDATION_SEEDS
    scenes = [s for n in OBJECTS for s in held_out_scenes(num // len(OBJECTS), n, seeds)]
    prompts = [
        Prompt(str(s.seed), s.caption, tuple(item.class_name for item in s.objects))
        for s in scenes
    ]
    right: list[bool] = []
    ious: list[float] = []
    missing, drawing, capture = 0, GenerationConfig(), CaptureConfig()
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        ours = range(start, start + len(batch))
        for sample in generate(backbone, batch, ours, drawing, capture, settings):
            if not isinstance(sample, Sample):
                continue
            (found,) = labeled(sample, config, [settings.method], [settings.refiner]).values()
            seen_by = predict_scores(model, processor, [sample.image])[0]
            truth = seen_by.argmax(0).numpy().astype(np.uint8)
            for name in sample.prompt.class_names:
                seen = score_object(truth, found, SCENE_CLASSES.index(name))
                missing += not (found == SCENE_CLASSES.index(name)).any()
                if seen is not None:
                    right.append(seen[0])
                    ious.append(seen[1])
        print(f"drawn: {start + len(batch)}/{len(prompts)}", file=sys.stderr, flush=True)
    return {
        "num": len(prompts),
        "scenes": "tuning" if tuning else "validation",
        "objects": len(right),
        "class_right": float(np.mean(right or [False])),
        "iou": float(np.mean(ious or [0.0])),
        "not_found": missing,
    }


def score_object(
    truth: UInt8[np.ndarray, "height width"], found: UInt8[np.ndarray, "height width"], cls: int
) -> tuple[bool, float] | None:
    """Whether an object's pixels have their class, and the IoU; None if it is not there.

    >>> truth = np.full((10, 10), 3, np.uint8)
    >>> score_object(truth, np.where(np.arange(100).reshape(10, 10) < 60, 3, 0).astype("u1"), 3)
    (True, 0.6)
    >>> score_object(truth, truth, 4)
    """
    there, named = truth == cls, found == cls
    if there.sum() < LEAST_PIXELS:
        return None
    votes = np.bincount(found[there], minlength=IGNORE + 1)
    votes[[0, IGNORE]] = 0
    right = bool(votes.any()) and int(votes.argmax()) == cls
    return right, float((there & named).sum() / (there | named).sum())
