"""Look inside one image: draw it from a prompt or invert it, and write the paper's figures.

An image is fitted to the size that the model was trained at; `storage.images` reads it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from synthgen.config import AuditorConfig, CaptureConfig, Config
from synthgen.diffusion.backbones import load_backbone
from synthgen.diffusion.generate import generate, is_one_color
from synthgen.diffusion.invert import invert
from synthgen.diffusion.selection import Layer, select_layers
from synthgen.registry import AUDITORS, resolve
from synthgen.report import figures
from synthgen.segmentation.features import feature_blocks
from synthgen.segmentation.segment import segment_sample
from synthgen.storage.images import OTHER_SUFFIXES, SUFFIXES, read_photo
from synthgen.types import Failure, HeadFeatures, Prompt, Sample


def inspect_sample(
    source: str, out: Path, config: Config, auditor: AuditorConfig | None = None
) -> list[Path]:
    """Write the figures of one sample into a folder.

    Args:
        source: A prompt, or the path of an image (JPEG, PNG, WebP, GIF, BMP, TIFF).
        out: Folder; made if it is missing.
        config: Model, seed, generation and segmentation.
        auditor: Whose masks ours are matched with; None shows the hierarchy.

    Returns:
        The files: image.png, heads.png, clusters.png, masks.png, error.png.

    Raises:
        ValueError: For an image that cannot be read, a prompt that cannot be drawn, or a file
            where the folder should be; all but the second before the model is loaded.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"--out must be a folder. Got {str(out)!r}, and {existing} is a file.")
    sample = _record(source, config)
    capture = load_backbone(config.model).resolve_capture(config.capture)
    features = segmented_features(sample.features, capture)
    segmentation = segment_sample(replace(sample, features=features), config.segmentation)
    image, masks = sample.image, segmentation.mask_set
    if auditor is None:
        shown = figures.hierarchy(image, masks)
    else:
        seen = resolve(auditor.name, AUDITORS, "auditor")(auditor).annotate([image])[0]
        shown = figures.matched_masks(image, seen.masks, masks.masks)
    blocks = feature_blocks(features, config.segmentation.features)
    drawn = {
        "heads": figures.head_gallery(sample.features),
        "clusters": figures.cluster_strip(image, segmentation),
        "masks": shown,
        "error": figures.error_maps(blocks, (image.shape[0], image.shape[1])),
    }
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(out / "image.png")
    for name, figure in drawn.items():
        figure.savefig(out / f"{name}.png", dpi=150)
    return [out / f"{name}.png" for name in ("image", *drawn)]


def read_image(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """An untrusted image, cropped around its center and scaled to (height, width).

    Raises:
        ValueError: In one line, if it is missing, too large, no image, or of one color.
    """
    pixels = read_photo(path)
    if is_one_color(pixels):
        raise ValueError(
            f"An image must show something. Got {path.name!r:.80}, all of one color, "
            f"{pixels[0, 0].tolist()}."
        )
    fitted = ImageOps.fit(Image.fromarray(pixels), size[::-1], Image.Resampling.LANCZOS)
    return np.array(fitted)  # writable, as torch wants it


def image_path(source: str) -> Path | None:
    r"""The path of an image; None for a prompt: no image's name, and no path that exists.

    >>> image_path("photo.jpg"), image_path("a red car on the road")
    (PosixPath('photo.jpg'), None)
    >>> image_path(300 * "very "), image_path("a \0")
    (None, None)
    """
    path = Path(source)
    if path.suffix.lower() in SUFFIXES + OTHER_SUFFIXES:
        return path
    try:
        return path if source and path.exists() else None
    except (OSError, ValueError):  # longer than a name may be, or of characters of none
        return None


def segmented_features(features: HeadFeatures, capture: CaptureConfig) -> HeadFeatures:
    """The part of all captured layers that the masks are made of."""
    layers = [
        Layer(name, value.shape[0], value.shape[2], features.grids[name])
        for name, value in features.values.items()
    ]
    kept = select_layers(layers, capture.layers, capture.grids)
    values = {layer.name: features.values[layer.name] for layer in kept}
    return HeadFeatures(values, {layer.name: layer.grid for layer in kept})


def _record(source: str, config: Config) -> Sample:
    """The sample with the outputs of all layers: a prompt drawn, or an image inverted.

    Inversion is that of BL section 5: strength .05 of 40 steps, an empty prompt.
    """
    capture = config.capture.model_copy(update={"layers": "all", "grids": None})
    path = image_path(source)
    if path is not None:
        read_image(path, (8, 8))  # a mistake is told before the model is loaded
    elif not source.strip():
        raise ValueError("A prompt or the path of an image must be given. Got an empty text.")
    backbone, generation = load_backbone(config.model), config.generation
    if path is not None:
        height, width = backbone.native_size
        image = read_image(path, (generation.height or height, generation.width or width))
        empty = [Prompt("inspect", "")]
        outcome = invert(backbone, image[None], empty, [config.seed], generation, capture)[0]
    else:
        asked = [Prompt("inspect", source)]
        outcome = generate(backbone, asked, [config.seed], generation, capture)[0]
    if isinstance(outcome, Failure):
        raise ValueError(f"The sample could not be made: {outcome.reason}, {outcome.message}")
    return outcome
