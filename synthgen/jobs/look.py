"""Photos instead of drawn images: what a model's attention says of them, or why they are none.

A photo of more than `MAX_PIXELS` is segmented and labeled at a whole fraction of its size, and
what is found is brought back to its pixels: features have far fewer places than that, and ten
megapixels at full size take 30 s and 3 GB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from synthgen.config import ANNOTATION_STEPS, Config
from synthgen.dataset.photos import PhotoList
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.invert import invert_any
from synthgen.storage.images import decode_photo
from synthgen.types import Failure, LabelMap, Prompt, Sample, Segmentation

MAX_PIXELS = 2**22
"""Pixels at which masks are made; of twelve megapixels, those are every other row and column."""


def look_at(
    photos: PhotoList,
    backbone: Backbone,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    config: Config,
) -> list[Sample | Failure]:
    """The samples of a batch of prompts that name photos.

    Raises:
        RuntimeError: If a photo is gone, or another one than when the list was made.
        OSError: If a store cannot be reached.
    """
    images, found = {}, dict[int, Sample | Failure]()
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        assert prompt.photo is not None
        try:
            images[index] = decode_photo(photos.read(prompt.photo))
        except ValueError as error:
            found[index] = Failure(prompt, seed, "bad_photo", str(error))
    asked = config.annotation
    made = invert_any(
        backbone,
        list(images.values()),
        [prompts[index] for index in images],
        [seeds[index] for index in images],
        config.generation,
        config.capture,
        strength=asked.strength,
        num_inference_steps=config.generation.num_inference_steps or ANNOTATION_STEPS,
        timestep=asked.timestep,
        labeling=config.labeling,
        noises=asked.noises,
        tiles=asked.tiles,
        self_map=config.segmentation.needs_self_map,
    )
    found.update(zip(images, made, strict=True))
    return [found[index] for index in range(len(prompts))]


def reduced(sample: Sample) -> Sample:
    """The sample of a photo at the size at which its masks are made; most and drawn ones as is."""
    height, width = sample.image.shape[:2]
    step = math.ceil(math.sqrt(height * width / MAX_PIXELS))
    if sample.prompt.photo is None or step <= 1:
        return sample
    return replace(sample, image=np.array(Image.fromarray(sample.image).reduce(step)))


def brought_back(
    sample: Sample, seen: Sample, segmentation: Segmentation, labels: LabelMap | None
) -> tuple[Segmentation, LabelMap | None]:
    """Masks and labels of a `reduced` sample, at the size of its photo."""
    if seen is sample:
        return segmentation, labels
    height, width = sample.image.shape[:2]
    step = math.ceil(max(sample.image.shape) / max(seen.image.shape))
    rows, columns = np.arange(height)[:, None] // step, np.arange(width) // step

    def enlarged(small: np.ndarray) -> Any:
        return np.ascontiguousarray(small[..., rows, columns])

    segmentation = replace(
        segmentation, masks=enlarged(segmentation.masks), labels=enlarged(segmentation.labels)
    )
    if labels is not None:
        semantic, scores = enlarged(labels.semantic), enlarged(labels.scores)
        labels = replace(labels, semantic=semantic, scores=scores)
    return segmentation, labels
