"""The samples that an export takes from a finished dataset, one shard at a time.

Audits choose samples, labels give classes, a threshold turns weakly labeled objects into pixels
to ignore, another joins small ones to their neighbors. Everything read here is untrusted: keys
become file names and are checked, class ids must be known, and a tar must be the one that the
manifest lists.
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

from synthgen.dataset.audits import (
    audit_ids,
    check_audit_id,
    is_audited,
    read_audit_marker,
    read_verdicts,
)
from synthgen.dataset.labels import LabelReader, check_ids, class_ids, class_names, with_labels
from synthgen.dataset.listed import ListedShard, listed_shards
from synthgen.dataset.manifest import read_manifest
from synthgen.dataset.masks import ShardSamples
from synthgen.dataset.records import IMAGE_OPTIONS, KEY, decode_sample
from synthgen.dataset.rle import decode_masks
from synthgen.dataset.split import assign_split
from synthgen.export.card import model_licenses
from synthgen.export.format import ExportSample, Instance
from synthgen.export.objects import class_objects, ignore_weak, join_small, mask_objects
from synthgen.storage.publish import Storage, open_storage
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
        all_masks: Take every mask instead of the objects by class.
        min_area: Pixels, or below 1 a share of the image, below which an object joins what it
            borders on and a mask is left out.
    """

    audited: str | None
    keep_only: bool
    labels: str | None
    min_label_score: float
    shares: tuple[Fraction, ...]
    all_masks: bool = False
    min_area: float = 0.0


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
        self.overlapping = selection.all_masks or not self.labeled
        self.classes = {known[name]: name for name in known} if self.labeled else dict(BARE)
        if self.labeled and selection.all_masks:
            self.classes |= _bare_class(known)

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
        min_area = self.selection.min_area
        min_area *= decoded["mask"].size if min_area < 1 else 1
        found = self._instances(decoded, min_area)
        semantic = _semantic(decoded) if self.labeled else None
        if semantic is not None and not self.overlapping:
            if min_area:
                semantic, found = join_small(semantic, found, min_area)
            semantic = ignore_weak(semantic, found, least)
            found = tuple(item for item in found if item.score >= least)
        return ExportSample(
            key=decoded["key"],
            split=split,
            image=image,
            image_format=image_format,
            pixels=decoded["image"],
            semantic=semantic,
            instances=found,
            id_map=decoded["mask"],
            segments=tuple(info["segments"]),
            prompt_id=str(info["prompt_id"]),
            prompt=decoded["prompt"],
            verdict=verdict,
        )

    def _instances(self, decoded: Mapping[str, Any], min_area: float) -> tuple[Instance, ...]:
        info, (height, width) = decoded["json"], decoded["mask"].shape
        try:
            entries = info["segments"] if self.overlapping else info["instances"]
            masks = decode_masks([entry["rle"] for entry in entries], height, width)
            if self.overlapping:
                least_score = self.selection.min_label_score
                return mask_objects(entries, masks, self.classes, min_area, least_score)
            return class_objects(entries, masks, self.classes)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Objects of sample {decoded['key']} must be readable and of classes in "
                f"classes.json. Got {error!r:.120}."
            ) from None

    def _holds_labels(self) -> bool:
        """Whether the tars hold labels: all samples have the same members, so one tells."""
        with self.storage.open(self.shards[0].name) as stream:
            return "sem.png" in ShardSamples(stream, self.shards[0]).members(0)

    def _verdicts(self, shard: ListedShard) -> Mapping[str, Verdict]:
        audited = self.selection.audited
        if audited is None:
            return {}
        return read_verdicts(self.storage, audited, {shard.stem: shard.sha256})[shard.stem]


def describe_origin(storage: Storage) -> dict[str, str]:
    """What the dataset says it was made from."""
    manifest = read_manifest(storage) or {}
    models = [str(model.get("id")) for model in manifest.get("models", ())]
    known = model_licenses()
    licenses = sorted({known.get(model, "unknown") for model in models}) or ["unknown"]
    return {
        "digest": str(manifest.get("config", "")),
        "models": ", ".join(models) or "unknown",
        "license": ", ".join(licenses),
    }


def _bare_class(known: Mapping[str, int]) -> dict[int, str]:
    """The class of masks that have none: the next id, which is not 255."""
    name, number = BARE[1], max(known.values(), default=0) + 1
    if name in known:
        raise ValueError(
            f"masks=all needs the name {name!r} for masks without a class. Got a "
            f"class of that name; rename it."
        )
    return {number + (number == IGNORE): name}


def _semantic(decoded: Mapping[str, Any]) -> UInt8[np.ndarray, "height width"]:
    if "semantic" not in decoded:
        raise ValueError(f"Sample {decoded['key']} must have labels, as others do. Got none.")
    semantic: UInt8[np.ndarray, "height width"] = decoded["semantic"]
    return semantic


def _check_audited(storage: Storage, audited: str, hashes: Mapping[str, str]) -> None:
    """Refuse an audit that is not there or not about every shard, before work begins."""
    first = dict(list(hashes.items())[:1])
    if check_audit_id(audited) not in audit_ids(storage):
        read_verdicts(storage, audited, first)  # says so, and which there are
    for stem, sha256 in hashes.items():
        if not is_audited(storage, audited, read_audit_marker(storage, audited, stem), sha256):
            read_verdicts(storage, audited, {stem: sha256})
