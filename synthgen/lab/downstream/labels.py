"""How good labels are where the truth is known: every labeler with every refiner on scenes.

Scenes go through the image-to-image path at low strength, as a user's photographs would, with
their captions and the names of the classes that are there; nothing else of the truth is used.
Choices are made on tuning scenes and reported on validation scenes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.config import (
    CaptureConfig,
    GenerationConfig,
    LabelConfig,
    ModelConfig,
    SegmentationConfig,
)
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.diffusion.invert import invert
from synthgen.embedded.vocabulary import TUNING_SEEDS, VALIDATION_SEEDS
from synthgen.lab.downstream.refiners import NAMES, TOLERANCE, score_maps
from synthgen.lab.world.render import Scene, render
from synthgen.labeling.label import label_sample
from synthgen.registry import LABELERS, REFINERS
from synthgen.segmentation.features import feature_blocks, upsampling_error
from synthgen.segmentation.segment import segment_sample
from synthgen.types import Prompt, Sample

BATCH = 10
METHODS, REFINED = tuple(LABELERS), tuple(REFINERS)


def measure_labels(
    num: int = 100, tuning: bool = False, labeling: LabelConfig | None = None
) -> dict[str, Any]:
    """Scores of each labeler with each refiner.

    Args:
        num: Scenes.
        tuning: Take tuning scenes, on which settings may be chosen, in place of validation ones.
        labeling: Settings; method and refiner are replaced.

    Returns:
        ``num``, ``scenes``, and under ``scores`` per labeler and refiner those of `score_maps`:
        ``miou`` (undecided pixels are wrong), ``decided_miou``, ``boundary_f``, ``decided``.
    """
    backbone = load_backbone(ModelConfig())
    seeds = (TUNING_SEEDS if tuning else VALIDATION_SEEDS)[:num]
    settings = labeling or LabelConfig()
    scenes: list[Scene] = []
    maps: defaultdict[tuple[str, str], list[UInt8[np.ndarray, "height width"]]]
    maps = defaultdict(list)
    for start in range(0, num, BATCH):
        batch = [render(seed) for seed in seeds[start : start + BATCH]]
        for sample in recorded(backbone, batch, settings):
            for names, semantic in labeled(sample, settings, METHODS, REFINED).items():
                maps[names].append(semantic)
        scenes += batch
        print(f"labels: {len(scenes)}/{num} scenes", file=sys.stderr, flush=True)
    scores = {
        method: {refiner: score_maps(scenes, maps[method, refiner]) for refiner in REFINED}
        for method in METHODS
    }
    return {"num": num, "scenes": "tuning" if tuning else "validation", "scores": scores}


def recorded(backbone: Backbone, scenes: Sequence[Scene], labeling: LabelConfig) -> list[Sample]:
    """The scenes through the image-to-image path, with all that any labeler needs."""
    prompts = [Prompt(str(scene.seed), scene.caption, classes_of(scene)) for scene in scenes]
    samples = invert(
        backbone,
        np.stack([scene.image for scene in scenes]),
        prompts,
        [scene.seed for scene in scenes],
        GenerationConfig(),
        CaptureConfig(),
        labeling=labeling.model_copy(update={"method": "argmax", "self_map": True}),
    )
    found = [sample for sample in samples if isinstance(sample, Sample)]
    assert len(found) == len(scenes), "rendered scenes have finite latents"
    return found


def classes_of(scene: Scene) -> tuple[str, ...]:
    """Names of the classes that a scene shows, by id."""
    return tuple(NAMES[i] for i in np.unique(scene.semantic) if i > 0)


def labeled(
    sample: Sample, labeling: LabelConfig, methods: Sequence[str], refiners: Sequence[str]
) -> dict[tuple[str, str], UInt8[np.ndarray, "height width"]]:
    """Semantic maps, with the ids of the scenes, by labeler and refiner."""
    segmentation = segment_sample(sample, SegmentationConfig())
    blocks = feature_blocks(sample.features, SegmentationConfig().features)
    error = upsampling_error(blocks, sample.image.shape[:2]).float().cpu().numpy()
    ids = np.arange(256, dtype=np.uint8)
    for row, name in enumerate(sample.prompt.class_names, start=1):
        ids[row] = NAMES.index(name)
    maps = {}
    for method in methods:
        for refiner in refiners:
            config = labeling.model_copy(update={"method": method, "refiner": refiner})
            found = label_sample(
                segmentation, sample.heatmaps, sample.self_map, config, sample.image, error
            )
            maps[method, refiner] = ids[found.semantic]
    return maps


def label_table(result: Mapping[str, Any]) -> str:
    """The measurement as a Markdown table."""
    scores: Mapping[str, Mapping[str, Mapping[str, float]]] = result["scores"]
    refiners = list(next(iter(scores.values())))
    lines = [
        f"{result['num']} {result['scenes']} scenes, image-to-image with captions: mIoU, "
        f"undecided pixels being wrong (boundary F at {TOLERANCE:g} px).",
        "",
        f"| labeler | decided | {' | '.join(refiners)} |",
        f"|---|---|{'---|' * len(refiners)}",
    ]
    for method, row in scores.items():
        cells = [f"{each['miou']:.3f} ({each['boundary_f']:.3f})" for each in row.values()]
        decided = row[refiners[0]]["decided"]
        lines.append(f"| {method} | {decided:.1%} | {' | '.join(cells)} |")
    return "\n".join(lines)
