"""Images that users bring: every orientation, depth and kind as a viewer shows it, or refused."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from synthgen.report.inspection import read_image
from synthgen.storage.images import decode_photo, read_photo

UPRIGHT = np.zeros((24, 16, 3), dtype=np.uint8)
UPRIGHT[:12] = (80, 160, 240)
UPRIGHT[12:] = (30, 120, 30)
UPRIGHT[:6, :4] = (250, 200, 0)
ORIENTATION = 0x112


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright_whatever_way_the_camera_was_held(kind: str, orientation: int) -> None:
    turned = UPRIGHT if orientation < 5 else UPRIGHT.transpose(1, 0, 2)
    upper, lower = [(1, 1), (1, -1), (-1, -1), (-1, 1)], [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    rows, columns = [*upper, *lower][orientation - 1]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(np.ascontiguousarray(turned[::rows, ::columns]))
    options = {"quality": 100} if kind in ("JPEG", "WEBP") else {}
    found = decode_photo(stored(image, kind, exif=exif, **options))
    assert found.shape == UPRIGHT.shape
    assert np.abs(found.astype(int) - UPRIGHT).mean() < 6


RAMP = np.linspace(0, 65535, 32 * 32).reshape(32, 32)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    gray = RAMP.astype(np.uint16)
    for data in (
        stored(Image.fromarray(gray), "PNG"),
        stored(Image.fromarray(gray), "TIFF"),
        stored(Image.fromarray(gray.astype(np.int32)), "TIFF"),
    ):
        found = decode_photo(data)
        assert np.abs(found[..., 0] - RAMP / 257).max() <= 0.51
        assert (found == found[..., :1]).all()
    for deep in (Image.fromarray(gray.astype(np.int32) * 9), Image.fromarray(RAMP.astype("f4"))):
        with pytest.raises(ValueError, match="An image must"):
            decode_photo(stored(deep, "TIFF"))


def test_transparent_pixels_are_white() -> None:
    alpha = np.zeros((24, 16), dtype=np.uint8)
    alpha[12:] = 255
    image = Image.fromarray(np.dstack([UPRIGHT, alpha]))
    palette = Image.fromarray(UPRIGHT).convert("P")
    gray = Image.fromarray(UPRIGHT[..., 1]).convert("LA")
    gray.putalpha(Image.fromarray(alpha))
    for data in (stored(image, "PNG"), stored(image, "WEBP", lossless=True), stored(gray, "PNG")):
        found = decode_photo(data)
        assert (found[:12] == 255).all()
        assert (found[12:, :, 1] == UPRIGHT[12:, :, 1]).all()
    index = palette.getpixel((0, 0))
    found = decode_photo(stored(palette, "PNG", transparency=index))
    assert (found[0, 0] == 255).all()
    assert (found[-1, -1] != 255).all()


def test_other_kinds_look_as_in_a_viewer() -> None:
    image = Image.fromarray(UPRIGHT)
    frames = [Image.fromarray(255 - UPRIGHT)]
    cases = [
        stored(image.convert("CMYK"), "JPEG", quality=100),
        stored(image.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        stored(image.quantize(8), "PNG"),
        stored(image, "BMP"),
        stored(image.quantize(8), "GIF", save_all=True, append_images=frames),
        stored(image, "TIFF", save_all=True, append_images=frames),
        stored(image, "WEBP", save_all=True, append_images=frames, lossless=True),
        stored(image, "PNG", save_all=True, append_images=frames),
    ]
    for data in cases:
        assert np.abs(decode_photo(data).astype(int) - UPRIGHT).max() < 40
    bits = decode_photo(stored(Image.fromarray(UPRIGHT[..., 2] > 100), "PNG"))
    assert {*np.unique(bits)} == {0, 255}


def made_profile(gray: bool = False) -> bytes:
    """sRGB with red and green exchanged; or a gray one whose values are linear light."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if not gray:
        for old, new in ((b"rXYZ", b"xxxx"), (b"gXYZ", b"rXYZ"), (b"xxxx", b"gXYZ")):
            data = data.replace(old, new, 1)
        return data
    data = data[:16] + b"GRAY" + data[20:].replace(b"rTRC", b"kTRC", 1)
    (place,) = struct.unpack_from(">I", data, data.index(b"kTRC") + 4)
    return data[:place] + b"curv" + bytes(8) + data[place + 12 :]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colors_are_those_of_the_embedded_profile(kind: str) -> None:
    options = {"quality": 100} if kind in ("JPEG", "WEBP") else {}
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    turned = Image.fromarray(np.ascontiguousarray(UPRIGHT[::-1, ::-1]))
    data = stored(turned, kind, icc_profile=made_profile(), exif=exif, **options)
    expected = UPRIGHT[..., [1, 0, 2]].astype(int)
    assert np.abs(decode_photo(data) - expected).mean() < 8  # rounded twice, and JPEG


