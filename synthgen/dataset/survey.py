"""Which shards of a dataset are complete, asked of those alone that are new.

What a manifest lists needs no look at its marker: listings of the folders say whether tar, rows
and marker are still there, and whether the marker is older than the manifest. All others are read,
so work and memory depend on what came since, but for one line per shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthgen.dataset.manifest import (
    MANIFEST,
    SHARD_NAME,
    ShardRow,
    distinct,
    metadata_name,
    preview_name,
    read_manifest,
    read_marker,
    shard_index,
    shard_row,
    shard_stem,
    tar_name,
)
from synthgen.storage.publish import FileFacts, Storage


@dataclass(frozen=True, slots=True)
class Survey:
    """The complete shards of a dataset."""

    rows: Mapping[int, ShardRow]  # what a manifest says of each, by its number
    # the manifest that stands; None where the dataset was never finalized
    manifest: Mapping[str, Any] | None
    # those that the markers name that were read: of what no manifest lists, and of what is
    # not as it is listed
    environments: Sequence[Mapping[str, Any]]
    seconds: Mapping[str, float]  # sums of their wall times

    @property
    def listed(self) -> Sequence[ShardRow]:
        """What the manifest says of the shards that it lists."""
        return [] if self.manifest is None else self.manifest["shards"]


def survey(storage: Storage, config: str, planned: Sequence[int]) -> Survey:
    """Look at a dataset.

    Args:
        config: Digest that its shards must carry.
        planned: Samples planned of each shard.

    Raises:
        ValueError: If its manifest cannot be read.
    """
    there = {folder: storage.facts(folder) for folder in ("data", "stats", "metadata", "previews")}
    manifest = read_manifest(storage)  # after looking: what it lists was there before it
    listed: dict[int, ShardRow] = {}
    finished = -1.0
    if manifest is not None and manifest["config"] == config:
        listed = {shard_index(shard_stem(row["name"])): row for row in manifest["shards"]}
        finished = storage.facts("").get(MANIFEST, FileFacts(0, finished)).changed
    rows: dict[int, ShardRow] = {}
    environments: list[dict[str, Any]] = []
    seconds: Counter[str] = Counter()
    for name in sorted(there["stats"]):
        match = SHARD_NAME.fullmatch(name.removeprefix("stats/").removesuffix(".json"))
        if match is None or int(match[1]) >= len(planned):
            continue
        index = int(match[1])
        row = listed.get(index)
        if row is None or there["stats"][name].changed > finished or not _is_known(row):
            marker = read_marker(storage, match[0])
            if marker is None or marker.config != config:
                continue
            row = shard_row(marker)
        else:
            marker = None
        if row["planned"] == planned[index] and _is_there(row, match[0], there):
            rows[index] = row
            if marker is not None and row != listed.get(index):
                environments = distinct([*environments, dict(marker.environment)])
                seconds.update(marker.seconds)
    return Survey(rows, manifest, environments, seconds)


def _is_known(row: ShardRow) -> bool:
    """Whether a row says all that is counted; older ones do not say why samples failed."""
    return row["samples"] == row["planned"] or "reasons" in row


def _is_there(row: ShardRow, shard: str, there: Mapping[str, Mapping[str, FileFacts]]) -> bool:
    """Whether a shard's tar (none where it was skipped), rows and previews are there."""
    tar = there["data"].get(tar_name(shard))
    fits = tar is None if row["skipped"] else tar is not None and tar.size == row["bytes"]
    files = [("metadata", metadata_name(shard))]
    files += [("previews", preview_name(shard))] * bool(row.get("previews"))
    return fits and all(name in there[folder] for folder, name in files)
