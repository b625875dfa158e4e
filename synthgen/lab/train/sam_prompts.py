"""Prompts with their answers, drawn from rendered scenes.

A pixel of a scene has three true masks: its *part* (all pixels of that part of that object: both
wheels of a car), its *object*, and its *group*, the foreground of all objects. A pixel of the
background has the whole background three times. All three are known here, so every point prompt
asks for all of them, and each of the three ambiguous outputs has its own to answer.

Masks are compared at a quarter of the pixels: every second one of every second row, from a random
first pixel. That is the truth itself at image resolution, at the cost of the decoder's 64x64.
Everything about an image of a batch is a function of (seed, step, number in the batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from synthgen.embedded.vocabulary import PARTS
from synthgen.lab.train.latents import soften
from synthgen.lab.world.corpus import TruthCorpus

LEVELS = ("part", "object", "group")
"""What the ambiguous outputs 1 to 3 stand for."""

BACKGROUND_POINTS, PART_POINTS, OBJECT_POINTS = 1, 4, 3
"""Points an image: on the background; on a part, all parts alike; on an object, all alike."""

NUM_POINTS = BACKGROUND_POINTS + PART_POINTS + OBJECT_POINTS
NUM_BOXES = 2
"""Boxes an image, each around a part or an object with equal odds."""

BOX_JITTER, MAX_JITTER = 0.1, 4.0
"""Noise on the sides of boxes: a tenth of the side, as SAM has it, but at most 4 pixels."""

OBJECT_STRIDE = 32
"""A region is `instance * OBJECT_STRIDE + part`; there are fewer parts than that."""
assert len(PARTS) < OBJECT_STRIDE

OFFSET_SCALE = 32.0
"""Pixels that an offset to an object's center is measured in."""

