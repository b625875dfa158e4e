"""The labels that a page shows: those of the tars, or those that stand beside the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.dataset.label_statistics import merge_statistics
from synthgen.dataset.labels import (
    LabelReader,
    check_ids,
    class_names,
    read_labels_marker,
    with_labels,
)
from synthgen.dataset.records import decode_image
from synthgen.storage.publish import Storage
from synthgen.types import BACKGROUND, IGNORE

SPECIAL = {BACKGROUND: "background", IGNORE: "undecided"}


@dataclass(frozen=True, slots=True)
class Labels:
    """Where the labels of samples come from.

    Args:
        label_id: Id of labels beside the dataset; empty: those in its tars, if any.
        names: Names by id.
        reader: Reads the labels beside the dataset; None for those in its tars.
        statistics: Statistics of every shard of the labels beside the dataset.
    """

    label_id: str
    names: Mapping[int, str]
    reader: LabelReader | None
    statistics: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ClassTable:
    """What the page says of classes.

    Args:
        images: Images with labels.
        rows: Name, images, share of all pixels, mean score and "not found" of every class, the
            largest first.
        background: Share of all pixels that no class has.
        undecided: Share of all pixels that are left open.
    """

    images: int
    rows: tuple[tuple[str, int, float, float, int], ...]
    background: float
    undecided: float


def open_labels(storage: Storage, label_id: str | None, shards: Mapping[str, str]) -> Labels:
    """The labels to show.

    Args:
        storage: A finished dataset.
        label_id: Id of labels beside it; None: those in its tars, if there are any.
        shards: File stem to tar hash of every shard with samples.

    Raises:
        ValueError: If there are no such labels, or not for every shard.
    """
    names = class_names(storage)
    if label_id is None:
        return Labels("", names, None, ())
    reader = LabelReader(storage, label_id, shards)
    markers = (read_labels_marker(storage, label_id, shard) for shard in shards)
    statistics = tuple(marker.statistics for marker in markers if marker is not None)
    return Labels(label_id, names, reader, statistics)


def relabel(
    labels: Labels,
    members: Mapping[str, bytes],
    info: Mapping[str, Any],
    mask: UInt8[np.ndarray, "height width"],
) -> tuple[
    dict[str, Any], UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"] | None
]:
    """A sample's json, masks and semantic map (None without labels) under the chosen labels.

    Raises:
        ValueError: If its labels are broken, or hold ids that classes.json does not know.
    """
    semantic = None
    if labels.reader is not None:
        sample = {"key": info["key"], "json": info, "mask": mask}
        found = with_labels(sample, labels.reader.members(info["key"]))
        info, mask, semantic = found["json"], found["mask"], found["semantic"]
    elif "sem.png" in members:
        semantic = decode_image(members["sem.png"], "L")
    if semantic is not None:
        if semantic.shape != mask.shape:
            raise ValueError(f"sem.png must be of {mask.shape}. Got {semantic.shape}.")
        check_ids(info["key"], semantic, labels.names)
    return dict(info), mask, semantic


def is_labeled(info: Mapping[str, Any]) -> bool:
    """Whether a class that the prompt names was found in the image.

    >>> is_labeled({"classes": ["a", "b"], "not_found": ["b"]}), is_labeled({"classes": ["a"]})
    (True, False)
    """
    return "not_found" in info and bool(set(info["classes"]) - set(info["not_found"]))


def shown_names(
    semantic: UInt8[np.ndarray, "height width"], names: Mapping[int, str]
) -> dict[str, str]:
    """What a map's ids stand for, in the order of the ids.

    >>> shown_names(np.array([[255, 2, 0]], dtype=np.uint8), {2: "cat"})
    {'0': 'background', '2': 'cat', '255': 'undecided'}
    """
    known = {**names, **SPECIAL}
    return {str(i): known.get(i, str(i)) for i in np.unique(semantic).tolist()}


def class_table(parts: Iterable[Mapping[str, Any]]) -> ClassTable | None:
    """Statistics of shards as the page shows them; None where nothing is labeled.

    Raises:
        ValueError: If they are none of ours.
    """
    try:
        merged = merge_statistics(parts)
        counted = sum(row["pixels"] for row in merged["classes"].values())
        total = max(1, counted + merged["background"] + merged["undecided"])
        rows = [
            (name, row["images"], row["pixels"] / total, row["score"], row["not_found"])
            for name, row in merged["classes"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Statistics of labels must be ours. Got {error!r:.100}.") from None
    if not merged["images"]:
        return None
    ordered = tuple(sorted(rows, key=lambda row: (-row[2], row[0])))
    shares = merged["background"] / total, merged["undecided"] / total
    return ClassTable(merged["images"], ordered, *shares)
