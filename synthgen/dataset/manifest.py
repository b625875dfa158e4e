"""What a dataset says about itself: markers per shard, and the manifest over all of them.

``stats/train-000000.json`` is the commit marker of a shard: the shard is done if and only if its
marker carries our digest and planned count, and the tar has the marker's size (or, where no
sample survived, the marker says ``skipped``). ``manifest.json`` is written last; every published
version stays as ``manifests/v0001.json``, …, for consumers of a growing dataset. Everything in
it but ``times`` is a function of the configuration and the libraries.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import (
    Any,
    NotRequired,  # of typing, pydantic takes it from 3.12 on
)

from typing_extensions import TypedDict

from synthgen.config import parse
from synthgen.storage.publish import Storage, dump_json
from synthgen.storage.seal import (
    check_vouched,
    parse_sealed,
    parse_sealed_record,
    seal,
    sealed_record,
    sha256_of,
)
from synthgen.storage.untrusted import check_shape, quote
from synthgen.types import ShardReport

SCHEMA_VERSION = 2
_READABLE = (1, SCHEMA_VERSION)  # 1: without seals, and hashes of rows, previews and descriptions
MANIFEST, IDENTITY = "manifest.json", "identity.json"
CONFIG, CLASSES, CARD = "config.yaml", "classes.json", "README.md"
SHARD_NAME = re.compile(r"train-([0-9]{6})")
TAR_NAME = re.compile(rf"data/{SHARD_NAME.pattern}\.tar")
_VERSION = re.compile(r"manifests/v([0-9]{4,})\.json")


class ShardRow(TypedDict):
    """What a manifest says of a shard; `shard_row` makes it of the shard's marker."""

    name: str
    bytes: int
    sha256: str
    samples: int
    planned: int
    skipped: bool
    reasons: NotRequired[dict[str, int]]
    previews: NotRequired[bool]
    unconverged: NotRequired[int]


class _Totals(TypedDict):
    shards: int
    planned: int
    samples: int
    failed: int
    bytes: int
    reasons: dict[str, int]


class _Manifest(TypedDict):
    """What readers rely on; `build_manifest` writes it."""

    config: str
    totals: _Totals
    shards: list[ShardRow]
    models: list[dict[str, Any]]
    times: dict[str, Any]


def tar_name(shard: str) -> str:
    """Where a shard's tar lies: ``data/train-000000.tar``."""
    return f"data/{shard}.tar"


def shard_stem(tar: str) -> str:
    """The shard whose tar lies there: ``train-000000`` for ``data/train-000000.tar``."""
    return tar.removeprefix("data/").removesuffix(".tar")


def shard_index(shard: str) -> int:
    """Number of a shard, with which the keys of its samples begin."""
    return int(shard.removeprefix("train-"))


def shard_of(key: str) -> str:
    """The shard that a sample's key lies in.

    >>> shard_of("0000120003")
    'train-000012'
    """
    return f"train-{key[:6]}"


def marker_name(shard: str) -> str:
    """Where a shard's marker lies: ``stats/train-000000.json``."""
    return f"stats/{shard}.json"


def metadata_name(shard: str) -> str:
    """Where the rows of a shard's planned samples lie: ``metadata/train-000000.parquet``."""
    return f"metadata/{shard}.parquet"


def preview_name(shard: str) -> str:
    """Where a shard's previews lie: ``previews/train-000000.tar``."""
    return f"previews/{shard}.tar"


@dataclass(frozen=True, slots=True)
class Marker:
    """The commit marker of a shard."""

    name: str  # file stem of the shard
    config: str  # digest of what determines its bytes
    planned: int
    counts: Mapping[str, int]  # samples per status
    reasons: Mapping[str, int]  # failed samples per reason
    bytes: int  # size of the tar, 0 where it was skipped
    sha256: str  # hash of the tar, empty where it was skipped
    skipped: bool  # no sample survived, so there is no tar (readers fail on an empty one)
    batch_size: int  # images per UNet call; 1 after the device ran out of memory
    seconds: Mapping[str, float]  # wall time per stage
    created: str  # time of completion, ISO 8601, UTC
    # device, dtype, and versions by package
    environment: Mapping[str, Any] = field(default_factory=dict)
    metadata_sha256: str = ""  # hash of its rows in ``metadata``; empty in schema version 1
    previews_sha256: str = ""  # hash of its previews; empty where it has none
    unconverged: int = 0  # samples whose k-means was stopped by ``max_iterations``
    schema_version: int = SCHEMA_VERSION

    def report(self, reused: bool) -> ShardReport:
        """What the caller of ``make_shard`` learns."""
        return ShardReport(
            *(self.name, self.planned, dict(self.counts), self.bytes, self.sha256, self.skipped),
            reused=reused,
            seconds=dict(self.seconds),
        )


