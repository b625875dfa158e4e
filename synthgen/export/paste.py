"""Objects of one sample pasted over another: scenes with more in them than a prompt draws.

Simple Copy-Paste (Ghiasi et al., CVPR 2021), harmonized: borders are feathered inside the object,
so that nothing of its old background comes along, and its colors move towards the light of the
place where it comes to stand. Size, place and mirroring are independent of the class. Whole
objects alone are pasted, and only where every object below keeps most of its pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy import ndimage

from synthgen.dataset.records import encode_image
from synthgen.export.format import ExportSample, Instance

SCALE = (0.4, 1.0)
"""Smallest and largest factor by which what is pasted is resized."""
FEATHER = 0.7
"""Standard deviation in pixels of the border's transition."""
MATCH = 0.5
"""Share of the difference in light, in logarithms, that pasted colors move by."""
GAIN = (0.7, 1.4)
"""Smallest and largest factor of a color channel."""
MIN_VISIBLE = 0.55
"""Smallest share of its pixels that every object below keeps."""
TRIES = 10

_Image = UInt8[np.ndarray, "height width 3"]
_Map = UInt8[np.ndarray, "height width"]


def paste(sample: ExportSample, other: ExportSample, rng: np.random.Generator) -> ExportSample:
    """The sample with the objects of another one, or as it is where there is no place for them.

    Args:
        sample: Labeled, with objects that do not overlap.
        other: The same; may be of another size.
        rng: Decides size, place and mirroring.
    """
    if not other.instances:
        return sample
    for _ in range(TRIES):
        image, numbers = _placed(other, sample.size, rng)
        shown = numbers > 0
        left = [item.mask & ~shown for item in sample.instances]
        kept = [m.sum() / i.mask.sum() for m, i in zip(left, sample.instances, strict=True)]
        if shown.any() and min(kept, default=1.0) >= MIN_VISIBLE:
            break
    else:
        return sample
    below = [replace(item, mask=mask) for item, mask in zip(sample.instances, left, strict=True)]
    above = [replace(item, mask=numbers == n) for n, item in enumerate(other.instances, start=1)]
    instances = (*below, *(item for item in above if item.mask.any()))
    semantic = sample.labels.copy()
    for item in above:
        semantic[item.mask] = item.class_id
    pixels = blend(sample.pixels, image, shown)
    return replace(
        sample,
        image=encode_image(pixels, "png"),
        image_format="png",
        pixels=pixels,
        semantic=semantic,
        instances=instances,
        id_map=_number(instances, sample.size),
        segments=(),
        prompt=f"{sample.prompt}, and {other.prompt}",
    )


def blend(image: _Image, other: _Image, shown: Bool[np.ndarray, "height width"]) -> _Image:
    """The image with the pixels of another that are shown, feathered and in its own light.

    Light is compared just outside of what is shown, where both show what is around it.

    >>> image, other = np.full((1, 5, 3), 100, np.uint8), np.full((1, 5, 3), 40, np.uint8)
    >>> blend(image, other, np.array([[True, True, True, True, False]]))[0, :, 0].tolist()
    [56, 56, 57, 75, 100]
    """
    around = ndimage.binary_dilation(shown, iterations=3) & ~shown
    around &= other.any(axis=-1)  # black beyond the edges of the other image
    gain = np.ones(3)
    if around.any():
        here, there = (each[around].mean(axis=0) + 1.0 for each in (image, other))
        gain = ((here / there) ** MATCH).clip(*GAIN)
    inside = 2.0 * ndimage.gaussian_filter(shown.astype(np.float64), FEATHER, mode="nearest") - 1.0
    alpha = (inside.clip(0.0, 1.0) * shown)[..., None]
    mixed = alpha * (other * gain).clip(0.0, 255.0) + (1.0 - alpha) * image
    blended: _Image = mixed.round().astype(np.uint8)
    return blended


def _placed(
    other: ExportSample, size: tuple[int, int], rng: np.random.Generator
) -> tuple[_Image, _Map]:
    """Its image around its objects, and their numbers, on a canvas; 0 where there is none."""
    numbers = _number(other.instances, other.size)
    rows, columns = (np.flatnonzero((numbers > 0).any(axis)) for axis in (1, 0))
    margin = 8  # so that borders have surroundings
    top, left = max(rows[0] - margin, 0), max(columns[0] - margin, 0)
    right, low = (
        min(int(each[-1]) + 1 + margin, other.size[axis])
        for each, axis in ((columns, 1), (rows, 0))
    )
    box = (int(left), int(top), right, low)
    factor = rng.uniform(*SCALE) * min(size[0] / other.size[0], size[1] / other.size[1])
    wide, high = (max(1, round(factor * (box[i + 2] - box[i]))) for i in (0, 1))
    mirrored = rng.random() < 0.5
    x, y = (
        int(rng.integers(1 - side // 2, room - side // 2))
        for side, room in ((wide, size[1]), (high, size[0]))
    )  # the middle stays in the image
    canvases = []
    for plane, how in (
        (other.pixels, Image.Resampling.LANCZOS),
        (numbers, Image.Resampling.NEAREST),
    ):
        piece = Image.fromarray(plane).crop(box).resize((wide, high), how)
        canvas = Image.new(piece.mode, (size[1], size[0]))
        canvas.paste(
            piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else piece, (x, y)
        )
        canvases.append(np.asarray(canvas))
    return canvases[0], canvases[1]


def _number(instances: tuple[Instance, ...], size: tuple[int, int]) -> _Map:
    """Number of the object at each pixel, from 1; at most 255 are told apart."""
    numbers = np.zeros(size, dtype=np.uint8)
    for number, item in enumerate(instances[:255], start=1):
        numbers[item.mask] = number
    return numbers
