"""Folders of photographs as users have them: of every kind, and of none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

GOOD = (
    *("Ünïcode 写真/ß.JPG", "animated.gif", "cmyk.jpg", "deep.png", "gray.png", "rgba.png"),
    *("same/photo.png", "same too/photo.png", "slim.png", "small.png", "turned.jpg"),
)
PHOTO_OVERRIDES = (
    *("dataset.shard_size=6", "generation.batch_size=3", "model.device=cpu", "seed=3"),
    *("generation.scheduler=ddim", "segmentation.clusters.ks=[2,3]", "annotation.timestep=100"),
    *("segmentation.features.components=2", "dataset.preview_every=5"),
)
"""Settings under which the tiny pipeline annotates them in 3 shards."""

BAD = ("bomb.png", "cut.jpg", "empty.jpg", "green.png", "heic.heic", "text.png")
"""Names, in their order within `GOOD` and `BAD`, that `write_photos` writes."""


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A bright box on a dark, noisy ground."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    pixels[height // 4 : height // 2 + 1, width // 3 : 2 * width // 3 + 1] = (230, 180, 20)
    return pixels


def write_photos(folder: Path) -> Path:
    """Write `GOOD`, `BAD`, what is left out of folders; returns the folder."""
    for inner in ("Ünïcode 写真", "same", "same too", ".hidden"):
        (folder / inner).mkdir(parents=True)
    image = Image.fromarray(picture(40, 60))
    image.save(folder / "Ünïcode 写真/ß.JPG", "JPEG", quality=95)
    image.quantize(8).save(
        folder / "animated.gif", save_all=True, append_images=[image.quantize(4)]
    )
    image.convert("CMYK").save(folder / "cmyk.jpg")
    deep = picture(40, 60)[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    image.convert("L").save(folder / "gray.png")
    image.convert("RGBA").save(folder / "rgba.png")
    image.save(folder / "same/photo.png")
    image.save(folder / "same too/photo.png")
    Image.fromarray(picture(3, 400)).save(folder / "slim.png")
    Image.fromarray(picture(2, 3)).save(folder / "small.png")
    exif = Image.Exif()
    exif[0x112] = 6  # a quarter turn
    image.save(folder / "turned.jpg", exif=exif, quality=95)
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "cut.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:700])
    (folder / "empty.jpg").touch()
    Image.new("RGB", (30, 20), (0, 200, 0)).save(folder / "green.png")
    (folder / "heic.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("no image, and not named as one")
    image.save(folder / ".hidden/x.png")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    return folder


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")
