"""Parts of many image files: label maps, colors, and one COCO file, made again where missing.

OUT/labels/NAME.png      class of each pixel: 0 background, i the i-th part
OUT/colors/NAME.png      the same in the colors of OUT/legend.json
OUT/annotations.json     COCO: an annotation of each part in each image, with its mean score
OUT/picture.png          the first images with their classes and class maps
OUT/scores/NAME.json     mean score of each part that was found
OUT/predict.json         what they were made by; another fit or setting needs another folder
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synthgen import progress
from synthgen.config.settings import digest
from synthgen.dataset.records import bbox_xywh, decode_image, encode_image
from synthgen.dataset.rle import encode_masks
from synthgen.oneshot.parts import Parts
from synthgen.oneshot.pictures import color_png, draw_parts, legend_of
from synthgen.storage.images import SUFFIXES, read_photo
from synthgen.storage.publish import Storage, dump_json, open_storage
from synthgen.storage.untrusted import one_line, parse_object

DONE = "predict.json"
_IN_PICTURE = 6


def predict_files(
    parts: Parts, sources: Sequence[str | Path], out: str | Path, **changes: Any
) -> dict[str, Any]:
    """Find parts in image files; what a former run has made stays.

    Args:
        parts: What is looked for.
        sources: Image files, or folders of them.
        out: Output folder.
        changes: To the settings, see `Parts`.

    Returns:
        ``images``, and of each part the images it was found in and its share of all pixels.

    Raises:
        ValueError: In one line, for a source that is no image, or an output of another run.
    """
    settings = parts.settings_for(changes)
    paths = image_files(sources)
    storage = open_storage(out)
    _claim(storage, parts, digest(settings.model_dump(mode="json")))
    there = set(storage.names("labels"))
    has_picture = storage.size("picture.png") is not None
    drawn = []
    for number, path in enumerate(paths):
        name = f"{path.stem}.png"
        in_picture = number < _IN_PICTURE and not has_picture
        if name in there and not in_picture:
            progress.report("existing", shards=0, samples=1)
            continue
        pixels = read_photo(path)
        found = parts(pixels, **changes)
        storage.publish_bytes(color_png(found.semantic), f"colors/{name}")
        storage.publish_bytes(dump_json(_scores(parts, found)), f"scores/{path.stem}.json")
        storage.publish_bytes(encode_image(found.semantic, "png"), f"labels/{name}")
        if in_picture:
            drawn.append((path.name, pixels, found.semantic, parts.maps(pixels, **changes)))
        progress.report("samples", count=1)
    if drawn:
        storage.publish_bytes(draw_parts(parts.names, drawn), "picture.png")
    content = _annotations(storage, parts, paths)
    storage.publish_bytes(dump_json(content), "annotations.json")
    return _summary(parts, content, len(paths))


def image_files(sources: Sequence[str | Path]) -> list[Path]:
    """The image files that are named, and those in folders that are.

    Raises:
        ValueError: In one line, if there is none, or two would have one output.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found += sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES)
        else:
            found.append(source)
    if not found:
        raise ValueError(
            f"images must be files, or folders of {', '.join(SUFFIXES[:3])}, ... Got no image in "
            f"{one_line(', '.join(map(str, sources)), 80)}."
        )
    first: dict[str, Path] = {}
    for path in found:
        if first.setdefault(path.stem, path) is not path:
            raise ValueError(
                "images must have different names, for their labels are called like them. Got "
                f"{one_line(first[path.stem], 60)} and {one_line(path, 60)}."
            )
    return found


def _claim(storage: Storage, parts: Parts, settings: str) -> None:
    """Write down what the folder is made by, or find it there.

    Raises:
        ValueError: If another run has made it.
    """
    own = {"names": list(parts.names), "settings": settings, "embeddings": parts.digest}
    known = storage.read(DONE)
    if known is None:
        storage.publish_bytes(dump_json(own), DONE)
        storage.publish_bytes(dump_json(legend_of(parts.names)), "legend.json")
    elif parse_object(known) != own:
        raise ValueError(
            f"{one_line(storage.root, 80)} must be of the same parts and settings. Got another "
            "run's; choose another folder, or delete this one."
        )


def _scores(parts: Parts, found: Any) -> dict[str, float]:
    """Mean score of each part that was found."""
    rows = enumerate(parts.names, start=1)
    means = {name: found.scores[found.semantic == number] for number, name in rows}
    return {name: round(float(own.mean()), 4) for name, own in means.items() if own.size}


def _annotations(storage: Storage, parts: Parts, paths: Sequence[Path]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, path in enumerate(paths, start=1):
        content, scores = (
            storage.read(f"labels/{path.stem}.png"),
            storage.read(f"scores/{path.stem}.json"),
        )
        assert content is not None
        assert scores is not None
        semantic, known = decode_image(content, "L"), parse_object(scores)
        height, width = semantic.shape
        images.append({"id": number, "file_name": path.name, "height": height, "width": width})
        for cls, name in enumerate(parts.names, start=1):
            mask = semantic == cls
            if mask.any():
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": cls,
                        "segmentation": encode_masks(mask[None])[0],
                        "area": int(mask.sum()),
                        "bbox": list(bbox_xywh(mask)),
                        "iscrowd": 0,
                        "score": known.get(name, 0.0),
                    }
                )
    names = [{"id": i, "name": name} for i, name in enumerate(parts.names, start=1)]
    return {"images": images, "annotations": annotations, "categories": names}


def _summary(parts: Parts, content: Mapping[str, Any], num: int) -> dict[str, Any]:
    pixels = sum(row["height"] * row["width"] for row in content["images"])
    rows: dict[str, Any] = {}
    for number, name in enumerate(parts.names, start=1):
        own = [row for row in content["annotations"] if row["category_id"] == number]
        share = sum(row["area"] for row in own) / pixels
        score = float(np.mean([row["score"] for row in own])) if own else 0.0
        rows[name] = {"images": len(own), "share": share, "score": score}
    return {"images": num, "parts": rows}
