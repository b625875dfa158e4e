"""The samples that an export takes from a finished dataset, one shard at a time.

Audits choose samples, labels give classes, a threshold turns weakly labeled objects into pixels
to ignore. Everything read here is untrusted: keys become file names and are checked, class ids
must be known, and a tar must be the one that the manifest lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.auditing.samples import ShardSamples
from synthgen.dataset.audits import (
    audit_ids,
    check_audit_id,
    is_audited,
    read_audit_marker,
    read_verdicts,
)
from synthgen.dataset.labels import LabelReader, check_ids, class_ids, class_names, with_labels
from synthgen.dataset.listed import ListedShard, listed_shards
from synthgen.dataset.publish import Storage, open_storage
from synthgen.dataset.records import IMAGE_OPTIONS, KEY, decode_sample
from synthgen.dataset.rle import decode_masks
from synthgen.export.format import ExportSample, Instance
from synthgen.export.split import assign_split
from synthgen.types import IGNORE, Verdict

BARE = {1: "mask"}
"""The classes of a dataset without labels: every mask is a mask."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which samples are exported, with which labels.

    Args:
        audited: Id of an audit that is honored; None: of none.
        keep_only: Leave out the samples that it rejects.
        labels: Id of labels beside the dataset; None: those in its tars, if any.
        min_label_score: Objects of a lower score become pixels to ignore.
        shares: Shares of train, val and test.
    """

    audited: str | None
    keep_only: bool
    labels: str | None
    min_label_score: float
    shares: tuple[Fraction, ...]


class Source:
    """A finished dataset, read for an export.

    Args:
        directory: Its folder or URL.
        selection: What is taken from it.

    Raises:
        ValueError: If it is not finished, or there is no such audit or labels.
    """

    def __init__(self, directory: str | Path, selection: Selection) -> None:
        self.storage: Storage = open_storage(directory)
        self.selection = selection
        self.shards = listed_shards(self.storage)
        hashes = {shard.stem: shard.sha256 for shard in self.shards}
        if selection.audited is not None:
            _check_audited(self.storage, selection.audited, hashes)
        self._reader = None
        if selection.labels is not None:
            self._reader = LabelReader(self.storage, selection.labels, hashes)
        self._names = class_names(self.storage)
        self.labeled = self._reader is not None or self._holds_labels()
        known = class_ids(self._names)
        self.classes = {known[name]: name for name in known} if self.labeled else dict(BARE)

    def samples(self, shard: ListedShard, left_out: Counter[str]) -> Iterator[ExportSample]:
        """A shard's samples in order.

        Args:
            shard: One of ``shards``.
            left_out: Counts the samples that the audit rejects, by reason.

        Raises:
            ValueError: If a sample is broken or has a class that is not known.
        """
        verdicts = self._verdicts(shard)
        with self.storage.open(shard.name) as stream:
            stored = ShardSamples(stream, shard)
            for index, key in enumerate(stored.keys):
                verdict = verdicts.get(key)
                if verdict is not None and self.selection.keep_only and not verdict.keep:
                    left_out[verdict.reason] += 1
                    continue
                yield self._sample(key, stored.members(index), verdict)

    def _sample(
        self, key: str, members: Mapping[str, bytes], verdict: Verdict | None
    ) -> ExportSample:
        if not KEY.fullmatch(key):
            raise ValueError(f"A key must be 10 to 20 digits. Got {key!r:.40}.")
        decoded = decode_sample(key, members, masks=False)
        if self._reader is not None:
            decoded = with_labels(decoded, self._reader.members(key))
        if self.labeled:
            check_ids(key, _semantic(decoded), self._names)
        suffix = next(name for name in IMAGE_OPTIONS if name in members)
        split = assign_split(decoded["prompt"], self.selection.shares)
        return self._convert(decoded, members[suffix], suffix, split, verdict)

    def _convert(
        self,
        decoded: Mapping[str, Any],
        image: bytes,
        image_format: str,
        split: str,
        verdict: Verdict | None,
    ) -> ExportSample:
        info, least = decoded["json"], self.selection.min_label_score
        found = _instances(decoded, self.classes if self.labeled else None)
        semantic = _semantic(decoded) if self.labeled else None
        if semantic is not None:
            semantic = ignore_weak(semantic, found, least)
        return ExportSample(
            key=decoded["key"],
            split=split,
            image=image,
            image_format=image_format,
            pixels=decoded["image"],
            semantic=semantic,
            instances=tuple(item for item in found if item.score >= least),
            id_map=decoded["mask"],
            segments=tuple(info["segments"]),
            prompt_id=str(info["prompt_id"]),
            prompt=decoded["prompt"],
            verdict=verdict,
        )

    def _holds_labels(self) -> bool:
        """Whether the tars hold labels: all samples have the same members, so one tells."""
        with self.storage.open(self.shards[0].name) as stream:
            return "sem.png" in ShardSamples(stream, self.shards[0]).members(0)

    def _verdicts(self, shard: ListedShard) -> Mapping[str, Verdict]:
        audited = self.selection.audited
        if audited is None:
            return {}
        return read_verdicts(self.storage, audited, {shard.stem: shard.sha256})[shard.stem]


def ignore_weak(
    semantic: UInt8[np.ndarray, "height width"], instances: tuple[Instance, ...], least: float
) -> UInt8[np.ndarray, "height width"]:
    """A semantic map with 255 where an object's label has a score below ``least``.

    >>> cat = Instance(1, 0.25, np.array([[True, False]]))
    >>> ignore_weak(np.array([[1, 0]], dtype=np.uint8), (cat,), 0.5).tolist()
    [[255, 0]]
    """
    weak = [item.mask for item in instances if item.score < least]
    if not weak:
        return semantic
    return np.where(np.any(weak, axis=0), np.uint8(IGNORE), semantic)


def _semantic(decoded: Mapping[str, Any]) -> UInt8[np.ndarray, "height width"]:
    if "semantic" not in decoded:
        raise ValueError(f"Sample {decoded['key']} must have labels, as others do. Got none.")
    semantic: UInt8[np.ndarray, "height width"] = decoded["semantic"]
    return semantic


def _instances(
    decoded: Mapping[str, Any], classes: Mapping[int, str] | None
) -> tuple[Instance, ...]:
    """Objects of a labeled sample; without classes every mask."""
    info, (height, width) = decoded["json"], decoded["mask"].shape
    try:
        entries = info["segments"] if classes is None else info["instances"]
        masks = decode_masks([entry["rle"] for entry in entries], height, width)
        if classes is None:
            return tuple(Instance(1, 1.0, mask) for mask in masks if mask.any())
        numbers = {name: number for number, name in classes.items()}
        return tuple(
            Instance(numbers[entry["label"]], float(entry["label_score"]), mask)
            for entry, mask in zip(entries, masks, strict=True)
            if mask.any()
        )
    except (KeyError, TypeError, ValueError) as error:
        key = decoded["key"]
        raise ValueError(
            f"Objects of sample {key} must be readable and of classes in classes.json. "
            f"Got {error!r:.120}."
        ) from None


def _check_audited(storage: Storage, audited: str, hashes: Mapping[str, str]) -> None:
    """Refuse an audit that is not there or not about every shard, before work begins."""
    first = dict(list(hashes.items())[:1])
    if check_audit_id(audited) not in audit_ids(storage):
        read_verdicts(storage, audited, first)  # says so, and which there are
    for stem, sha256 in hashes.items():
        if not is_audited(storage, audited, read_audit_marker(storage, audited, stem), sha256):
            read_verdicts(storage, audited, {stem: sha256})
