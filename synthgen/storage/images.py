"""Images that users bring, as they see them: upright, in 8 bits of sRGB, opaque, the first frame.

A file is untrusted. Its bytes and its pixels are counted before a pixel is decoded, and only the
formats below are tried, whatever its name says. Images of a dataset are read by `records`, bit for
bit as they are stored: their masks know nothing of orientations.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from synthgen.storage.untrusted import one_line

MAX_PIXELS = 8192 * 8192
"""Larger images are refused by the readers before a pixel is decoded (decompression bombs)."""

MAX_BYTES = 64 * 1024 * 1024
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
OTHER_SUFFIXES = (".avif", ".heic", ".jp2", ".jxl", ".svg")
"""Of images that are not read."""

_IMAGE_ERRORS = (  # what Pillow raises on damaged files, beside its own
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


def read_photo(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of an image file.

    Raises:
        ValueError: In one line with its name, if it is missing, too large, no image, or of pixels
            that have no one look (floating point, more than 16 bits).
    """
    name = one_line(repr(path.name), 80)
    try:
        num_bytes = path.stat().st_size
        if num_bytes > MAX_BYTES:
            raise ValueError(f"An image must have at most {MAX_BYTES:,} bytes. Got {num_bytes:,}.")
        return decode_photo(path.read_bytes())
    except OSError as error:
        raise ValueError(
            f"An image must be a readable file. Got {name}: {error.strerror}."
        ) from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def decode_photo(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of an image's bytes, in sRGB if it has a color profile.

    Transparent pixels are white, EXIF's orientation is applied. A profile that cannot be used
    is said in one warning, and the pixels are taken for sRGB, as most viewers do.

    Raises:
        ValueError: In one line, as `read_photo` does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that nothing is made of
        image = open_image(data, FORMATS)
        with readable_image():
            if image.mode == "F":
                raise ValueError("floating point")
            profile = image.info.get("icc_profile")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits; Pillow would clip them at 255
                gray = np.asarray(image)
                if gray.min() < 0 or gray.max() > 0xFFFF:
                    raise ValueError(f"more than 16 bits ({gray.min()} to {gray.max()})")
                eight = (gray.astype(np.uint32) * 255 + 0x7FFF) // 0xFFFF
                image = Image.fromarray(eight.astype(np.uint8))
            alpha = None
            if image.has_transparency_data:
                image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
                alpha = image.getchannel("A")
                image = image.convert(image.mode[:-1])
            elif image.mode not in ("L", "CMYK"):
                image = image.convert("RGB")
            image, unusable = _in_srgb(image, profile)
            if alpha is not None:
                white = Image.new("RGB", image.size, "white")
                image = Image.composite(image, white, alpha)
            pixels = np.array(image)
    if unusable:
        warnings.warn(
            f"A color profile must be one of its image's colors; pixels are taken for sRGB "
            f"without it. Got {unusable}.",
            stacklevel=2,
        )
    return pixels


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """An L, RGB or CMYK image in sRGB by its ICC profile, and why that profile was of no use."""
    unusable = ""
    if profile:
        try:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            found = ImageCms.profileToProfile(image, embedded, srgb, outputMode="RGB")
            if found is not None:
                return found, ""
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
            unusable = one_line(error, 80).rstrip(".")
    return image.convert("RGB"), unusable


def open_image(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """An untrusted image of one of Pillow's formats, measured and not decoded yet.

    Raises:
        ValueError: If it is none, or larger than ``MAX_PIXELS``.
    """
    with readable_image():
        try:
            image = Image.open(io.BytesIO(data), formats=formats)
        except UnidentifiedImageError:  # whose message names a stream of ours
            raise ValueError(f"nothing that can be read as {', '.join(formats)}") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"An image must have at most {MAX_PIXELS} pixels. Got {image.width} x {image.height}."
        )
    return image


@contextmanager
def readable_image() -> Iterator[None]:
    """Turn whatever Pillow raises on a damaged image into one line."""
    try:
        yield
    except _IMAGE_ERRORS as error:
        raise ValueError(
            f"An image must be readable. Got {one_line(error).rstrip('.')}."
        ) from None
