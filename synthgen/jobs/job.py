"""One sharded job: what generating, labeling, merging, … have in common.

    begin → run_shard for every shard, in any order, anywhere → finalize

``begin`` claims the settings: what is there must be of the same ones. A shard is done if and only
if its marker says so of what is there now; else it is made: staged, published whole, and marked
last. ``finalize`` publishes what is to be said of all shards once all are done. Killed anywhere,
the same job goes on and ends in the same bytes. Nothing here knows who calls: a loop, threads, a
Prefect flow, Ray. A job travels to other processes without what it has opened and computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from synthgen.config import digest
from synthgen.dataset.listed import ListedShard, first_shards, listed_shards
from synthgen.dataset.manifest import check_description, read_manifest
from synthgen.dataset.sidecars import SideFolder, SideMarker
from synthgen.progress import Progress, report
from synthgen.storage.publish import Storage, explain_disk_errors, open_storage
from synthgen.storage.redaction import redact
from synthgen.storage.seal import sealed_json

TEXT_BYTES = 100_000
"""Generous for the small files of a dataset."""

M = TypeVar("M")
Side = TypeVar("Side", bound=SideMarker)


@dataclass(frozen=True, slots=True)
class Done(Generic[M]):
    """A shard that is done.

    Args:
        marker: Its commit marker.
        reused: It was done before, and nothing was made.
    """

    marker: M
    reused: bool


class Job(ABC, Generic[M]):
    """Work on the shards of one dataset.

    Args:
        out: The dataset's folder or URL.
    """

    name: ClassVar[str]
    """What it does: ``generate``."""

    def __init__(self, out: str | Path) -> None:
        self.out = str(out)

    def __getstate__(self) -> dict[str, Any]:
        """All but what another process opens and computes for itself."""
        cached = (name for name in vars(self) if isinstance(_of(self, name), cached_property))
        return {name: value for name, value in vars(self).items() if name not in {*cached}}

    @cached_property
    def storage(self) -> Storage:
        """The dataset, opened once."""
        return open_storage(self.out)

    @property
    def subject(self) -> str:
        """What tables of its shards are about."""
        return redact(self.out)

    @property
    @abstractmethod
    def planned(self) -> tuple[int, int]:
        """Samples and shards in all."""

    @abstractmethod
    def begin(self) -> None:
        """Claim the settings, or check that what is there is of the same ones."""

    @abstractmethod
    def missing(self, progress: Progress = report) -> Sequence[str]:
        """File stems of the shards to look at: all that are not known to be done."""

    @abstractmethod
    def existing(self, shard: str) -> M | None:
        """The marker of a shard that is done; None where it is still to be made."""

    @abstractmethod
    def make(self, shard: str, progress: Progress) -> M:
        """Make a shard: stage and publish it, its marker last."""

    @abstractmethod
    def needs(self, shard: str) -> tuple[int, int, str]:
        """Samples planned of a shard, bytes that it takes, and what to call it in an error."""

    @abstractmethod
    def finalize(self) -> dict[str, Any]:
        """Publish what is said of all shards; may be repeated.

        Raises:
            RuntimeError: If shards are missing; they are named.
        """

    def row(self, done: Done[M]) -> dict[str, Any]:
        """What a table says of a shard."""
        return {"reused": done.reused}

    def run_shard(self, shard: str, progress: Progress = report) -> Done[M]:
        """Make one shard, or find that it is done; any number may do so at once.

        Raises:
            OSError: In one line with the space needed, if the disk is full.
        """
        samples, num_bytes, what = self.needs(shard)
        marker = self.existing(shard)
        done = Done(marker, True) if marker is not None else None
        if done is None:
            with explain_disk_errors(self.storage, num_bytes, what):
                done = Done(self.make(shard, progress), False)
        progress("shard", name=shard, planned=samples, reused=done.reused)
        return done

    def run(self, progress: Progress = report) -> dict[str, Any]:
        """All of it, in this process; returns what ``finalize`` published."""
        self.begin()
        for shard in self.missing(progress):
            self.run_shard(shard, progress)
        return self.finalize()


class SideJob(Job[Side]):
    """A job whose results are put beside a finished dataset, in a folder of their own.

    Args:
        out: The dataset's folder or URL.
        num: Whole shards until this many samples; None: all.

    Raises:
        ValueError: In one line, if the dataset is not finished.
    """

    folder: SideFolder[Side]
    schema_version: ClassVar[int]
    result_id: str
    content: Mapping[str, Any]
    """All that determines the results but the tars."""

    def __init__(self, out: str | Path, num: int | None) -> None:
        super().__init__(out)
        chosen = first_shards(listed_shards(self.storage), num)
        self.listed: dict[str, ListedShard] = {shard.stem: shard for shard in chosen}

    @property
    def subject(self) -> str:
        """The id of the results."""
        return self.result_id

    @cached_property
    def digest(self) -> str:
        """Of ``content``."""
        return digest(self.content)

    @property
    def planned(self) -> tuple[int, int]:
        """Samples and shards in all."""
        return sum(shard.samples for shard in self.listed.values()), len(self.listed)

    def begin(self) -> None:
        """Claim the folder, or check that the results there are of the same settings.

        Raises:
            ValueError: With the keys that differ, or what the manifest does not vouch for.
        """
        if manifest := read_manifest(self.storage):
            check_description(self.storage, manifest)
        self.folder.claim(self.storage, self.result_id, self.content, self.schema_version)

    def missing(self, progress: Progress = report) -> Sequence[str]:
        """All shards: a look at a marker costs little."""
        return list(self.listed)

    def existing(self, shard: str) -> Side | None:
        """The marker of results that are of these settings and of the tar that is there."""
        marker = self.folder.read_marker(self.storage, self.result_id, shard)
        sha256 = self.listed[shard].sha256
        if marker is None or not self.folder.is_done(self.storage, self.result_id, marker, sha256):
            return None
        return marker if marker.digest == self.digest else None

    def finalize(self) -> dict[str, Any]:
        """Publish the totals over all planned shards once every one is done; returns them."""
        found = {shard: self.existing(shard) for shard in self.listed}
        missing = [shard for shard, marker in found.items() if marker is None]
        refuse_missing(missing, f"the {self.folder.folder} {self.result_id}")
        summary = self.summarize([marker for marker in found.values() if marker is not None])
        self.storage.sync()
        name = self.folder.summary_name(self.result_id)
        self.storage.publish_bytes(sealed_json(summary), name)
        return summary

    @abstractmethod
    def summarize(self, markers: Sequence[Side]) -> dict[str, Any]:
        """The content of ``summary.json``."""


def refuse_missing(shards: Sequence[str], what: str) -> None:
    """Refuse to finalize before every shard is done.

    Args:
        shards: Those that are not.
        what: Is finalized.

    Raises:
        RuntimeError: With how many are missing, and the first five.
    """
    if shards:
        raise RuntimeError(
            f"Every shard must be done before {what} is finalized. Got {len(shards)} missing "
            f"({', '.join(shards[:5])}). Run the same command again to make them."
        )


def _of(job: Job[Any], name: str) -> object:
    """What the class has under a name."""
    return getattr(type(job), name, None)
