"""Annotations as SA-1B describes them, and an audit's annotations as a folder like SA-1B.

A record has SA-1B's names: ``segmentation`` (COCO run-length encoding), ``area``, ``bbox`` (xywh
in pixels), ``predicted_iou``, ``stability_score``, ``point_coords``, ``crop_box`` (xywh), ``id``;
``label`` is ours, empty where the auditor names nothing. Crops are not kept: ``crop_box`` is the
whole image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synthgen.dataset.audits import parse_table, read_verdicts, table_name
from synthgen.dataset.listed import listed_shards
from synthgen.dataset.masks import ShardSamples, stride
from synthgen.dataset.records import IMAGE_OPTIONS, bbox_xywh, decode_image, encode_image
from synthgen.dataset.rle import MAX_PIXELS, decode_masks, encode_masks, iterate_masks
from synthgen.segmentation.packed import PackedMasks
from synthgen.storage.local import make_folder, write_file
from synthgen.storage.publish import explain_disk_errors, open_storage
from synthgen.types import Annotations

NO_POINT = (-1.0, -1.0)


def to_records(
    annotations: Annotations, size: tuple[int, int] | None = None
) -> list[dict[str, Any]]:
    """One SA-1B-shaped record per mask, ids from 1; empty masks are left out.

    Args:
        annotations: What an auditor saw.
        size: Height and width of the image, if the auditor saw it reduced by `stride`: masks are
            enlarged to it, one at a time.
    """
    height, width = size or annotations.masks.shape[1:]
    step = 1 if size is None else stride(height, width)
    records: list[dict[str, Any]] = []
    for i, small in enumerate(annotations.masks):
        if not small.any():
            continue
        mask = small.repeat(step, 0).repeat(step, 1)[:height, :width]
        records.append(
            {
                "id": len(records) + 1,
                "area": int(mask.sum()),
                "bbox": [float(side) for side in bbox_xywh(mask)],
                "segmentation": encode_masks(mask[None])[0],
                "predicted_iou": float(annotations.predicted_iou[i]),
                "stability_score": float(annotations.stability_score[i]),
                "point_coords": _points(annotations.points_xy[i], step),
                "crop_box": [0.0, 0.0, float(width), float(height)],
                "label": str(annotations.labels[i]),
            }
        )
    return records


def packed_records(records: Sequence[Mapping[str, Any]], height: int, width: int) -> PackedMasks:
    """The masks of an image's records, which are not trusted, at every `stride`-th pixel.

    Raises:
        ValueError: If a mask does not have the image's size, or a record is none.
    """
    step = stride(height, width)
    with _believed():
        rles = [record["segmentation"] for record in records]
        masks = iterate_masks(rles, height, width, most=2 * MAX_PIXELS)
        every = (mask[::step, ::step] for mask in masks)
        return PackedMasks.of(every, -(-height // step), -(-width // step))


def from_records(records: Sequence[Mapping[str, Any]], height: int, width: int) -> Annotations:
    """The annotations of an image from its records, which are not trusted.

    Raises:
        ValueError: If a mask does not have the image's size, or a record is none.
    """
    with _believed():
        points = [record["point_coords"] for record in records]
        return Annotations(
            masks=decode_masks([record["segmentation"] for record in records], height, width),
            predicted_iou=tuple(float(record["predicted_iou"]) for record in records),
            stability_score=tuple(float(record["stability_score"]) for record in records),
            points_xy=tuple((float(p[0][0]), float(p[0][1])) if p else NO_POINT for p in points),
            labels=tuple(str(record.get("label", "")) for record in records),
        )


@contextmanager
def _believed() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"An annotation must be an SA-1B record. Got {error!r:.80}.") from None


def export_sa1b(out: str | Path, audit_id: str, folder: str | Path, keep_only: bool = True) -> int:
    """Write an audit's annotations like SA-1B: ``sa_<key>.jpg`` and ``sa_<key>.json`` per sample.

    Args:
        out: The dataset's folder or URL.
        audit_id: One of its audits.
        folder: Local folder to write into.
        keep_only: Leave out the samples that the audit rejects.

    Returns:
        Samples written.

    Raises:
        ValueError: If there is no such audit, or it is not about every shard.
    """
    storage, target = open_storage(out), Path(folder)
    shards = listed_shards(storage)
    read_verdicts(storage, audit_id, {shard.stem: shard.sha256 for shard in shards})
    written = 0
    make_folder(target)
    for shard in shards:
        table = parse_table(storage.read(table_name(audit_id, shard.stem)) or b"")
        rows = {row.key: row for row in table}
        what = f"images of {shard.stem}"
        full = explain_disk_errors(open_storage(target), shard.num_bytes, what)
        with full, storage.open(shard.name) as stream:
            samples = ShardSamples(stream, shard)
            for index, key in enumerate(samples.keys):
                if rows[key].verdict.keep or not keep_only:
                    _write_sa1b(target, key, samples.members(index), rows[key].annotations)
                    written += 1
    return written


def _write_sa1b(
    folder: Path,
    key: str,
    members: Mapping[str, bytes],
    records: Sequence[Mapping[str, Any]],
) -> None:
    suffix = next(name for name in IMAGE_OPTIONS if name in members)
    image = decode_image(members[suffix])
    jpg = members[suffix] if suffix == "jpg" else encode_image(image, "jpg")
    described = {
        "image_id": int(key),
        "width": image.shape[1],
        "height": image.shape[0],
        "file_name": f"sa_{key}.jpg",
    }
    annotations = [
        {name: value for name, value in record.items() if name != "label" or value}
        for record in records
    ]
    write_file(folder / f"sa_{key}.jpg", jpg)
    text = json.dumps({"image": described, "annotations": annotations}, allow_nan=False)
    write_file(folder / f"sa_{key}.json", text.encode("utf-8"))


def _points(point_xy: tuple[float, float], step: int) -> list[list[float]]:
    """The prompting point as SA-1B writes it; none where there was none."""
    return [] if tuple(point_xy) == NO_POINT else [[float(step * side) for side in point_xy]]