marker_bytes = sealed_record


def parse_marker(content: bytes, shard: str) -> Marker:
    """The marker of a shard from its file.

    Raises:
        ValueError: If it is not one of this schema version, or another shard's.
    """
    try:
        marker = parse_sealed_record(Marker, content)
    except ValueError as error:
        raise ValueError(f"A marker must be readable. Got {error}.") from None
    if marker.schema_version not in _READABLE:
        got = marker.schema_version
        raise ValueError(f"A marker's schema_version must be {SCHEMA_VERSION}. Got {got}.")
    if marker.name != shard:
        got_name = quote(marker.name, 40)
        raise ValueError(f"The marker of {shard} must bear its name. Got {got_name}.")
    return marker


def read_marker(storage: Storage, shard: str, there: bool = False) -> Marker | None:
    """The marker of a shard, None where there is none or it cannot be read; see `Storage.read`."""
    content = storage.read(marker_name(shard), there)
    if content is None:
        return None
    try:
        return parse_marker(content, shard)
    except ValueError:
        return None


def is_complete(storage: Storage, marker: Marker, config: str, planned: int) -> bool:
    """Whether a shard is done: our digest, our planned count, its tar, rows and previews."""
    files = [metadata_name(marker.name)] + [preview_name(marker.name)] * bool(
        marker.previews_sha256
    )
    return (
        (marker.config, marker.planned) == (config, planned)
        and fits_tar(storage, marker)
        and all(storage.size(name, there=True) is not None for name in files)
    )


def fits_tar(storage: Storage, marker: Marker) -> bool:
    """Whether the tar has the size that the marker says, or is not there as it says."""
    size = storage.size(tar_name(marker.name), there=not marker.skipped)
    return size == (None if marker.skipped else marker.bytes)


def read_markers(storage: Storage, newest: int | None = None) -> list[Marker]:
    """All markers that can be read, in the order of their shards; or those of the last shards."""
    names = [name.removeprefix("stats/").removesuffix(".json") for name in storage.names("stats")]
    names = [name for name in names if SHARD_NAME.fullmatch(name)]
    markers = (read_marker(storage, name, True) for name in names[-newest if newest else 0 :])
    return [marker for marker in markers if marker is not None]


def shard_row(marker: Marker) -> ShardRow:
    """What the manifest says of a complete shard; what there is not is left out."""
    row: ShardRow = {
        "name": tar_name(marker.name),
        "bytes": marker.bytes,
        "sha256": marker.sha256,
        "samples": marker.counts.get("ok", 0),
        "planned": marker.planned,
        "skipped": marker.skipped,
    }
    if marker.reasons:
        row["reasons"] = dict(marker.reasons)
    if marker.unconverged:
        row["unconverged"] = marker.unconverged
    if marker.previews_sha256:
        row["previews"] = True
    return row


def build_manifest(
    markers: Sequence[Marker],
    config: str,
    models: Sequence[Mapping[str, Any]],
    times: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest over complete shards, in order."""
    rows = [shard_row(marker) for marker in markers]
    environments = distinct(dict(marker.environment) for marker in markers)
    return {**manifest_of(rows, environments, config), "models": [*models], "times": {**times}}


def manifest_of(
    rows: Sequence[ShardRow], environments: Sequence[Mapping[str, Any]], config: str
) -> dict[str, Any]:
    """What a manifest says of its shards, but for models and times."""
    return {
        "schema_version": SCHEMA_VERSION,
        "config": config,
        "totals": totals(rows),
        "shards": list(rows),
        "environments": list(environments),
    }


def publish_manifest(storage: Storage, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest, last of all files, unless it says nothing new but times.

    Its version is written first; where a process was killed between the two, that version is it.
    The manifest alone has the hashes of the files that describe the dataset (``files``), and of
    all versions: among the times, for these hold times, and a configuration holds paths.

    Returns:
        The manifest that stands on the disk.
    """
    files = {name: storage.read(name) for name in (CARD, CONFIG, IDENTITY, CLASSES)}
    hashes = {name: sha256_of(found) for name, found in files.items() if found is not None}
    version = {**manifest, "schema_version": SCHEMA_VERSION}
    existing = read_manifest(storage)
    if (
        existing is not None
        and without_times(existing) == without_times(version)
        and existing["times"].get("files") == hashes
    ):
        return existing
    newest = max(versions(storage), default=0)
    latest = _read(storage, version_name(newest)) if newest else None
    if latest is not None and without_times(latest) == without_times(version):
        version = latest
    else:
        newest += 1
        storage.publish_bytes(_manifest_bytes(version), version_name(newest))
    known = {} if existing is None else existing["times"].get("versions", {})
    names = map(version_name, versions(storage))
    chain = {name: known.get(name) or sha256_of(storage.read(name) or b"") for name in names}
    manifest = {**version, "times": {**version["times"], "versions": chain, "files": hashes}}
    storage.publish_bytes(_manifest_bytes(manifest), MANIFEST)
    return dict(manifest)


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """A shard in a line: indented, a hundred thousand of them would take seconds to write."""
    rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in manifest["shards"])
    head = dump_json({**manifest, "shards": []})
    lines = f'\n "shards": [\n{rows}\n ]'.encode() if rows else b'\n "shards": []'
    return seal(head.replace(b'\n "shards": []', lines, 1))


