"""Which datasets may become one, what the new one is, and the files that describe it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen.config import Config, digest
from synthgen.dataset.card import class_table
from synthgen.dataset.labels import class_ids, class_names
from synthgen.dataset.manifest import (
    check_description,
    read_manifest,
    shard_stem,
)
from synthgen.jobs.classes import check_names
from synthgen.jobs.description import publish_conclusion, publish_description
from synthgen.jobs.identity import identity_bytes, read_config, read_identity
from synthgen.jobs.lifecycle import check_complete, standing_identity
from synthgen.storage.publish import Storage, open_storage


@dataclass(frozen=True, slots=True)
class Source:
    """A finished dataset that is merged.

    Args:
        storage: Where it is.
        digest: Of what determines its bytes.
        identity: Content of its identity.json.
        config: Its configuration.
        hashes: Hash of the tar by file stem of its shards, in order; empty for skipped ones.
        planned: Samples planned of each.
    """

    storage: Storage
    digest: str
    identity: dict[str, Any]
    config: Config
    hashes: dict[str, str]
    planned: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return Path(self.storage.root).name


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What a merged dataset will hold.

    Args:
        sources: In the order of their shards.
        content: What its digest covers.
        class_ids: Ids of its classes.json by name.
    """

    sources: tuple[Source, ...]
    content: dict[str, Any]
    class_ids: dict[str, int]

    @property
    def digest(self) -> str:
        """Digest of what determines its bytes."""
        return digest(self.content)

    @property
    def shards(self) -> list[tuple[Source, str]]:
        """Source and file stem there of each of its shards."""
        return [(source, stem) for source in self.sources for stem in source.hashes]

    @property
    def planned(self) -> int:
        """Samples planned of all sources together."""
        return sum(sum(source.planned) for source in self.sources)

    @property
    def config(self) -> Config:
        """The first source's configuration, with the number of all samples, and all pinned ids."""
        pinned = self.class_ids if _pinned(self.sources) else None
        changed = {"num": self.planned, "extended": 0, "classes": pinned}
        return self.sources[0].config.model_copy(update=changed)


def plan_merge(sources: Sequence[str | Path]) -> MergePlan:
    """The plan of a merge.

    Raises:
        ValueError: In one line, for fewer than two datasets, an unfinished one, the same one
            twice, or another schema.
    """
    if len(sources) < 2:
        raise ValueError(f"A merge must have at least two datasets. Got {len(sources)}.")
    found = tuple(_source(url) for url in sources)
    for position, source in enumerate(found[1:], start=1):
        _check_schema(found[0], source)
        twin = next((s for s in found[:position] if s.digest == source.digest), None)
        if twin is not None:
            raise ValueError(
                f"Datasets that are merged must be different ones. Got {twin.storage.root} and "
                f"{source.storage.root} with the same settings, prompts and seed: their samples "
                f"are the same. Merge one of them."
            )
    names = {name for source in found for name in class_ids(class_names(source.storage))}
    if found[0].config.labeling.method != "none":
        check_names(names)
    return MergePlan(found, _content(found), _ids(names, _pinned(found)))


def describe(plan: MergePlan, storage: Storage) -> None:
    """Claim the folder of a merged dataset, or check that it is this one's.

    Raises:
        ValueError: If something else is there.
    """
    _check_target(plan, storage)  # before there is so much as a lock in the folder
    with storage.publishing():
        _check_target(plan, storage)
        identity = identity_bytes(plan.content, _environments(plan))
        publish_description(storage, plan.config, identity, plan.class_ids)


def _check_target(plan: MergePlan, storage: Storage) -> None:
    standing = standing_identity(storage)
    if standing is not None and standing["digest"] != plan.digest:
        raise ValueError(
            f"The output must be an empty folder or this merge begun before. Got another dataset "
            f"in {storage.root}. Choose another folder."
        )


def finish(plan: MergePlan, storage: Storage) -> dict[str, Any]:
    """Publish card and manifest of a merge whose shards are complete; returns the manifest."""
    planned = [num for source in plan.sources for num in source.planned]
    found = check_complete(storage, plan.digest, planned)
    models: list[dict[str, Any]] = []
    for source in plan.sources:
        model = source.identity["content"]["model"]
        models += [] if model in models else [model]
    identity = read_identity(storage)
    assert identity is not None
    return publish_conclusion(storage, plan.config, identity, found, models)


def _source(url: str | Path) -> Source:
    storage = open_storage(url)
    config, identity = read_config(storage), read_identity(storage)
    manifest = read_manifest(storage)
    if manifest is None:
        raise ValueError(
            f"A dataset must be finished to be merged. Got no manifest.json in {storage.root}; "
            f"finish it with 'synthgen generate'."
        )
    assert identity is not None
    check_description(storage, manifest)
    stems = [shard_stem(row["name"]) for row in manifest["shards"]]
    hashes = {
        stem: str(row["sha256"]) for stem, row in zip(stems, manifest["shards"], strict=True)
    }
    planned = tuple(int(row["planned"]) for row in manifest["shards"])
    return Source(storage, identity["digest"], identity, config, hashes, planned)


def _schema(source: Source) -> dict[str, Any]:
    """What readers of samples rely on, by the name of its setting."""
    config = source.config
    return {
        "dataset.image_format": config.dataset.image_format,
        "labels (labeling.method)": "no" if config.labeling.method == "none" else "yes",
        "segmentation.clusters.ks": list(config.segmentation.clusters.ks),
        "recorded versions": sorted(source.identity["environments"][0]["versions"]),
    }


def _check_schema(first: Source, other: Source) -> None:
    ours, theirs = _schema(first), _schema(other)
    for name, value in ours.items():
        if theirs[name] != value:
            raise ValueError(
                f"Datasets that are merged must have equal {name}. Got {value} in "
                f"{first.storage.root} and {theirs[name]} in {other.storage.root}."
            )


def _content(sources: Sequence[Source]) -> dict[str, Any]:
    """What determines the bytes of a merged dataset: its sources' tars, and the card's facts."""
    models = [source.identity["content"]["model"] for source in sources]
    ids = dict.fromkeys(str(model["id"]) for model in models)
    same = all(model == models[0] for model in models)
    return {
        "merged": [
            {
                "dataset": source.digest,
                "name": source.name,
                "planned": list(source.planned),
                "tars": digest(source.hashes),
            }
            for source in sources
        ],
        "model": models[0] if same else {"id": "`, `".join(ids), "revision": ""},
    }


def _environments(plan: MergePlan) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for source in plan.sources:
        kept += [item for item in source.identity["environments"] if item not in kept]
    return kept


def _pinned(sources: Sequence[Source]) -> dict[str, int]:
    """Ids that the sources' configurations give to classes.

    Raises:
        ValueError: If two of them disagree.
    """
    pinned: dict[str, int] = {}
    for source in sources:
        for name, number in (source.config.classes or {}).items():
            holder = next((n for n, i in pinned.items() if i == number), name)
            if pinned.get(name, number) != number or holder != name:
                raise ValueError(
                    f"Datasets that are merged must not pin different ids. Got {name!r:.80} as "
                    f"{number} in {source.storage.root}, and {holder!r:.80} as "
                    f"{pinned[holder]} before it."
                )
            pinned[name] = number
    return pinned


def _ids(names: set[str], pinned: dict[str, int]) -> dict[str, int]:
    table = class_table(names, pinned)
    return class_ids({int(index): name for index, name in table.items()})
