"""Several datasets become one: every shard is written again, under new keys.

Shard by shard and sample by sample, so that memory does not grow; a shard is published like one
that was drawn. The rows in ``metadata`` say where each sample came from. What was made of the
sources (audits, labels beside them) is about them and stays there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from synthgen.config import Config, digest
from synthgen.dataset.card import class_table
from synthgen.dataset.labels import class_ids, class_names
from synthgen.dataset.manifest import (
    Marker,
    check_description,
    distinct,
    is_complete,
    marker_name,
    preview_name,
    read_manifest,
    read_marker,
    shard_index,
    shard_stem,
    tar_name,
)
from synthgen.dataset.metadata import Origin, read_rows
from synthgen.dataset.rekey import rekey, translate_ids
from synthgen.dataset.shards import read_span, scan, spans, whole_tar
from synthgen.jobs.classes import check_names
from synthgen.jobs.description import publish_description, publish_totals
from synthgen.jobs.generate import check_complete, existing_identity
from synthgen.jobs.identity import identity_bytes, read_config, read_identity
from synthgen.jobs.job import TEXT_BYTES, Job
from synthgen.jobs.shard import Staged, publish_shard
from synthgen.progress import Progress, report
from synthgen.storage.publish import Storage, explain_disk_errors, open_storage
from synthgen.storage.seal import open_vouched
from synthgen.types import shard_name


@dataclass(frozen=True, slots=True)
class Source:
    """A finished dataset that is merged.

    Args:
        storage: Where it is.
        identity: Content of its identity.json.
        config: Its configuration.
        hashes: Hash of the tar by file stem of its shards, in order; empty for skipped ones.
        planned: Samples planned of each.
    """

    storage: Storage
    identity: dict[str, Any]
    config: Config
    hashes: dict[str, str]
    planned: tuple[int, ...]

    @property
    def digest(self) -> str:
        """Of what determines its bytes."""
        return str(self.identity["digest"])

    @property
    def labeled(self) -> bool:
        """Whether its samples have labels."""
        return self.config.labeling.method != "none"

    def schema(self) -> dict[str, Any]:
        """What readers of samples rely on, by the name of its setting."""
        return {
            "dataset.image_format": self.config.dataset.image_format,
            "images given (annotation)": "yes" if self.config.annotation.images else "no",
            "labels (labeling.method)": "yes" if self.labeled else "no",
            "segmentation.clusters.ks": list(self.config.segmentation.clusters.ks),
            "recorded versions": sorted(self.identity["environments"][0]["versions"]),
        }


def merge(
    sources: Sequence[str | Path], out: str | Path, progress: Progress = report
) -> dict[str, Any]:
    """Write the samples of several datasets into a new one, or finish doing so.

    Args:
        sources: Finished datasets of equal schema (image format, labels or none, ks, library
            versions that are recorded), in the order of their shards.
        out: The new dataset's folder or URL.
        progress: Told about samples and shards.

    Returns:
        The new manifest.

    Raises:
        ValueError: In one line, if the datasets differ in schema, are the same, or the folder
            holds something else.
        RuntimeError: If a source is broken.
    """
    return MergeJob(sources, out).run(progress)


class MergeJob(Job[Marker]):
    """Writes the samples of several datasets into a new one; see ``merge``."""

    name = "merge"

    def __init__(self, sources: Sequence[str | Path], out: str | Path) -> None:
        super().__init__(out)
        if len(sources) < 2:
            raise ValueError(f"A merge must have at least two datasets. Got {len(sources)}.")
        self.sources = tuple(_source(url) for url in sources)
        _check_sources(self.sources)
        names = {n for s in self.sources for n in class_ids(class_names(s.storage))}
        if self.sources[0].labeled:
            check_names(names)
        pinned = _pinned(self.sources)
        table = class_table(names, pinned)
        self.class_ids = class_ids({int(index): name for index, name in table.items()})
        self.shards = [(source, stem) for source in self.sources for stem in source.hashes]
        changed = {
            "num": self.planned[0],
            "extended": 0,
            "classes": self.class_ids if pinned else None,
        }
        self.config = self.sources[0].config.model_copy(update=changed)
        self.content = _content(self.sources)

    @cached_property
    def digest(self) -> str:
        """Of what determines the bytes: the sources' tars, and the card's facts."""
        return digest(self.content)

    @property
    def planned(self) -> tuple[int, int]:
        """Samples and shards in all."""
        return sum(sum(source.planned) for source in self.sources), len(self.shards)

    def begin(self) -> None:
        """Claim the folder, or check that it is this merge's.

        Raises:
            ValueError: If something else is there.
        """
        self._check_target()  # before there is so much as a lock in the folder
        with (
            explain_disk_errors(self.storage, TEXT_BYTES, "the dataset's description"),
            self.storage.publishing(),
        ):
            self._check_target()
            environments = distinct(e for s in self.sources for e in s.identity["environments"])
            identity = identity_bytes(self.content, environments)
            publish_description(self.storage, self.config, identity, self.class_ids)
        self.storage.clear_stale_staging()

    def _check_target(self) -> None:
        existing = existing_identity(self.storage)
        if existing is not None and existing["digest"] != self.digest:
            raise ValueError(
                f"The output must be an empty folder or this merge begun before. Got another "
                f"dataset in {self.storage.root}. Choose another folder."
            )

    def missing(self, progress: Progress = report) -> Sequence[str]:
        """All shards: a look at a marker costs little."""
        return [shard_name(index) for index in range(len(self.shards))]

    def needs(self, shard: str) -> tuple[int, int, str]:
        """Samples, bytes and name of a shard."""
        old = self._old_marker(shard)
        return old.planned, old.bytes + TEXT_BYTES, f"shard {shard}"

    def _old_marker(self, shard: str) -> Marker:
        source, stem = self.shards[shard_index(shard)]
        marker = read_marker(source.storage, stem)
        if marker is None:
            raise RuntimeError(
                f"{source.storage.path(marker_name(stem))} must be readable. Got none; see "
                f"'synthgen verify'."
            )
        return marker

    def existing(self, shard: str) -> Marker | None:
        """The marker of a shard that is complete, and has previews if its source has."""
        source, stem = self.shards[shard_index(shard)]
        marker = read_marker(self.storage, shard)
        planned = self._old_marker(shard).planned
        if marker is None or not is_complete(self.storage, marker, self.digest, planned):
            return None
        same = _has_previews(source.storage, stem) == _has_previews(self.storage, shard)
        return marker if same else None

    def make(self, shard: str, progress: Progress) -> Marker:
        """Write one shard of a source under another name."""
        source, stem = self.shards[shard_index(shard)]
        old, started = self._old_marker(shard), time.perf_counter()
        rows = [
            replace(row, key=_key(shard, row.key), origin=Origin(source.digest, row.key))
            for row in read_rows(source.storage, stem, old)
        ]
        with self.storage.staging() as folder:
            tar, previews = folder / "shard.tar", None
            if not old.skipped:
                self._copy(shard, tar_name(stem), source.hashes[stem], tar, progress)
            if _has_previews(source.storage, stem):
                previews = folder / "previews.tar"
                self._copy(shard, preview_name(stem), old.previews_sha256, previews, None)
            facts: Mapping[str, Any] = {
                "config": self.digest,
                "batch_size": old.batch_size,
                "seconds": {"write": round(time.perf_counter() - started, 3)},
                "environment": old.environment,
            }
            staged = Staged(tar, previews, rows)
            return publish_shard(self.storage, shard, staged, facts, lambda: None)

    def _copy(
        self, shard: str, name: str, sha256: str, path: Path, progress: Progress | None
    ) -> None:
        """The samples of a tar of the shard's source, which must have this hash, with new keys."""
        source, _ = self.shards[shard_index(shard)]
        ids = translate_ids(class_ids(class_names(source.storage)), self.class_ids)
        by = f"the manifest of {source.storage.root}"
        with (
            whole_tar(path) as writer,
            open_vouched(source.storage, name, sha256, by) as stream,
        ):
            for span in spans(scan(stream)):
                key = _key(shard, span.key)
                writer.write(key, rekey(read_span(stream, span), key, ids))
                if progress is not None:
                    progress("samples", count=1)

    def finalize(self) -> dict[str, Any]:
        """Publish card and manifest once all shards are complete; returns the manifest."""
        planned = [num for source in self.sources for num in source.planned]
        found = check_complete(self.storage, self.digest, planned)
        models = distinct(source.identity["content"]["model"] for source in self.sources)
        identity = read_identity(self.storage)
        assert identity is not None
        with explain_disk_errors(self.storage, TEXT_BYTES, "the manifest"):
            return publish_totals(self.storage, self.config, identity, found, models)