def read_manifest(storage: Storage, version: int | None = None) -> dict[str, Any] | None:
    """The manifest, None where the dataset was never finalized; or an older version.

    Args:
        version: Number of a published version, from 1; None: the newest.

    Raises:
        ValueError: If it cannot be read, or there is no such version.
    """
    if version is None:
        return _read(storage, MANIFEST)
    found = versions(storage)
    if version not in found:
        there = f"1 to {max(found)}" if found else "none"
        raise ValueError(
            f"version must be one of the published ones of {storage.root}. Got {version}; "
            f"there: {there}."
        )
    return _read(storage, version_name(version))


def versions(storage: Storage) -> list[int]:
    """Numbers of the published versions of the manifest, in order."""
    found = (_VERSION.fullmatch(name) for name in storage.names("manifests"))
    return sorted(int(match[1]) for match in found if match)


def version_name(version: int) -> str:
    """Where a version of the manifest lies.

    >>> version_name(3)
    'manifests/v0003.json'
    """
    return f"manifests/v{version:04d}.json"


def _read(storage: Storage, name: str) -> dict[str, Any] | None:
    content = storage.read(name)
    if content is None:
        return None
    try:
        tree = parse_sealed(content)
        if known := tree.get("schema_version") in _READABLE:
            check_shape(_Manifest, tree)
    except ValueError as error:
        raise ValueError(f"{name} must be readable. Got {error}.") from None
    if not known:
        raise ValueError(f"{name} must have schema_version {SCHEMA_VERSION}. Got another one.")
    for row in tree["shards"]:  # a manifest is data: it may not send us to other files
        if not TAR_NAME.fullmatch(row["name"]):
            raise ValueError(
                f"A shard must be named data/train-000000.tar. Got {quote(row['name'], 60)}."
            )
    return tree


def check_description(storage: Storage, manifest: Mapping[str, Any]) -> None:
    """Refuse to go by other files than the manifest vouches for; an older one vouches for none.

    A configuration that plans more is that of a run that is under way.

    Raises:
        ValueError: With the first that was damaged or changed.
    """
    for name in (IDENTITY, CLASSES, CONFIG):
        expected = manifest["times"].get("files", {}).get(name)
        if expected is not None and not (name == CONFIG and plans_more(storage, manifest)):
            check_vouched(name, sha256_of(storage.read(name) or b""), expected, MANIFEST)


def plans_more(storage: Storage, manifest: Mapping[str, Any]) -> bool:
    """Whether the configuration on the disk plans more samples than a manifest is about."""
    try:
        return bool(parse(storage.read(CONFIG) or b"").planned > manifest["totals"]["planned"])
    except ValueError:
        return False


def without_times(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that equal runs have in common."""
    return {name: value for name, value in manifest.items() if name != "times"}


def totals(rows: Iterable[ShardRow]) -> dict[str, Any]:
    """Sums over the rows of shards."""
    rows, reasons = list(rows), Counter[str]()
    for row in rows:
        if told := row.get("reasons"):
            reasons.update(told)
    planned, samples = (sum(row[name] for row in rows) for name in ("planned", "samples"))
    num_bytes = sum(row["bytes"] for row in rows)
    sums = {"shards": len(rows), "planned": planned, "samples": samples}
    sums |= {"failed": planned - samples, "bytes": num_bytes}
    if unconverged := sum(row.get("unconverged", 0) for row in rows):
        sums["unconverged"] = unconverged
    return {**sums, "reasons": dict(sorted(reasons.items()))}


def distinct(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Different items, in the order of their first."""
    kept: list[dict[str, Any]] = []
    for item in items:
        if item not in kept:
            kept.append(item)
    return kept
