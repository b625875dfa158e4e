"""Quality where the truth is known: validation scenes through the image-to-image path.

Every scene is inverted at low strength (BL section 5) and segmented three ways with the same ks,
starts and merging: per-head features, head-averaged features, and RGB+XY k-means as the chance
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
from synthgen.registry import SEGMENTERS, resolve
from synthgen.segmentation.metrics import adjusted_rand, class_iou, hungarian_iou, part_iou
from synthgen.types import HeadFeatures, Prompt, Sample, Segmentation

METHODS = {"per_head": "per-head", "head_average": "head-average", "rgbxy": "rgbxy"}
BATCH = 10
STRENGTH = 0.05  # BL section 5: two effective steps of forty
STEPS = 40
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
    seeds = VALIDATION_SEEDS[:num]
    capture, settings = CaptureConfig(), SegmentationConfig()
    result: dict[str, Any] = {"num": num, "layers": backbone.card.capture_layers}
    result |= score(backbone, seeds, capture, settings, list(METHODS), caption=False)
    captioned = [name for name in METHODS if name != "rgbxy"]
    result["caption"] = score(backbone, seeds, capture, settings, captioned, caption=True)
    if sweep:
        result["sweep"] = sweep_settings(backbone, TUNING_SEEDS[: max(num // 4, 1)])
    return result


def score(
    backbone: Backbone,
    seeds: Sequence[int],
    capture: CaptureConfig,
    settings: SegmentationConfig,
    methods: Sequence[str],
    caption: bool,
    timestep: int | None = None,
) -> dict[str, dict[str, float]]:
    """Mean scores of each method over the scenes of ``seeds``."""
    scores: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for start in range(0, len(seeds), BATCH):
        scenes = [render(seed) for seed in seeds[start : start + BATCH]]
        for scene, sample in zip(
            scenes, inverted(backbone, scenes, capture, caption, timestep), strict=True
        ):
            for method in methods:
                segment = resolve(METHODS[method], SEGMENTERS)
                scores[method].append(score_scene(scene, segment(sample, settings)))
        print(f"quality: {start + len(scenes)}/{len(seeds)} scenes", file=sys.stderr)
    return {method: summarize(rows) for method, rows in scores.items()}


def inverted(
    backbone: Backbone,
    scenes: Sequence[Scene],
    capture: CaptureConfig,
    caption: bool,
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
    images = np.stack([scene.image for scene in scenes])
    prompts = [Prompt(str(scene.seed), scene.caption if caption else "") for scene in scenes]
    seeds = [scene.seed for scene in scenes]
    samples = invert(
        backbone,
        images,
        prompts,
        seeds,
        GenerationConfig(),
        capture,
        strength=STRENGTH,
        num_inference_steps=STEPS,
        timestep=timestep,
    )
    return [sample for sample in samples if isinstance(sample, Sample)]


def score_scene(scene: Scene, segmentation: Segmentation) -> dict[str, Any]:
    """Scores of one scene; class and part IoU by id, so that classes can be averaged first."""
    masks = segmentation.mask_set.masks
    instances = np.stack([scene.instance == i for i in np.unique(scene.instance) if i > 0])
    return {
        "class_iou": class_iou(scene.semantic, masks),
        "part_iou": part_iou(scene.part, masks),
        "hungarian_iou": hungarian_iou(instances, masks),
        "ari": max(adjusted_rand(scene.semantic, lab) for lab in segmentation.labels),
    }


def summarize(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Means over scenes; class and part IoU are averaged per class first (BL section 5).

    >>> summarize([{"class_iou": {1: 1.0}, "ari": 0.5}, {"class_iou": {1: 0.0, 2: 1.0}, "ari": 0}])
    {'class_iou': 0.75, 'ari': 0.25}
    """
    rows = list(rows)
    result: dict[str, float] = {}
    for name in rows[0]:
        if isinstance(rows[0][name], Mapping):
            per_class: dict[int, list[float]] = defaultdict(list)
            for row in rows:
                for cls, value in row[name].items():
                    per_class[cls].append(value)
            result[name] = fmean(fmean(values) for values in per_class.values())
        else:
            result[name] = fmean(row[name] for row in rows)
    return result


def sweep_settings(backbone: Backbone, seeds: Sequence[int]) -> dict[str, Any]:
    """Per-head against head-averaged over layers, grids and single calls at timesteps."""
    captures = {
        f"layers={layers}": CaptureConfig(layers=layers) for layers in ("up", "down", "both")
    }
    grids = ((8,), (16,), (32,), (8, 16), (16, 32))
    captures |= {f"grids={list(g)}": CaptureConfig(grids=g) for g in grids}
    methods, settings = ["per_head", "head_average"], SegmentationConfig()
    result: dict[str, Any] = {
        name: score(backbone, seeds, capture, settings, methods, caption=False)
        for name, capture in captures.items()
    }
    for timestep in TIMESTEPS:
        result[f"timestep={timestep}"] = score(
            backbone,
            seeds,
            CaptureConfig(),
            settings,
            methods,
            caption=False,
            timestep=timestep,
        )
    return result


def embedded_features() -> HeadFeatures:
    """Features of one validation scene captured from the embedded model."""
    backbone = load_backbone(ModelConfig())
    scene = render(VALIDATION_SEEDS[0])
    return inverted(backbone, [scene], CaptureConfig(), caption=False)[0].features