def _key(shard: str, old: str) -> str:
    """The new key of a sample: the new shard's number, and the old place in it."""
    return shard.removeprefix("train-") + old[6:]


def _has_previews(storage: Storage, shard: str) -> bool:
    return storage.size(preview_name(shard)) is not None


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
    hashes = {shard_stem(row["name"]): str(row["sha256"]) for row in manifest["shards"]}
    planned = tuple(int(row["planned"]) for row in manifest["shards"])
    return Source(storage, identity, config, hashes, planned)


def _check_sources(sources: Sequence[Source]) -> None:
    """Refuse datasets of another schema, and the same one twice."""
    first = sources[0]
    for position, source in enumerate(sources[1:], start=1):
        theirs = source.schema()
        for name, value in first.schema().items():
            if theirs[name] != value:
                raise ValueError(
                    f"Datasets that are merged must have equal {name}. Got {value} in "
                    f"{first.storage.root} and {theirs[name]} in {source.storage.root}."
                )
        twin = next((s for s in sources[:position] if s.digest == source.digest), None)
        if twin is not None:
            raise ValueError(
                f"Datasets that are merged must be different ones. Got {twin.storage.root} and "
                f"{source.storage.root} with the same settings, prompts and seed: their samples "
                f"are the same. Merge one of them."
            )


def _content(sources: Sequence[Source]) -> dict[str, Any]:
    """What the digest covers."""
    models = [source.identity["content"]["model"] for source in sources]
    ids = dict.fromkeys(str(model["id"]) for model in models)
    same = all(model == models[0] for model in models)
    return {
        "merged": [
            {
                "dataset": source.digest,
                "name": Path(source.storage.root).name,
                "planned": list(source.planned),
                "tars": digest(source.hashes),
            }
            for source in sources
        ],
        "model": models[0] if same else {"id": "`, `".join(ids), "revision": ""},
    }


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
