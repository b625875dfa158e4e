"""How well the embedded CLIP tells scenes apart by their captions, and names single objects.

Retrieval is over groups of 50 scenes: the share whose own caption is the nearest of 50, and of
captions whose own scene is. Classes of single objects are asked for as GEM asks ("a photo of a").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from synthgen.embedded.clip import SHIPPED_CLIP, Clip, clip_weights_dir
from synthgen.embedded.vocabulary import CLASSES, IMAGE_SIZE, VALIDATION_SEEDS
from synthgen.lab.language.gem import TEMPLATE
from synthgen.lab.world.render import Scene, render

CHOICES = 50
"""Captions that one is found among."""


def bench_clip(
    num: int = 200, weights: Path = SHIPPED_CLIP, first: int = VALIDATION_SEEDS[0]
) -> dict[str, float]:
    """Quality of the embedded CLIP.

    Args:
        num: Validation scenes.
        weights: Their folder.
        first: Seed of the first scene.

    Returns:
        `caption_of_50` and `scene_of_50`, `single_class_accuracy`.
    """
    clip = Clip(clip_weights_dir(weights))
    scenes = [render(first + i) for i in range(num)]
    images, texts = embed(clip, scenes), clip.texts([scene.caption for scene in scenes])
    singles = [scene for scene in scenes if len(scene.objects) == 1]
    names = clip.texts([TEMPLATE.format(name) for name in CLASSES])
    said = (embed(clip, singles) @ names.T).argmax(1).tolist() if singles else []
    right = [
        CLASSES[i] == scene.objects[0].class_name for i, scene in zip(said, singles, strict=True)
    ]
    figures = {
        "caption_of_50": retrieval(images, texts),
        "scene_of_50": retrieval(texts, images),
        "single_class_accuracy": float(np.mean(right)) if right else 0.0,
    }
    return {name: round(value, 4) for name, value in figures.items()}


def embed(clip: Clip, scenes: Sequence[Scene], at_once: int = 25) -> Float[Tensor, "scene dim"]:
    """Embeddings of whole scenes."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = [torch.from_numpy(scene.image) for scene in scenes]
    parts = [images[start : start + at_once] for start in range(0, len(images), at_once)]
    return torch.cat([clip.images(clip.pixels(part, size)) for part in parts])


def retrieval(
    queries: Float[Tensor, "pair dim"], found: Float[Tensor, "pair dim"], choices: int = CHOICES
) -> float:
    """Share of queries whose own partner is the nearest of `choices`, group by group.

    >>> retrieval(torch.eye(4), torch.eye(4), 2)
    1.0
    """
    choices = min(choices, len(queries))
    hits: list[bool] = []
    for start in range(0, len(queries) - choices + 1, choices):
        part = slice(start, start + choices)
        nearest = (queries[part] @ found[part].T).argmax(1)
        hits += (nearest == torch.arange(choices, device=nearest.device)).tolist()
    return float(np.mean(hits))
