"""Record ↔ members: lossless where it says so, deterministic, and hard to fool."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import make_record
from PIL import Image
from pycocotools import mask as coco

from synthgen.dataset.records import decode_image, decode_sample, encode_image, encode_record
from synthgen.dataset.rle import decode_masks, encode_masks, run_lengths
from synthgen.storage.redaction import redact, redact_tree
from synthgen.types import MaskSet


def paint_smallest(mask_set: MaskSet) -> np.ndarray:
    """Reference: per pixel, look at every mask and take the smallest."""
    _, height, width = mask_set.masks.shape
    ids = np.zeros((height, width), dtype=np.uint8)
    areas = mask_set.masks.sum((1, 2))
    for y in range(height):
        for x in range(width):
            inside = [i for i in range(len(mask_set)) if mask_set.masks[i, y, x]]
            ids[y, x] = min(inside, key=lambda i: areas[i]) + 1 if inside else 0
    return ids


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
def test_a_record_survives_its_members(image_format: str) -> None:
    record = make_record("0000000007")
    members = encode_record(record, image_format)
    assert set(members) == {image_format, "json", "mask.png", "txt"}
    sample = decode_sample(record.key, members)
    np.testing.assert_array_equal(sample["mask"], paint_smallest(record.mask_set))
    np.testing.assert_array_equal(sample["masks"], record.mask_set.masks)
    assert sample["prompt"] == record.prompt.text
    if image_format != "jpg":
        np.testing.assert_array_equal(sample["image"], record.image)


def test_equal_records_give_equal_bytes() -> None:
    for image_format in ("jpg", "png", "webp"):
        first = encode_record(make_record("0000000001", 5), image_format)
        assert first == encode_record(make_record("0000000001", 5), image_format)


def test_jpg_has_quality_95_and_full_color_resolution() -> None:
    data = encode_record(make_record("0000000001"), "jpg")["jpg"]
    reference = io.BytesIO()
    Image.fromarray(make_record("0000000001").image).save(
        reference, "JPEG", quality=95, subsampling="4:4:4"
    )
    assert data == reference.getvalue()
    start = data.index(b"\xff\xc0")  # start of frame: per component id, sampling, table
    sampling = [data[start + 11 + 3 * component] for component in range(3)]
    assert sampling == [0x11, 0x11, 0x11]


def test_json_has_the_fixed_schema_without_nulls() -> None:
    record = make_record("0000000001", 1)
    info = json.loads(encode_record(record, "jpg")["json"])
    assert list(info) == [
        *("key", "height", "width", "prompt", "prompt_id", "seed", "image_index", "classes"),
        *("num_segments", "segments", "provenance"),
    ]
    assert (info["height"], info["width"]) == (24, 40)
    assert info["seed"] == 2**62 + 1
    assert "null" not in encode_record(record, "jpg")["json"].decode()
    for index, segment in enumerate(info["segments"]):
        mask = record.mask_set.masks[index]
        rows, columns = np.nonzero(mask)
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
        assert segment["id"] == index + 1
        assert segment["area"] == int(mask.sum())
        assert segment["bbox_xywh"] == box
        assert segment["parent"] == record.mask_set.parent[index] + 1
        assert segment["members"] == [list(pair) for pair in record.mask_set.members[index]]


def test_an_image_without_masks_is_a_record_too() -> None:
    sample = decode_sample("0000000001", encode_record(make_record("0000000001", num=0), "jpg"))
    assert sample["masks"].shape == (0, 24, 40)
    assert not sample["mask"].any()
    assert sample["json"]["segments"] == []


def test_bad_keys_and_too_many_masks_are_refused() -> None:
    for key in ("1", "../../etc/x", "000000000a", "0" * 21):
        with pytest.raises(ValueError, match="10 to 20 digits"):
            encode_record(make_record(key), "jpg")
    with pytest.raises(ValueError, match=r"at most 254 masks\. Got 255"):
        encode_record(make_record("0000000001", num=255), "jpg")
    assert encode_record(make_record("0000000001", num=254), "jpg")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_run_lengths_agree_with_pycocotools(seed: int, height: int, width: int, p: float) -> None:
    mask = np.random.default_rng(seed).random((1, height, width)) < p
    rle = encode_masks(mask)[0]
    np.testing.assert_array_equal(coco.decode(rle), mask[0])
    np.testing.assert_array_equal(decode_masks([rle], height, width), mask)
    flat = mask[0].ravel(order="F").astype(np.int64)
    runs = run_lengths(rle)
    np.testing.assert_array_equal(np.repeat(np.arange(len(runs)) % 2, runs), flat)


@pytest.mark.parametrize("counts", ["", "00000", "`", "0oooo1", "zzz", "é", "o" * 40, "\x00"])
def test_forged_run_lengths_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match=r"rle\.counts must"):
        decode_masks([{"size": [4, 4], "counts": counts}], 4, 4)
    with pytest.raises(ValueError, match=r"rle\.size must be"):
        decode_masks([{"size": [10**6, 10**6], "counts": "0`0"}], 4, 4)


def test_readers_refuse_bombs_palettes_and_other_formats() -> None:
    with pytest.raises(ValueError, match="at most 67108864 pixels"):
        decode_image(_png_header(9000, 9000))
    with pytest.raises(ValueError, match="decompression bomb"):
        decode_image(_png_header(60000, 60000))
    palette, deep, gif = io.BytesIO(), io.BytesIO(), io.BytesIO()
    ids = np.array([[0, 1], [7, 255]], dtype=np.uint8)
    Image.fromarray(ids).convert("P").save(palette, "PNG")
    Image.fromarray(ids.astype(np.uint16)).save(deep, "PNG")
    Image.fromarray(ids).save(gif, "GIF")
    for stream in (palette, deep):
        with pytest.raises(ValueError, match="must be 8-bit gray"):
            decode_image(stream.getvalue(), "L")
    with pytest.raises(ValueError, match="must be readable"):
        decode_image(gif.getvalue())
    np.testing.assert_array_equal(decode_image(encode_image(ids, "png"), "L"), ids)


def test_a_broken_sample_is_named() -> None:
    members = encode_record(make_record("0000000042"), "jpg")
    for suffix in ("jpg", "json", "mask.png", "txt"):
        rest = {name: data for name, data in members.items() if name != suffix}
        with pytest.raises(ValueError, match="0000000042"):
            decode_sample("0000000042", rest)
        with pytest.raises(ValueError, match="0000000042"):
            decode_sample("0000000042", {**members, suffix: b"\xff\xfe"})


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2hunter2@host/model",
        "GET https://host/x?X-Amz-Signature=hunter2hunter2&y=1",
        "aws_secret_access_key=hunter2hunter2",
        "{'api_key': 'hunter2hunter2'}",
        "token: hunter2hunter2",
        "Password = hunter2hunter2",
        "https://host/blob?sig=hunter2hunter2",
    ],
)
def test_secrets_are_taken_out(text: str) -> None:
    assert "hunter2hunter2" not in redact(text, {})
    assert "***" in redact(text, {})


def test_redaction_leaves_the_rest_alone() -> None:
    prompt = "a key on a table, keyboard: black, two tokens"
    assert redact(prompt, {"HOME": "/home/someone", "MY_TOKEN": "short"}) == prompt
    assert redact("x=hunter2hunter2", {"MY_TOKEN": "hunter2hunter2"}) == "x=***"
    tree = {"keys": [1, 2], "hub_token": "abc", "k": {"prompts": "scenes", "empty_token": ""}}
    assert redact_tree(tree, {}) == {**tree, "hub_token": "***"}
    tree = {"negative_prompt": "(signature:1.4), blurry", "url": "s3://b?X-Amz-Token=abc"}
    assert redact_tree(tree, {}) == {**tree, "url": "s3://b?X-Amz-Token=***"}


def _png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims a size."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + b"\x00" * 4