def test_profiles_of_gray_transparent_and_palette_images() -> None:
    linear = np.full((8, 8), 55, dtype=np.uint8)  # .2158, which is 128 in sRGB
    alpha = np.full((8, 8), 255, dtype=np.uint8)
    alpha[:4] = 0
    both = Image.merge("LA", (Image.fromarray(linear), Image.fromarray(alpha)))
    deep = Image.fromarray((linear * np.uint16(257)).astype(np.uint16))
    for image in (Image.fromarray(linear), both, deep):
        found = decode_photo(stored(image, "PNG", icc_profile=made_profile(gray=True)))
        assert np.abs(found[4:].astype(int) - 128).max() <= 1
        assert (found[:4] == 255).all() == (image is both)
    palette = Image.fromarray(UPRIGHT).quantize(8)
    found = decode_photo(stored(palette, "PNG", icc_profile=made_profile()))
    assert np.abs(found.astype(int) - UPRIGHT[..., [1, 0, 2]]).mean() < 8
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = decode_photo(stored(Image.fromarray(UPRIGHT), "PNG", icc_profile=srgb))
    assert np.abs(found.astype(int) - UPRIGHT).max() <= 1


def test_a_profile_that_is_of_no_use_is_said_once_and_refuses_nothing() -> None:
    whole, image = made_profile(), Image.fromarray(UPRIGHT)
    rng = np.random.default_rng(0)
    for profile in (b"no profile", whole[:200], made_profile(gray=True), rng.bytes(3000)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("default")
            found = decode_photo(stored(image, "PNG", icc_profile=profile))
        np.testing.assert_array_equal(found, UPRIGHT)
        (one,) = said
        assert "A color profile must be one of its image's colors" in str(one.message)
        assert "\n" not in str(one.message)
    for _ in range(100):  # whatever the library makes of it, an image comes out
        damaged = bytearray(whole)
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = decode_photo(stored(image, "PNG", icc_profile=bytes(damaged)))
        assert found.shape == UPRIGHT.shape


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_damaged_photos_are_one_line(kind: str) -> None:
    data = stored(Image.fromarray(UPRIGHT).convert("P" if kind == "GIF" else "RGB"), kind)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data[: rng.integers(4, len(data) + 1)])
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(256)
        try:
            assert decode_photo(bytes(damaged)).dtype == np.uint8
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_sizes_are_known_before_pixels(tmp_path: Path) -> None:
    for kind, place in (("GIF", 6), ("BMP", 18)):
        image = Image.fromarray(UPRIGHT).convert("P")
        data = bytearray(stored(image, kind))
        width = 2 if kind == "GIF" else 4
        data[place : place + 2 * width] = (9_000).to_bytes(width, "little") * 2
        with pytest.raises(ValueError, match="at most 67108864 pixels"):
            decode_photo(bytes(data))
    with (tmp_path / "huge.png").open("wb") as stream:
        stream.truncate(65 * 1024 * 1024)
    with pytest.raises(ValueError, match=r"'huge\.png': An image must have at most 67,108,864 b"):
        read_photo(tmp_path / "huge.png")


def test_what_is_no_photo_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("<svg/>")
    Image.new("RGB", (30, 20), (0, 200, 0)).save(tmp_path / "green.png")
    unread = r"'x\.png': An image must be readable\. Got nothing that can be read as JPEG, P"
    for name, message in (
        ("x.png", unread),
        ("none.tif", r"Got 'none\.tif': No such file"),
        ("green.png", r"Got 'green\.png', all of one color, \[0, 200, 0\]"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read_image(tmp_path / name, (8, 8))
        assert "BytesIO" not in str(caught.value)
    Image.fromarray(UPRIGHT).save(tmp_path / "fine.bmp")
    assert read_image(tmp_path / "fine.bmp", (8, 8)).flags.writeable
