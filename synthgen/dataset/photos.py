"""Images that users bring, as they see them: upright, in 8 bits, opaque, the first frame.

A file is untrusted. Its bytes and its pixels are counted before a pixel is decoded, and only the
formats below are tried, whatever its name says. Images of a dataset are read by `records`, bit for
bit as they are stored: their masks know nothing of orientations.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from synthgen.dataset.records import open_image, readable_image
from synthgen.storage.untrusted import one_line

MAX_BYTES = 64 * 1024 * 1024
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


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
    """The pixels of an image's bytes; transparent ones are white, EXIF's orientation is applied.

    Raises:
        ValueError: In one line, as `read_photo` does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that nothing is made of
        image = open_image(data, FORMATS)
        with readable_image():
            if image.mode == "F":
                raise ValueError("floating point")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits; Pillow would clip them at 255
                gray = np.asarray(image)
                if gray.min() < 0 or gray.max() > 0xFFFF:
                    raise ValueError(f"more than 16 bits ({gray.min()} to {gray.max()})")
                eight = (gray.astype(np.uint32) * 255 + 0x7FFF) // 0xFFFF
                image = Image.fromarray(eight.astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
