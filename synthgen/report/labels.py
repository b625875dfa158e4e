"""The labels that a page shows: those of the tars, or those beside the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

_Map = UInt8[np.ndarray, "height width"]


class Labels:
    """The labels to show.

    Args:
        storage: A finished dataset.
        label_id: Id of labels beside it; None: those in its tars, if there are any.
        shards: File stem to tar hash of every shard with samples.

    Attributes:
        label_id: See above; empty for those of the tars.
        names: Names by id.
        statistics: Of every shard of the labels beside the dataset.

    Raises:
        ValueError: If there are no such labels, or not for every shard.
    """

    def __init__(self, storage: Storage, label_id: str | None, shards: Mapping[str, str]) -> None:
        self.label_id, self.names = label_id or "", class_names(storage)
        self.statistics: list[Mapping[str, Any]] = []
        self._reader: LabelReader | None = None
        if label_id is not None:
            self._reader = LabelReader(storage, label_id, shards)
            markers = (read_labels_marker(storage, label_id, shard) for shard in shards)
            self.statistics += [marker.statistics for marker in markers if marker is not None]

    def relabel(
        self, members: Mapping[str, bytes], info: Mapping[str, Any], mask: _Map
    ) -> tuple[dict[str, Any], _Map, _Map | None]:
        """A sample's json, masks and semantic map (None without labels) under these labels.

        Raises:
            ValueError: If its labels are broken, or hold ids that classes.json does not know.
        """
        semantic = None
        if self._reader is not None:
            sample = {"key": info["key"], "json": info, "mask": mask}
            found = with_labels(sample, self._reader.members(info["key"]))
            info, mask, semantic = found["json"], found["mask"], found["semantic"]
        elif "sem.png" in members:
            semantic = decode_image(members["sem.png"], "L")
        if semantic is not None:
            if semantic.shape != mask.shape:
                raise ValueError(f"sem.png must be of {mask.shape}. Got {semantic.shape}.")
            check_ids(info["key"], semantic, self.names)
        return dict(info), mask, semantic


def class_table(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Statistics of shards as the page shows them; None where nothing is labeled.

    Returns:
        ``images`` with labels; ``rows``: name, images, share of all pixels, mean score and "not
        found" of every class, the largest first; ``background`` and ``undecided``: shares of all
        pixels.

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
        shares = {name: merged[name] / total for name in ("background", "undecided")}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Statistics of labels must be ours. Got {error!r:.100}.") from None
    if not merged["images"]:
        return None
    rows.sort(key=lambda row: (-row[2], row[0]))
    return {"images": merged["images"], "rows": rows, **shares}
