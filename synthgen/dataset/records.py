"""A sample as tar members, and back: Record ↔ {suffix: bytes}.

    KEY.jpg | KEY.png | KEY.webp   the image: jpg quality 95 at 4:4:4, png, or lossless webp
    KEY.mask.png                   8-bit gray: id of the smallest mask at each pixel, 0 for none
    KEY.sem.png                    where labeled, 8-bit gray: class of each pixel (`labels`)
    KEY.txt                        the prompt
    KEY.json                       fixed schema without nulls (``sample_json``)

Equal records give equal bytes. Masks overlap, so all of them are in the json as COCO run-length
encodings; ids are positions plus one, at most 254 (255 is "ignore", and nothing ever wraps).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from pydantic import Field
from typing_extensions import TypedDict

from synthgen.dataset.rle import MAX_PIXELS as MAX_MASK_PIXELS
from synthgen.dataset.rle import decode_masks, encode_masks
from synthgen.labeling.instances import find_instances
from synthgen.segmentation.masks import id_map
from synthgen.storage.images import open_image, readable_image
from synthgen.storage.untrusted import check_shape, one_line, parse_object, quote
from synthgen.types import BACKGROUND, IGNORE, LabelMap, MaskSet, Record

KEY = re.compile(r"[0-9]{10,20}")
MAX_ID = 254
IMAGE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},  # 0: 4:4:4
    "png": {"format": "PNG", "compress_level": 6},
    "webp": {"format": "WEBP", "lossless": True, "quality": 75, "method": 4, "exact": True},
}
_Number = Annotated[int, Field(ge=0, lt=2**53)]


class _Rle(TypedDict):
    size: Annotated[list[_Number], Field(min_length=2, max_length=2)]
    counts: str


class _Object(TypedDict):
    """What masks and instances have in common."""

    id: _Number
    area: _Number
    bbox_xywh: list[_Number]
    label: str
    label_score: float
    rle: _Rle


class _Segment(_Object):
    members: list[Annotated[list[int], Field(min_length=2, max_length=2)]]
    parent: _Number


class _Sample(TypedDict):
    """The fixed schema of KEY.json; `sample_json` writes it."""

    key: str
    height: _Number
    width: _Number
    prompt: str
    prompt_id: str
    seed: int
    image_index: int
    classes: list[str]
    num_segments: _Number
    segments: list[_Segment]
    provenance: dict[str, Any]
    not_found: NotRequired[list[str]]
    instances: NotRequired[list[_Object]]


def encode_record(
    record: Record, image_format: str, info: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """Tar members of a record by suffix, ``{"jpg": …, "json": …, "mask.png": …, "txt": …}``.

    Args:
        record: ``provenance`` must hold ``seed`` and ``image_index``; see ``sample_json``.
        image_format: ``jpg``, ``png`` or ``webp``.
        info: Its ``sample_json``, where that is known already.

    Raises:
        ValueError: For a bad key or more than 254 masks.
    """
    if not KEY.fullmatch(record.key):
        raise ValueError(f"key must be 10 to 20 digits. Got {record.key!r}.")
    if len(record.mask_set) > MAX_ID:
        raise ValueError(
            f"A sample must have at most {MAX_ID} masks. Got {len(record.mask_set)}. "
            f"Raise segmentation.masks.min_area or lower segmentation.masks.merge_iou."
        )
    if record.mask_set.masks.size > MAX_MASK_PIXELS:
        raise ValueError(
            f"A sample's masks must have at most {MAX_MASK_PIXELS} pixels in all. Got "
            f"{len(record.mask_set)} of {record.image.shape[0]} x {record.image.shape[1]}; give a "
            f"smaller image, or lower segmentation.clusters.ks."
        )
    members = {
        image_format: encode_image(record.image, image_format),
        "json": dump_sample(sample_json(record) if info is None else info),
        "mask.png": encode_image(id_map(record.mask_set).astype(np.uint8), "png"),
        "txt": record.prompt.text.encode("utf-8"),
    }
    if record.labels is None:
        return members
    ids = semantic_ids(record.labels, record.class_ids)
    return {**members, "sem.png": encode_image(ids, "png")}


def sample_json(record: Record) -> dict[str, Any]:
    """The content of KEY.json. ``seed`` and ``image_index`` are lifted out of the provenance."""
    height, width = record.image.shape[:2]
    segments = describe_segments(record.mask_set)
    labels = {} if record.labels is None else describe_labels(record.labels, record.mask_set)
    for segment, label in zip(segments, labels.pop("segments", []), strict=False):
        segment |= label
    provenance = dict(record.provenance)
    return {
        "key": record.key,
        "height": height,
        "width": width,
        "prompt": record.prompt.text,
        "prompt_id": record.prompt.id,
        "seed": provenance.pop("seed"),
        "image_index": provenance.pop("image_index"),
        "classes": list(record.prompt.class_names),
        "num_segments": len(segments),
        "segments": segments,
        **labels,
        "provenance": provenance,
    }


def parse_sample(content: bytes) -> dict[str, Any]:
    """The content of an untrusted KEY.json, every field of its type.

    Raises:
        ValueError: In one line, with the first field that is wrong.
    """
    info = parse_object(content)
    check_sample(info)
    return info


def check_sample(info: Mapping[str, Any]) -> None:
    """Refuse what is not the content of a KEY.json; see ``parse_sample``."""
    check_shape(_Sample, info)


def describe_segments(mask_set: MaskSet) -> list[dict[str, Any]]:
    """One entry per mask, largest first; ``parent`` is an id, 0 at the top of the hierarchy."""
    rles = encode_masks(mask_set.masks)
    return [
        {
            "id": index + 1,
            "area": int(mask.sum()),
            "bbox_xywh": list(bbox_xywh(mask)),
            "members": [[int(k), int(cluster)] for k, cluster in mask_set.members[index]],
            "parent": int(mask_set.parent[index]) + 1,
            "label": "",
            "label_score": 0.0,
            "rle": rles[index],
        }
        for index, mask in enumerate(mask_set.masks)
    ]


def describe_labels(labels: LabelMap, mask_set: MaskSet | None = None) -> dict[str, Any]:
    """What a json says of labels: ``segments`` (label and score), ``not_found``, ``instances``.

    A mask's label is a class name, ``background``, or empty where it is undecided. Instances are
    the components of the semantic map (`synthgen.labeling.instances`), taken apart by the masks
    where objects touch; ids from 1.
    """
    instances = find_instances(labels, mask_set)
    rles = encode_masks(np.stack([item.mask for item in instances])) if instances else []
    pairs = zip(labels.mask_labels.tolist(), labels.mask_scores.tolist(), strict=True)
    return {
        "segments": [
            {"label": _name(labels, label), "label_score": round(score, 4)}
            for label, score in pairs
        ],
        "not_found": list(labels.not_found),
        "instances": [
            {
                "id": index + 1,
                "label": _name(labels, item.label),
                "label_score": round(item.score, 4),
                "area": int(item.mask.sum()),
                "bbox_xywh": list(bbox_xywh(item.mask)),
                "rle": rles[index],
            }
            for index, item in enumerate(instances)
        ],
    }


def semantic_ids(
    labels: LabelMap, class_ids: Mapping[str, int]
) -> UInt8[np.ndarray, "height width"]:
    """The semantic map with the ids of classes.json.

    >>> one = np.ones((1, 2), dtype=np.uint8)
    >>> none = np.zeros(0)
    >>> labels = LabelMap(("cat",), one, one / 2, none.astype(np.uint8), none, ())
    >>> semantic_ids(labels, {"car": 1, "cat": 2}).tolist()
    [[2, 2]]
    """
    own = {name: label for label, name in enumerate(labels.class_names, start=1)}
    ids: UInt8[np.ndarray, "height width"] = id_table(own, class_ids)[labels.semantic]
    return ids


def id_table(old: Mapping[str, int], new: Mapping[str, int]) -> UInt8[np.ndarray, " old_id"]:
    """New id of each old class id; ids of no class become 255.

    >>> id_table({"cat": 1, "dog": 2}, {"bird": 1, "cat": 2, "dog": 3})[[0, 1, 2, 3, 255]].tolist()
    [0, 2, 3, 255, 255]
    """
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[BACKGROUND] = BACKGROUND
    for name, index in old.items():
        table[index] = new[name]
    return table


def _name(labels: LabelMap, label: int) -> str:
    if label in (BACKGROUND, IGNORE):
        return "" if label == IGNORE else "background"
    return labels.class_names[label - 1]


def bbox_xywh(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the smallest box around a mask; zeros if it is empty.

    >>> bbox_xywh(np.array([[False, True, True], [False, False, False]]))
    (1, 0, 2, 1)
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return (0, 0, 0, 0)
    x, y = int(columns[0]), int(rows[0])
    return (x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1)


def encode_image(pixels: UInt8[np.ndarray, "height width *channel"], image_format: str) -> bytes:
    """Bytes of an RGB or gray image."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, **IMAGE_OPTIONS[image_format])
    return stream.getvalue()


