"""Quality where the truth is known: validation scenes through the image-to-image path.

Every scene is inverted at low strength (BL section 5) and segmented with the same ks and merging:
per-head features, head-averaged features, RGB+XY (the color baseline), and cuts of graphs in place
of k-means (`segmentation.ncut`); with borders that follow the image and with the clusters' own.
Scores: `scene_scores`.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch

from synthgen.config import (
    CaptureConfig,
    FeatureConfig,
    GenerationConfig,
    ModelConfig,
    SegmentationConfig,
)
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.diffusion.invert import invert
from synthgen.embedded.vocabulary import TUNING_SEEDS, VALIDATION_SEEDS
from synthgen.lab.world.render import Scene, render
from synthgen.lab.world.truth import scene_scores
from synthgen.segmentation.refine import refine_clusters
from synthgen.segmentation.segment import segment_sample
from synthgen.types import HeadFeatures, Prompt, Sample

METHODS = {
    f"{name}{'_unrefined' if refiner == 'none' else ''}": SegmentationConfig(
        method=name.replace("_", "-"), refiner=refiner
    )
    for name in ("per_head", "head_average", "rgbxy", "ncut", "ward", "diffcut")
    for refiner in ("affinity-guided", "none")
}
BATCH = 10
STRENGTH, STEPS = 0.05, 40  # BL section 5: two effective steps of forty
TIMESTEPS = (20, 50, 100, 200, 300, 500)


Recorder = Callable[[Sequence[Scene]], list[Sample]]


def bench_quality(num: int = 200, sweep: bool = False) -> dict[str, Any]:
    """Scores of the methods on validation scenes.

    Args:
        num: Scenes.
        sweep: Also score a quarter of as many tuning scenes over layers, grids, timesteps and
            other ways to record and to cluster.

    Returns:
        ``num``, ``layers``, per method the scores with an empty prompt, the same with the
        caption under ``caption``, the core-seconds that borders take in 512 x 512 pixels, and with
        ``sweep`` the scores by setting.
    """
    backbone = load_backbone(ModelConfig())
    seeds, record = VALIDATION_SEEDS[:num], partial(inverted, backbone)
    result: dict[str, Any] = {"num": num, "layers": backbone.card.capture_layers}
    result |= score(seeds, record, METHODS)
    few = {name: METHODS[name] for name in ("per_head", "head_average")}
    result["caption"] = score(seeds, partial(record, caption=True), few)
    result["refine_512_core_s"] = refining_seconds(record, seeds[:3])
    if sweep:
        result["sweep"] = sweep_settings(record, TUNING_SEEDS[: max(num // 4, 1)])
    return result


def score(
    seeds: Sequence[int], record: Recorder, methods: Mapping[str, SegmentationConfig]
) -> dict[str, dict[str, float]]:
    """Mean scores of each method over the scenes of ``seeds``."""
    scores: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for start in range(0, len(seeds), BATCH):
        scenes = [render(seed) for seed in seeds[start : start + BATCH]]
        for scene, sample in zip(scenes, record(scenes), strict=True):
            for method, config in methods.items():
                scores[method].append(scene_scores(scene, segment_sample(sample, config)))
        print(f"quality: {start + len(scenes)}/{len(seeds)} scenes", file=sys.stderr)
    return {method: summarize(rows) for method, rows in scores.items()}


def sweep_settings(
    record: Callable[..., list[Sample]], seeds: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Scores of per-head features by what is recorded, and by how it is clustered."""
    grids = ((8,), (16,), (32,), (8, 16), (16, 32))
    captures = {f"layers={part}": CaptureConfig(layers=part) for part in ("up", "down", "both")}
    captures |= {
        f"grids={list(sides)}": CaptureConfig(layers="both", grids=sides) for sides in grids
    }
    recorders: dict[str, Recorder] = {
        name: partial(record, capture=capture) for name, capture in captures.items()
    }
    recorders |= {f"timestep={t}": partial(record, timestep=t) for t in TIMESTEPS}
    averaged = {
        "noises=3": [partial(record, noise=noise) for noise in range(3)],
        "timestep=50,100,200": [partial(record, timestep=t) for t in (50, 100, 200)],
        "flips=2": [partial(record, flip=flip) for flip in (False, True)],
    }
    recorders |= {name: partial(record_mean, runs) for name, runs in averaged.items()}
    rows = {
        name: score(seeds, recorder, {name: SegmentationConfig()})[name]
        for name, recorder in recorders.items()
    }
    minmax = SegmentationConfig(features=FeatureConfig(normalization="minmax"))
    return rows | score(seeds, record, {"normalization=minmax": minmax})


def inverted(
    backbone: Backbone,
    scenes: Sequence[Scene],
    capture: CaptureConfig | None = None,
    *,
    caption: bool = False,
    timestep: int | None = None,
    flip: bool = False,
    noise: int = 0,
) -> list[Sample]:
    """The scenes' images through the image-to-image path, with captured features.

    Args:
        backbone: Loaded model.
        scenes: Rendered scenes.
        capture: What is recorded; None: the defaults.
        caption: Condition on the scene's caption instead of an empty prompt.
        timestep: One UNet call there instead of two denoising steps.
        flip: Show the model the mirrored images; the features are mirrored back.
        noise: Which noise, of several.
    """
    images = np.stack([scene.image for scene in scenes])
    samples = invert(
        backbone,
        images[:, :, ::-1].copy() if flip else images,
        [Prompt(str(scene.seed), scene.caption if caption else "") for scene in scenes],
        [scene.seed + 1_000_000_007 * noise for scene in scenes],
        GenerationConfig(),
        capture or CaptureConfig(),
        strength=STRENGTH,
        num_inference_steps=STEPS,
        timestep=timestep,
    )
    found = [sample for sample in samples if isinstance(sample, Sample)]
    return [mirrored(sample) for sample in found] if flip else found


def mirrored(sample: Sample) -> Sample:
    """A sample whose image and features are those of its mirror image."""
    features = sample.features
    values = {
        name: value.view(len(value), *features.grids[name], -1).flip(2).reshape(value.shape)
        for name, value in features.values.items()
    }
    image = sample.image[:, ::-1].copy()
    return replace(sample, image=image, features=HeadFeatures(values, features.grids))


def record_mean(runs: Sequence[Recorder], scenes: Sequence[Scene]) -> list[Sample]:
    """Samples whose features are the means over several recordings of them."""
    found = []
    for same in zip(*(run(scenes) for run in runs), strict=True):
        every = [sample.features for sample in same]
        values = {
            name: torch.stack([features.values[name] for features in every]).mean(0)
            for name in every[0].values
        }
        found.append(replace(same[0], features=HeadFeatures(values, every[0].grids)))
    return found


def refining_seconds(record: Recorder, seeds: Sequence[int]) -> float:
    """Core-seconds in which the borders of all k of an image of 512 x 512 pixels are refined."""
    taken = []
    for sample in record([render(seed) for seed in seeds]):
        found = segment_sample(sample, METHODS["per_head_unrefined"])
        labels = found.labels.repeat(4, 1).repeat(4, 2)
        image = render(sample.seed, size=512).image
        for _ in range(3):
            start = time.process_time()
            refine_clusters(labels, found.ks, image)
            taken.append(time.process_time() - start)
    return min(taken)


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
