"""The shards of a finished dataset, as its manifest lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from synthgen.dataset.manifest import MANIFEST, read_manifest, shard_stem
from synthgen.storage.publish import Storage


@dataclass(frozen=True, slots=True)
class ListedShard:
    """A shard as the manifest lists it: hash and size of its tar, and the samples in it."""

    name: str
    """Of its tar, ``data/train-000000.tar``."""

    sha256: str
    num_bytes: int
    samples: int

    @property
    def stem(self) -> str:
        """Its file stem, ``train-000000``."""
        return shard_stem(self.name)


def listed_shards(storage: Storage, version: int | None = None) -> list[ListedShard]:
    """The shards that have samples, of a finished dataset or of a version of it.

    Raises:
        ValueError: If there is no manifest, one of another schema version, or no sample.
    """
    manifest = read_manifest(storage, version)
    if manifest is None:
        raise ValueError(
            f"A dataset must have a {MANIFEST}. Got none in {storage.root}; finish it with "
            f"'synthgen generate', or open one of its tars."
        )
    rows = [row for row in manifest["shards"] if not row["skipped"]]
    if not rows:
        raise ValueError(f"A dataset must have at least one sample. Got none in {storage.root}.")
    return [
        ListedShard(row["name"], str(row["sha256"]), int(row["bytes"]), int(row["samples"]))
        for row in rows
    ]


def first_shards(listed: Sequence[ListedShard], num: int | None) -> list[ListedShard]:
    """The first shards that together hold ``num`` samples; all of them for None."""
    totals = list(accumulate(shard.samples for shard in listed))
    before = [0, *totals[:-1]]
    wanted = totals[-1] if num is None else max(1, num)
    return [shard for shard, made in zip(listed, before, strict=True) if made < wanted]