Regions = UInt8[np.ndarray, "height width"]


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Images with prompts and what they ask for; `half` is the side of the compared masks.

    Args:
        images: RGB in 0-255, changed in color and sharpness.
        points_xy: Pixels.
        point_masks: By level, see `LEVELS`.
        boxes_xyxy: Pixels, with noise.
        box_masks: The part or object that a box is about.
        phase_yx: First row and column that are compared, 0 or 1.
        parts: Part map of the compared pixels, for the auxiliary loss.
        offsets: From the compared pixels to their object's center (y, x), in `OFFSET_SCALE`.
    """

    images: Float[Tensor, "image 3 height width"]
    points_xy: Float[Tensor, "image point 2"]
    point_masks: Bool[Tensor, "image point 3 half half"]
    boxes_xyxy: Float[Tensor, "image box 4"]
    box_masks: Bool[Tensor, "image box half half"]
    phase_yx: Int[Tensor, "image 2"]
    parts: Int[Tensor, "image half half"]
    offsets: Float[Tensor, "image 2 half half"]

    def to(self, device: str) -> PromptBatch:
        """The batch on another device."""
        return PromptBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def region_map(instance: Regions, part: Regions) -> Regions:
    """Number of each pixel's part of its object; 0 on the background.

    >>> region_map(np.array([[0, 2]], np.uint8), np.array([[0, 5]], np.uint8))
    array([[ 0, 69]], dtype=uint8)
    """
    numbers: Regions = (instance * np.uint8(OBJECT_STRIDE) + part).astype(np.uint8)
    return numbers


def level_masks(regions: Regions, region: int) -> Bool[np.ndarray, "3 height width"]:
    """Part, object and group of a pixel of the given region."""
    instance = region // OBJECT_STRIDE
    group = (regions > 0) == (region > 0)
    return np.stack([regions == region, regions // OBJECT_STRIDE == instance, group])


def draw_points(
    regions: Regions, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "point 2"], list[int]]:
    """Points anywhere inside their strata, as (x, y), and the region that each lies in."""
    values = np.unique(regions)
    parts = values[values > 0]
    objects = np.unique(parts // OBJECT_STRIDE)
    wanted = [regions == 0] * BACKGROUND_POINTS
    wanted += [regions == r for r in rng.choice(parts, PART_POINTS)]
    owners = regions // OBJECT_STRIDE
    wanted += [owners == i for i in rng.choice(objects, OBJECT_POINTS)]
    flat = [int(rng.choice(np.flatnonzero(mask))) for mask in wanted]
    ys, xs = np.divmod(flat, regions.shape[1])
    return np.stack([xs, ys], 1).astype(np.float32), regions[ys, xs].tolist()


def draw_boxes(
    regions: Regions, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "box 4"], Bool[np.ndarray, "box height width"]]:
    """Boxes (x0, y0, x1, y1) with noise, and the masks that they surround."""
    values = np.unique(regions)
    parts = values[values > 0]
    masks = []
    for region in rng.choice(parts, NUM_BOXES):
        level = int(rng.random() < 0.5)
        masks.append(level_masks(regions, int(region))[level])
    boxes = np.stack([_surround(mask) for mask in masks])
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    noise = (BOX_JITTER * sides * rng.standard_normal(boxes.shape)).clip(-MAX_JITTER, MAX_JITTER)
    return (boxes + noise).clip(0, regions.shape[0] - 1).astype(np.float32), np.stack(masks)


def _surround(mask: Bool[np.ndarray, "height width"]) -> Float[np.ndarray, " 4"]:
    """The tight box of a mask: first and last column and row."""
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return np.array([xs[0], ys[0], xs[-1], ys[-1]], np.float32)


def center_offsets(instance: Regions) -> Float[np.ndarray, "2 height width"]:
    """Vector (y, x) from each pixel of an object to the mean of its pixels; 0 elsewhere."""
    size = instance.shape
    flat = instance.ravel()
    count = np.bincount(flat).clip(1)
    axes = np.indices(size).reshape(2, -1)
    centers = np.stack([np.bincount(flat, axis) / count for axis in axes])
    offsets = (centers[:, flat] - axes) * (flat > 0) / OFFSET_SCALE
    return offsets.reshape(2, *size).astype(np.float32)


def draw_batch(
    corpus: TruthCorpus, seed: int, step: int, numbers: Sequence[int] | range
) -> PromptBatch:
    """The given images of a step's batch, a function of seed, step and number."""
    rngs = [np.random.default_rng((seed, step, number)) for number in numbers]
    drawn = [_draw_image(corpus, rng) for rng in rngs]
    columns = zip(*drawn, strict=True)
    batch = PromptBatch(*(torch.from_numpy(np.stack(column)) for column in columns))
    softness = torch.tensor([0.8 * rng.random() ** 3 for rng in rngs])
    return replace(batch, images=soften(batch.images, softness[:, None, None, None]))


def _draw_image(corpus: TruthCorpus, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The fields of `PromptBatch` for one image."""
    row, mirrored = int(rng.integers(len(corpus))), bool(rng.random() < 0.5)
    image, instance, part = (
        np.ascontiguousarray(stored[row][:, ::-1] if mirrored else stored[row])
        for stored in (corpus.image, corpus.instance, corpus.part)
    )
    regions = region_map(instance, part)
    points, inside = draw_points(regions, rng)
    boxes, box_masks = draw_boxes(regions, rng)
    phase = rng.integers(2, size=2)
    seen = (..., slice(int(phase[0]), None, 2), slice(int(phase[1]), None, 2))
    answers = np.stack([level_masks(regions[seen], region) for region in inside])
    parts = part[seen].astype(np.int64)
    offsets = center_offsets(instance)[seen]
    colors = _change_colors(image, rng)
    return colors, points, answers, boxes, box_masks[seen], phase, parts, offsets


def _change_colors(
    image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
) -> Float[np.ndarray, "3 height width"]:
    """Channels first, with other gains and brightness, and noise."""
    pixels = image.transpose(2, 0, 1).astype(np.float32)
    gain = 1.0 + 0.06 * rng.standard_normal((3, 1, 1)).clip(-2, 2)
    noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(8.0 * rng.random() ** 2)
    changed = pixels * gain.astype(np.float32) + np.float32(8.0 * rng.standard_normal()) + noise
    return np.asarray(changed.clip(0, 255), np.float32)