def decode_image(data: bytes, mode: str = "RGB") -> UInt8[np.ndarray, "height width *channel"]:
    """Pixels of untrusted JPEG, PNG or WebP bytes.

    Args:
        mode: PIL mode that it is converted to; ``L`` is required, not converted to, because
            conversion of a palette or 16-bit image changes ids.

    Raises:
        ValueError: If it is no such image, too large, or not ``L`` where that is asked for.
    """
    image = open_image(data, ("JPEG", "PNG", "WEBP"))
    if mode == "L" and image.mode != "L":
        raise ValueError(f"mask.png must be 8-bit gray (L). Got mode {image.mode}.")
    with readable_image():
        image = image if image.mode == mode else image.convert(mode)  # which copies in any case
        return np.array(image)  # writable, as torch wants it


def decode_sample(key: str, members: Mapping[str, bytes], masks: bool = True) -> dict[str, Any]:
    """A sample for users: key, image (RGB), mask (ids), json, prompt, semantic if it is labeled.

    Args:
        masks: Also decode the overlapping masks, as ``masks``.

    Raises:
        ValueError: If a member is missing or broken; the message names the key.
    """
    try:
        suffix = next(name for name in IMAGE_OPTIONS if name in members)
        info = parse_sample(members["json"])
        image = decode_image(members[suffix])
        sample = {
            "key": key,
            "image": image,
            "mask": decode_image(members["mask.png"], "L"),
            "json": info,
            "prompt": members["txt"].decode("utf-8"),
        }
        if "sem.png" in members:
            sample["semantic"] = decode_image(members["sem.png"], "L")
        if masks:
            height, width = image.shape[:2]
            rles = [segment["rle"] for segment in info["segments"]]
            sample["masks"] = decode_masks(rles, height, width)
        return sample
    except StopIteration:
        must, got = "have an image", quote(sorted(members))
    except (KeyError, TypeError, ValueError) as error:
        must, got = "be readable", f"{error!r:.200}"
    raise ValueError(f"Sample {one_line(key, 40)} must {must}. Got {got}.")


def dump_sample(content: Mapping[str, Any]) -> bytes:
    """The bytes of KEY.json."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8")
