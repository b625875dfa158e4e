"""Labels in a dataset: in its tars, or beside them in ``labels/<id>/``; both are read alike.

A sample then has ``semantic`` (ids of classes.json, 0 background, 255 undecided); in its json
each segment has ``label`` (class name, "background", or "" undecided) and ``label_score``, and
there are ``instances`` (components of the semantic map) and ``not_found``. Labels made with other
ks than the dataset's are about other masks; ``mask``, ``masks`` and ``segments`` are then those.

    labels/<id>/labels.json         what they are: settings, digest; written first
    labels/<id>/train-000000.tar    KEY.json, KEY.sem.png, and KEY.mask.png where ks differ
    labels/<id>/train-000000.json   commit marker of that tar, with its statistics
    labels/<id>/summary.json        statistics over all shards; written last
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.dataset.label_statistics import merge_statistics
from synthgen.dataset.manifest import CLASSES, shard_of
from synthgen.dataset.records import check_sample, decode_image
from synthgen.dataset.rle import decode_masks
from synthgen.dataset.shards import read_span, scan, spans
from synthgen.dataset.sidecars import SideFolder, SideMarker
from synthgen.storage.publish import Storage, open_storage, sha256_file
from synthgen.storage.seal import sealed_record
from synthgen.storage.untrusted import parse_object, quote
from synthgen.types import BACKGROUND, IGNORE

LABELS_SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class LabelMarker(SideMarker):
    """The commit marker of a shard's labels."""

    statistics: Mapping[str, Any] = field(default_factory=dict)  # see `label_statistics`
    seconds: float = 0.0  # wall time
    created: str = ""  # time of completion, ISO 8601, UTC


LABELS = SideFolder("labels", "label", ".tar", LabelMarker, "The id of labels")
check_label_id, is_labeled = LABELS.check_id, LABELS.is_done
description_name, summary_name = LABELS.description_name, LABELS.summary_name
labels_tar_name, labels_marker_name = LABELS.file_name, LABELS.marker_name
read_labels_marker, labels_marker_bytes = LABELS.read_marker, sealed_record


def summarize_labels(label_id: str, markers: Sequence[LabelMarker]) -> dict[str, Any]:
    """The content of summary.json, a function of the markers alone."""
    return {
        "schema_version": LABELS_SCHEMA_VERSION,
        "id": label_id,
        "digest": markers[0].digest,
        "shards": len(markers),
        "statistics": merge_statistics(marker.statistics for marker in markers),
    }


def label_ids(out: str | Path | Storage) -> list[str]:
    """Ids of the label folders in a dataset, sorted, finished or not."""
    storage = out if isinstance(out, Storage) else open_storage(out)
    return LABELS.ids(storage)


def class_names(out: str | Path | Storage) -> dict[int, str]:
    """Names by id, as classes.json has them; empty where there is none.

    Raises:
        ValueError: If it is no table of ids.
    """
    storage = out if isinstance(out, Storage) else open_storage(out)
    content = storage.read(CLASSES)
    if content is None:
        return {}
    try:
        return {int(number): str(name) for number, name in parse_object(content).items()}
    except ValueError as error:
        raise ValueError(f"{CLASSES} must map ids to names. Got {error!r:.100}.") from None


def class_ids(names: Mapping[int, str]) -> dict[str, int]:
    """Ids by name, without background and undecided.

    >>> class_ids({0: "background", 1: "cat", 255: "ignore"})
    {'cat': 1}
    """
    return {name: number for number, name in names.items() if number not in (BACKGROUND, IGNORE)}


def check_ids(
    where: str, semantic: UInt8[np.ndarray, "height width"], names: Mapping[int, str]
) -> None:
    """Refuse a semantic map with ids that classes.json does not know.

    Raises:
        ValueError: In one line, with the ids.

    >>> check_ids("0", np.array([[7]], dtype=np.uint8), {0: "background", 255: "ignore"})
    Traceback (most recent call last):
    ValueError: Sample 0: sem.png must hold ids of classes.json. Got [7]; known: 0, 255.
    """
    unknown = sorted(set(np.unique(semantic).tolist()) - {BACKGROUND, IGNORE, *names})
    if unknown:
        known = ", ".join(str(number) for number in sorted(names)[:8])
        more = ", …" if len(names) > 8 else ""
        raise ValueError(
            f"Sample {where}: sem.png must hold ids of {CLASSES}. Got {unknown[:8]}; "
            f"known: {known}{more}."
        )


class LabelReader:
    """The labels of a side folder, shard by shard; can be sent to another process.

    Args:
        storage: The dataset.
        label_id: Name of the folder in ``labels``.
        shards: File stem to tar hash of every shard that must be labeled.

    Raises:
        ValueError: If there are no such labels, or not for every one of these shards.
    """

    def __init__(self, storage: Storage, label_id: str, shards: Mapping[str, str]) -> None:
        LABELS.read_done(storage, label_id, shards)
        self._storage, self._label_id = storage, label_id
        self._shard = ""
        self._members: dict[str, dict[str, bytes]] = {}

    def members(self, key: str) -> Mapping[str, bytes]:
        """Members of a sample's labels by suffix; a shard's are kept until another is asked for.

        Raises:
            ValueError: If there are none, or the tar is broken.
        """
        shard = shard_of(key)
        if shard != self._shard:
            self._members, self._shard = self._read(shard), shard
        if key not in self._members:
            raise ValueError(f"Sample {key} must have labels in {self._label_id}. Got none.")
        return self._members[key]

    def _read(self, shard: str) -> dict[str, dict[str, bytes]]:
        name = labels_tar_name(self._label_id, shard)
        marker = read_labels_marker(self._storage, self._label_id, shard)
        with self._storage.open(name) as stream:
            if marker is None or sha256_file(stream) != marker.sha256:
                raise ValueError(
                    f"{name} must be the tar of its marker. Got another one; remove the marker "
                    f"and run 'synthgen label' again."
                )
            return {span.key: read_span(stream, span) for span in spans(scan(stream))}


def with_labels(sample: Mapping[str, Any], members: Mapping[str, bytes]) -> dict[str, Any]:
    """A decoded sample with labels in place of those it had.

    Args:
        sample: As `open_dataset` yields it.
        members: Members of its labels by suffix.

    Raises:
        ValueError: If they are broken or another sample's.
    """
    key = sample["key"]
    try:
        given = parse_object(members["json"])
        if given["key"] != key:
            raise ValueError(f"labels of {quote(given['key'], 40)}")
        info = {**sample["json"], "not_found": given["not_found"], "instances": given["instances"]}
        result = {**sample, "semantic": decode_image(members["sem.png"], "L"), "json": info}
        height, width = sample["mask"].shape
        if result["semantic"].shape != (height, width):
            raise ValueError(f"sem.png of {result['semantic'].shape}")
        if "mask.png" in members:  # labels of other ks, about other masks
            info |= {"num_segments": len(given["segments"]), "segments": given["segments"]}
            result["mask"] = decode_image(members["mask.png"], "L")
            if "masks" in sample:
                rles = [segment["rle"] for segment in given["segments"]]
                result["masks"] = decode_masks(rles, height, width)
        else:
            info["segments"] = [
                {**segment, "label": label["label"], "label_score": label["label_score"]}
                for segment, label in zip(info["segments"], given["segments"], strict=True)
            ]
        check_sample(result["json"])
        return result
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Labels of sample {key} must be readable. Got {error!r:.200}.") from None
