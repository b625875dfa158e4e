"""Quality where the truth is known: validation scenes through the image-to-image path.

Every scene is inverted at low strength (BL section 5) and segmented three ways with the same ks,
starts and merging: per-head features, head-averaged features, and k-means on RGB+XY, the color
baseline. Scores are best-mask class and part IoU, one-to-one (Hungarian) IoU of the instances,
and ARI of the best k against the semantic map.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from synthgen.config import CaptureConfig, GenerationConfig, ModelConfig, SegmentationConfig
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.diffusion.invert import invert
from synthgen.embedded.vocabulary import TUNING_SEEDS, VALIDATION_SEEDS
from synthgen.lab.world.render import Scene, render
from synthgen.lab.world.truth import scene_scores
from synthgen.segmentation.segment import segment_sample
from synthgen.types import HeadFeatures, Prompt, Sample

METHODS = {"per_head": "per-head", "head_average": "head-average", "rgbxy": "rgbxy"}
BATCH = 10
STRENGTH, STEPS = 0.05, 40  # BL section 5: two effective steps of forty
TIMESTEPS = (20, 50, 100, 200, 300, 500)


def bench_quality(num: int = 200, sweep: bool = False) -> dict[str, Any]:
    """Scores of the three methods on validation scenes.

    Args:
        num: Scenes.
        sweep: Also score a quarter of as many tuning scenes over layers, grids and timesteps.

    Returns:
        ``num``, ``layers``, per method the scores with an empty prompt, the same with the
        caption under ``caption``, and with ``sweep`` the scores by setting.
    """
    backbone = load_backbone(ModelConfig())
    seeds, capture = VALIDATION_SEEDS[:num], CaptureConfig()
    features = ("per_head", "head_average")
    result: dict[str, Any] = {"num": num, "layers": backbone.card.capture_layers}
    result |= score(backbone, seeds, capture, tuple(METHODS))
    result["caption"] = score(backbone, seeds, capture, features, caption=True)
    if sweep:  # per-head against head-averaged
        few = TUNING_SEEDS[: max(num // 4, 1)]
        captures = {
            f"layers={part}": CaptureConfig(layers=part) for part in ("up", "down", "both")
        }
        grids = ((8,), (16,), (32,), (8, 16), (16, 32))
        captures |= {f"grids={list(sides)}": CaptureConfig(grids=sides) for sides in grids}
        result["sweep"] = {k: score(backbone, few, c, features) for k, c in captures.items()}
        for t in TIMESTEPS:
            scores = score(backbone, few, capture, features, timestep=t)
            result["sweep"][f"timestep={t}"] = scores
    return result


def score(
    backbone: Backbone,
    seeds: Sequence[int],
    capture: CaptureConfig,
    methods: Sequence[str],
    caption: bool = False,
    timestep: int | None = None,
) -> dict[str, dict[str, float]]:
    """Mean scores of each method over the scenes of ``seeds``."""
    scores: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for start in range(0, len(seeds), BATCH):
        scenes = [render(seed) for seed in seeds[start : start + BATCH]]
        samples = inverted(backbone, scenes, capture, caption, timestep)
        for scene, sample in zip(scenes, samples, strict=True):
            for method in methods:
                found = segment_sample(sample, SegmentationConfig(method=METHODS[method]))
                scores[method].append(scene_scores(scene, found))
        print(f"quality: {start + len(scenes)}/{len(seeds)} scenes", file=sys.stderr)
    return {method: summarize(rows) for method, rows in scores.items()}


def inverted(
    backbone: Backbone,
    scenes: Sequence[Scene],
    capture: CaptureConfig,
    caption: bool = False,
    timestep: int | None = None,
) -> list[Sample]:
    """The scenes' images through the image-to-image path, with captured features.

    Args:
        backbone: Loaded model.
        scenes: Rendered scenes.
        capture: What is recorded.
        caption: Condition on the scene's caption instead of an empty prompt.
        timestep: One UNet call there instead of two denoising steps.
    """
    samples = invert(
        backbone,
        np.stack([scene.image for scene in scenes]),
        [Prompt(str(scene.seed), scene.caption if caption else "") for scene in scenes],
        [scene.seed for scene in scenes],
        GenerationConfig(),
        capture,
        strength=STRENGTH,
        num_inference_steps=STEPS,
        timestep=timestep,
    )
    return [sample for sample in samples if isinstance(sample, Sample)]


def summarize(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Means over scenes; class and part IoU are averaged per class first (BL section 5).

    >>> summarize([{"class_iou": {1: 1.0}, "ari": 0.5}, {"class_iou": {1: 0.0, 2: 1.0}, "ari": 0}])
    {'class_iou': 0.75, 'ari': 0.25}
    """
    rows = list(rows)
    result: dict[str, float] = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, Mapping):
            per_class: dict[int, list[float]] = defaultdict(list)
            for cls, iou in (item for found in values for item in found.items()):
                per_class[cls].append(iou)
            values = [fmean(own) for own in per_class.values()]
        result[name] = fmean(values)
    return result


def embedded_features() -> HeadFeatures:
    """Features of one validation scene captured from the embedded model."""
    backbone = load_backbone(ModelConfig())
    return inverted(backbone, [render(VALIDATION_SEEDS[0])], CaptureConfig())[0].features
