"""The samples that a page shows: which ones, and what the mask explorer needs of each.

A sample's payload is one JSON text: pictures as WebP data URIs (decoded by the browser when they
are shown), masks as COCO run-length encodings and label maps as bytes, both deflated, in base64.
Images larger than the explorer's canvas are shown smaller; areas are those of the full image.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Shaped, UInt8
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from PIL import Image

from synthgen.dataset.previews import Preview
from synthgen.dataset.records import IMAGE_OPTIONS, decode_image
from synthgen.dataset.rle import encode_masks, iterate_masks
from synthgen.report.labels import ReadSample
from synthgen.types import BACKGROUND, IGNORE

SIDE = 512  # pixels of the explorer's longer side; SD 2.1-base draws that many
THUMB_SIDE = 144
BUDGET = 14_000_000  # bytes of all payloads together: the page stays below 15 MB
QUALITIES = (88, 70, 45)  # WebP, tried in this order until a sample fits its share


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample on the page."""

    key: str
    info: Mapping[str, Any]  # content of its json, without the masks
    thumbnail: str  # data URI of a small picture
    payload: Markup  # JSON for the explorer, safe inside a script element


def choose(
    keys: Sequence[str],
    previewed: set[str],
    scores: Mapping[str, float],
    num: int,
    extremes: int,
) -> tuple[list[str], list[str], list[str]]:
    """Which samples to show: all of them, and among them the worst and the best.

    Samples with a preview come before those without; each group is taken at even steps.

    Args:
        keys: All samples.
        previewed: Those with a preview.
        scores: Top-5 of those that were audited.
        num: Samples on the page.
        extremes: Worst and best samples, each; at most a third of ``num``, and no sample is both.

    Returns:
        Keys in order, worst first, best first.

    >>> choose(["a", "b", "c", "d"], {"c"}, {"a": 0.1, "b": 0.9, "d": 0.5}, 3, 1)
    (['a', 'b', 'c'], ['a'], ['b'])
    """
    known = set(keys)
    ranked = sorted((score, key) for key, score in scores.items() if key in known)
    extremes = min(extremes, num // 3, len(ranked) // 2)
    worst = [key for _, key in ranked[:extremes]]
    best = [key for _, key in ranked[::-1][:extremes]]
    chosen = set(worst) | set(best)
    for pool in ([k for k in keys if k in previewed], keys):
        rest = [key for key in pool if key not in chosen]
        room = min(num - len(chosen), len(rest))
        chosen |= {rest[i * len(rest) // room] for i in range(room)}
    return sorted(chosen), worst, best


def show(
    key: str,
    members: Mapping[str, bytes],
    read: ReadSample,
    names: Mapping[int, str],
    preview: Preview | None,
    ious: Sequence[float] | None,
    budget: int,
) -> Shown:
    """Everything the page needs of one sample.

    Args:
        members: Its tar members; the image is read.
        names: Classes by id.
        ious: Best IoU of each mask with the auditor's masks, where there was an audit.
        budget: Bytes the payload should stay below; pictures get coarser, and the preview is
            left out, until it does.
    """
    image = decode_image(next(members[name] for name in IMAGE_OPTIONS if name in members))
    small, info = shrink(image, SIDE), read.info
    common = {
        **{name: info[name] for name in ("key", "prompt", "classes")},
        **dict(zip(("height", "width"), small.shape, strict=False)),
        **dict(zip(("full_height", "full_width"), image.shape, strict=False)),
        **_semantic(read, names),
        "masks": _deflate(json.dumps(_segments(info, ious)).encode()),
    }
    for quality, kept in (*((q, preview) for q in QUALITIES), (QUALITIES[-1], None)):
        tree = {**common, "image": data_uri(small, quality), **_inside(kept, quality)}
        payload = htmlsafe_json_dumps(tree, separators=(",", ":"), allow_nan=False)
        if len(payload) <= budget or kept is None:
            break
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((THUMB_SIDE, THUMB_SIDE))
    slim = {name: value for name, value in info.items() if name != "segments"}
    return Shown(key, slim, data_uri(np.asarray(thumbnail), 70), payload)


def data_uri(pixels: UInt8[np.ndarray, "height width *channel"], quality: int) -> str:
    """A picture as a WebP data URI."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def shrink(
    pixels: Shaped[np.ndarray, "height width *channel"], side: int
) -> Shaped[np.ndarray, "out_height out_width *channel"]:
    """Every n-th row and column, so that the longer side is at most ``side``.

    >>> shrink(np.arange(8).reshape(2, 4), 2).tolist()
    [[0, 2]]
    """
    step = -(-max(pixels.shape[:2]) // side)
    return pixels[::step, ::step] if step > 1 else pixels


def _segments(info: Mapping[str, Any], ious: Sequence[float] | None) -> list[dict[str, Any]]:
    """What the explorer shows of each mask; ``iou`` is -1 where no audit saw it."""
    kept = ("id", "area", "parent", "members", "label", "label_score")
    rles = [segment["rle"] for segment in info["segments"]]
    if max(info["height"], info["width"]) > SIDE:
        masks = iterate_masks(rles, info["height"], info["width"])
        rles = encode_masks(np.stack([shrink(mask, SIDE) for mask in masks])) if rles else []
    return [
        {
            **{name: segment[name] for name in kept},
            "iou": round(ious[index], 4) if ious else -1,
            "rle": rle["counts"],
        }
        for index, (segment, rle) in enumerate(zip(info["segments"], rles, strict=True))
    ]


def _semantic(read: ReadSample, names: Mapping[int, str]) -> dict[str, Any]:
    """The semantic map, what its ids mean, and what was not found; empty without labels."""
    if read.semantic is None:
        return {"semantic": "", "names": {}, "not_found": []}
    small = shrink(read.semantic, SIDE)
    known = {**names, BACKGROUND: "background", IGNORE: "undecided"}
    return {
        "semantic": _deflate(small.tobytes()),
        "names": {str(i): known.get(i, str(i)) for i in np.unique(small).tolist()},
        "not_found": read.info["not_found"],
    }


def _inside(preview: Preview | None, quality: int) -> dict[str, Any]:
    if preview is None:
        return {"ks": [], "labels": "", "pca": "", "upsampling": ""}
    ks = sorted(preview.labels)
    labels = b"".join(shrink(preview.labels[k], SIDE).tobytes() for k in ks)
    # viridis: all eyes order its colors alike
    errors = matplotlib.colormaps["viridis"](shrink(preview.upsampling, SIDE), bytes=True)
    return {
        "ks": ks,
        "labels": _deflate(labels),
        "pca": data_uri(shrink(preview.pca, SIDE), quality),
        "upsampling": data_uri(errors[..., :3], quality),
    }


def _deflate(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")
