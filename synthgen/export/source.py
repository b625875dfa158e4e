"""The samples that an export takes from a finished dataset, one shard at a time.

Audits choose samples, labels give classes, a threshold turns weakly labeled objects into pixels
to ignore, another joins small ones to their neighbors. Everything read here is untrusted: keys
become file names and are checked, class ids must be known, and a tar must be the one that the
manifest lists.

Objects of classes do not overlap: what is below the least area joins what it borders on most, in
the semantic map as among the objects, so that no format loses a pixel. Masks overlap: what is
below it is left out, and its children hang below the next larger mask that holds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from jaxtyping import Bool, UInt8
from pydantic import Field, model_validator
from scipy import ndimage

from synthgen.config import Fraction as Share
from synthgen.config import Section
from synthgen.dataset.audits import AUDITS, read_verdicts
from synthgen.dataset.labels import LabelReader, check_ids, class_ids, class_names, with_labels
from synthgen.dataset.listed import ListedShard, listed_shards
from synthgen.dataset.manifest import read_manifest
from synthgen.dataset.masks import ShardSamples
from synthgen.dataset.records import IMAGE_OPTIONS, KEY, decode_sample
from synthgen.dataset.rle import decode_masks
from synthgen.dataset.split import assign_split, parse_split, photo_of, split_group
from synthgen.export.format import ExportSample, Instance
from synthgen.export.paste import paste
from synthgen.registry import EXPORTERS
from synthgen.segmentation.masks import label_components
from synthgen.storage.publish import Storage, open_storage
from synthgen.types import BACKGROUND, IGNORE, Verdict

BARE = "mask"
"""Name of the class of masks that have none."""

_EIGHT = np.ones((3, 3), dtype=bool)
_Map = UInt8[np.ndarray, "height width"]


class ExportSettings(Section):
    """What is exported and how."""

    format: str = Field("coco", description="Row of EXPORTERS or 'module:attribute'.")
    split: str = Field("1", description="Shares of train, val and test by prompt: 0.9/0.1.")
    audited: str | None = Field(None, description="Id of an audit whose verdicts are honored.")
    keep_only: bool = Field(
        True, description="With audited: leave out the samples that it rejects; else only tell."
    )
    labels: str | None = Field(
        None, description="Id of labels beside the dataset; null: those in its tars, if any."
    )
    min_label_score: Share = Field(
        0.0, description="Objects with less sure labels become pixels to ignore."
    )
    masks: Literal["labeled", "all"] = Field(
        "labeled",
        description="labeled: objects by class, or every mask where there are no labels; all: "
        "every mask, with its label where it has one and its parent.",
    )
    min_area: float = Field(
        0.0,
        ge=0.0,
        description="Pixels, or below 1 a share of the image. A smaller object joins what it "
        "borders on, a smaller mask is left out.",
    )
    paste: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="Chance that the objects of another sample of its shard and split are pasted "
        "over a sample, and by the same chance those of one more; see `paste`.",
    )
    segmentation: str | None = Field(
        None, description="How COCO's masks are written: polygon (null), rle or rle-list."
    )

    @model_validator(mode="after")
    def _fits(self) -> ExportSettings:
        parse_split(self.split)
        if self.segmentation is not None and self.format in {*EXPORTERS} - {"coco"}:
            raise ValueError(
                f"segmentation must be given with the format coco. Got {self.segmentation!r:.40} "
                f"with {self.format}; leave it out."
            )
        if self.paste and (self.masks == "all" or self.format == "hf-parquet"):
            raise ValueError(
                f"paste must be 0 where masks without a class are written: pasted objects have "
                f"none. Got {self.paste:g} with "
                f"{'masks=all' if self.masks == 'all' else 'hf-parquet'}."
            )
        if not self.keep_only and self.audited is None:
            raise ValueError(
                "keep_only=false has no effect without audited. Leave it out, or name an audit."
            )
        return self

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """Shares of train, val and test."""
        return parse_split(self.split)


class Source:
    """A finished dataset, read for an export.

    Args:
        directory: Its folder or URL.
        settings: What is taken from it.

    Raises:
        ValueError: If it is not finished, or there is no such audit or labels.
    """

    def __init__(self, directory: str | Path, settings: ExportSettings) -> None:
        self.storage: Storage = open_storage(directory)
        self.settings = settings
        self.shards = listed_shards(self.storage)
        hashes = {shard.stem: shard.sha256 for shard in self.shards}
        if settings.audited is not None:
            AUDITS.read_done(self.storage, settings.audited, hashes)  # says what is missing
        self._reader = None
        if settings.labels is not None:
            self._reader = LabelReader(self.storage, settings.labels, hashes)
        self._names = class_names(self.storage)
        self.labeled = self._reader is not None or self._holds_labels()
        self.overlapping = settings.masks == "all" or not self.labeled
        if settings.paste and not self.labeled:
            raise ValueError(
                f"paste needs labels: objects are pasted with their classes. Got none in "
                f"{self.storage.root}; run 'synthgen label', and name its labels."
            )
        known = class_ids(self._names) if self.labeled else {}
        if BARE in known and self.overlapping:
            raise ValueError(
                f"masks=all needs the name {BARE!r} for masks without a class. Got a class of "
                f"that name; rename it."
            )
        self.classes = {number: name for name, number in known.items()}
        if self.overlapping:  # the next free id
            number = max(self.classes, default=0) + 1
            self.classes[number + (number == IGNORE)] = BARE

    def samples(self, shard: ListedShard, left_out: Counter[str]) -> Iterator[ExportSample]:
        """A shard's samples in order; those that the audit rejects are counted by reason.

        Raises:
            ValueError: If a sample is broken or has a class that is not known.
        """
        verdicts: Mapping[str, Verdict] = {}
        if (audited := self.settings.audited) is not None:
            verdicts = read_verdicts(self.storage, audited, {shard.stem: shard.sha256})[shard.stem]
        with self.storage.open(shard.name) as stream:
            stored = ShardSamples(stream, shard)
            chosen: list[int] = []
            for index, key in enumerate(stored.keys):
                verdict = verdicts.get(key)
                if verdict is not None and self.settings.keep_only and not verdict.keep:
                    left_out[verdict.reason] += 1
                else:
                    chosen.append(index)

            def read(index: int) -> ExportSample:
                key = stored.keys[index]
                return self._sample(key, stored.members(index), verdicts.get(key))

            for index in chosen:
                yield self._pasted(read(index), read, chosen)

    def _pasted(
        self, sample: ExportSample, read: Callable[[int], ExportSample], chosen: Sequence[int]
    ) -> ExportSample:
        """The sample with objects of others, by chance: a function of its key and the shard."""
        rng = np.random.default_rng(int(sample.key))
        while rng.random() < self.settings.paste:
            other = read(chosen[int(rng.integers(len(chosen)))])
            if other.key != sample.key and other.split == sample.split:
                sample = paste(sample, other, rng)
        return sample

    def _sample(
        self, key: str, members: Mapping[str, bytes], verdict: Verdict | None
    ) -> ExportSample:
        if not KEY.fullmatch(key):
            raise ValueError(f"A key must be 10 to 20 digits. Got {key!r:.40}.")
        decoded = decode_sample(key, members, masks=False)
        if self._reader is not None:
            decoded = with_labels(decoded, self._reader.members(key))
        semantic = decoded["semantic"] if self.labeled and "semantic" in decoded else None
        if self.labeled:
            if semantic is None:
                raise ValueError(f"Sample {key} must have labels, as others do. Got none.")
            check_ids(key, semantic, self._names)
        least, least_score = self.settings.min_area, self.settings.min_label_score
        least *= decoded["mask"].size if least < 1 else 1
        instances = self._instances(decoded, least)
        if semantic is not None and not self.overlapping:
            if least:
                semantic, instances = join_small(semantic, instances, least)
            for item in instances:
                if item.score < least_score:
                    semantic = np.where(item.mask, np.uint8(IGNORE), semantic)
            instances = tuple(item for item in instances if item.score >= least_score)
        image_format = next(name for name in IMAGE_OPTIONS if name in members)
        return ExportSample(
            key=key,
            split=assign_split(
                split_group(decoded["prompt"], photo_of(decoded["json"])), self.settings.shares
            ),
            image=members[image_format],
            image_format=image_format,
            pixels=decoded["image"],
            semantic=semantic,
            instances=instances,
            id_map=decoded["mask"],
            segments=tuple(decoded["json"]["segments"]),
            prompt_id=str(decoded["json"]["prompt_id"]),
            prompt=decoded["prompt"],
            verdict=verdict,
        )

    def _instances(self, decoded: Mapping[str, Any], least: float) -> tuple[Instance, ...]:
        try:
            entries = decoded["json"]["segments" if self.overlapping else "instances"]
            masks = decode_masks([entry["rle"] for entry in entries], *decoded["mask"].shape)
            if self.overlapping:
                least_score = self.settings.min_label_score
                return mask_objects(entries, masks, self.classes, least, least_score)
            numbers = {name: number for number, name in self.classes.items()}
            return tuple(
                Instance(numbers[entry["label"]], float(entry["label_score"]), mask)
                for entry, mask in zip(entries, masks, strict=True)
                if mask.any()
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Objects of sample {decoded['key']} must be readable and of classes in "
                f"classes.json. Got {error!r:.120}."
            ) from None

    def _holds_labels(self) -> bool:
        """Whether the tars hold labels: all samples have the same members, so one tells."""
        with self.storage.open(self.shards[0].name) as stream:
            return "sem.png" in ShardSamples(stream, self.shards[0]).members(0)


def describe_origin(storage: Storage) -> dict[str, str]:
    """What the dataset says it was made from, and the license of its models.

    Licenses are read from the file: importing ``synthgen.diffusion`` would load diffusers.
    """
    text = resources.files("synthgen").joinpath("diffusion/cards.yaml").read_text("utf-8")
    licenses = {
        name: str(card.get("license", "unknown"))
        for key, card in yaml.safe_load(text).items()
        for name in (key, card.get("hub_id"))
    }
    manifest = read_manifest(storage) or {}
    models = [str(model.get("id")) for model in manifest.get("models", ())]
    found = sorted({licenses.get(model, "unknown") for model in models})
    return {
        "digest": str(manifest.get("config", "")),
        "models": ", ".join(models) or "unknown",
        "license": ", ".join(found) or "unknown",
    }


def mask_objects(
    entries: Sequence[Mapping[str, Any]],
    masks: Bool[np.ndarray, "mask height width"],
    classes: Mapping[int, str],
    least: float,
    least_score: float,
) -> tuple[Instance, ...]:
    """Every mask of at least ``least`` pixels, each with the position of its parent.

    Args:
        entries: Segments of a sample, largest first; ``parent`` is the number of an earlier one.
        classes: The last one is that of masks without a class, or of one that scores less than
            ``least_score``.

    Raises:
        ValueError: If a parent is no earlier mask.
    """
    numbers = {name: number for number, name in classes.items()}
    *_, bare = classes
    found: list[Instance] = []
    above: list[int | None] = []  # position among those found: the mask itself or its ancestor
    for entry, mask in zip(entries, masks, strict=True):
        if entry["parent"] > len(above):
            raise ValueError(f"parent must be an earlier mask. Got {entry['parent']}.")
        parent = above[entry["parent"] - 1] if entry["parent"] else None
        if mask.sum() < max(1.0, least):
            above.append(parent)
            continue
        above.append(len(found))
        label, score = entry["label"], float(entry["label_score"])
        sure = label in numbers and score >= least_score
        found.append(Instance(*((numbers[label], score) if sure else (bare, 1.0)), mask, parent))
    return tuple(found)


def join_small(
    semantic: _Map, instances: tuple[Instance, ...], least: float
) -> tuple[_Map, tuple[Instance, ...]]:
    """Objects and specks of fewer than ``least`` pixels join what they border on most.

    The smallest first; what has grown to ``least`` pixels by then stays.

    >>> speck = Instance(2, 1.0, np.array([[False, True, False]]))
    >>> join_small(np.array([[1, 2, 1]], dtype=np.uint8), (speck,), 2.0)
    (array([[1, 1, 1]], dtype=uint8), ())
    """
    objects = np.zeros(semantic.shape, dtype=np.int64)
    for number, instance in enumerate(instances, start=1):
        objects[instance.mask] = number
    for label in set(np.unique(semantic[objects == 0]).tolist()) - {BACKGROUND, IGNORE}:
        specks, _ = label_components((semantic == label) & (objects == 0))
        objects = np.where(specks > 0, specks + objects.max(), objects)
    semantic = semantic.copy()
    areas = np.bincount(objects.ravel())
    small = [number for number in range(1, len(areas)) if areas[number] < least]
    for number in sorted(small, key=lambda number: int(areas[number])):
        region = objects == number
        border = ndimage.binary_dilation(region, structure=_EIGHT) & ~region
        if region.sum() < least and border.any():
            pairs = np.stack([semantic[border].astype(np.int64), objects[border]])
            found, counts = np.unique(pairs, axis=1, return_counts=True)
            semantic[region], objects[region] = found[:, counts.argmax()]
    grown = (replace(item, mask=objects == i) for i, item in enumerate(instances, start=1))
    return semantic, tuple(item for item in grown if item.mask.sum() >= max(1.0, least))
