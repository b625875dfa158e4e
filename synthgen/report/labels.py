"""Samples as a page reads them, under the labels of the tars or under those beside the dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.dataset.labels import (
    LabelReader,
    check_ids,
    class_names,
    read_labels_marker,
    with_labels,
)
from synthgen.dataset.records import decode_image, parse_sample
from synthgen.storage.publish import Storage


@dataclass(frozen=True, slots=True)
class ReadSample:
    """What is read of every sample."""

    info: Mapping[str, Any]  # content of its json
    coverage: float  # share of its pixels in any mask
    semantic: UInt8[np.ndarray, "_height _width"] | None  # None without labels


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

    def read_sample(self, key: str, members: Mapping[str, bytes]) -> ReadSample:
        """What the page needs of a sample, whether it is shown or only counted.

        Raises:
            ValueError: If a member is missing or broken, or its labels are of classes that
                classes.json does not know; the message names the key.
        """
        try:
            info = {**parse_sample(members["json"]), "key": key}
            mask, semantic = decode_image(members["mask.png"], "L"), None
            sizes = info["height"] * info["width"], info["num_segments"]
            if sizes != (mask.size, len(info["segments"])):
                raise ValueError("a json that does not describe its mask.png")
            if self._reader is not None:
                sample = {"key": key, "json": info, "mask": mask}
                found = with_labels(sample, self._reader.members(key))
                info, mask, semantic = found["json"], found["mask"], found["semantic"]
            elif "sem.png" in members:
                semantic = decode_image(members["sem.png"], "L")
            if semantic is not None:
                if semantic.shape != mask.shape:
                    raise ValueError(f"sem.png must be of {mask.shape}. Got {semantic.shape}.")
                check_ids(key, semantic, self.names)
            return ReadSample(info, float((mask > 0).mean()), semantic)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Sample {key} must be readable. Got {error!r:.200}; see 'synthgen verify'."
            ) from None
