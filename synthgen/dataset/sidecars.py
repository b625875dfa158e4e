"""Results beside the data: ``<folder>/<id>/``, a file and a commit marker per shard.

Audits and labels stand so. What a shard gave is done if and only if its marker is about the tar
that stands there now, and the file has the marker's size. Ids come from users and become paths,
so they are checked wherever they enter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from synthgen.dataset.changes import changed_keys, list_keys
from synthgen.storage.publish import Storage, explain_disk_errors
from synthgen.storage.seal import check_sealed, open_seal, parse_sealed, sealed_json
from synthgen.storage.untrusted import parse_record

MAX_ID = 80
_NO_WORD = re.compile(r"[^a-z0-9]+")
_ID = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")


@runtime_checkable
class SideMarker(Protocol):
    """What every marker says: shard, hash of the tar that it is about, size of what was made."""

    @property
    def name(self) -> str: ...

    @property
    def tar_sha256(self) -> str: ...

    @property
    def bytes(self) -> int: ...


def read_side_marker(kind: type[Any], storage: Storage, name: str, shard: str) -> Any:
    """A shard's marker, None where there is none or it cannot be read.

    Args:
        kind: Whose marker it is.
        storage: The dataset.
        name: Where it lies.
        shard: What it must be about.
    """
    try:
        body, has_seal = open_seal(storage.read(name) or b"")
        marker = parse_record(kind, body)
        check_sealed(marker.schema_version, has_seal)
    except ValueError:
        return None
    return marker if marker.schema_version in (1, 2) and marker.name == shard else None


def read_sealed(storage: Storage, name: str) -> dict[str, Any] | None:
    """Content of a description or of a summary; None where there is none.

    Raises:
        ValueError: If it was damaged.
    """
    content = storage.read(name)
    try:
        return None if content is None else parse_sealed(content)
    except ValueError as error:
        raise ValueError(
            f"{name} must be readable. Got {error}. Remove it and run the command that made it "
            f"again."
        ) from None


@dataclass(frozen=True, slots=True)
class SideFolder:
    """Where results of one sort stand in a dataset.

    Args:
        folder: Name of the folder beside ``data``.
        description: File that says what the results of an id are; written first.
        suffix: Of the file per shard.
        subject: What error messages call an id.
    """

    folder: str
    description: str
    suffix: str
    subject: str

    def check_id(self, name: str) -> str:
        """The id itself, if it may become the name of a folder.

        Raises:
            ValueError: If it is anything but lower-case words joined by one of ``. _ -``.

        >>> SideFolder("audit", "audit.json", ".parquet", "An audit's id").check_id("sam-0a1b")
        'sam-0a1b'
        """
        if len(name) > MAX_ID or not _ID.fullmatch(name):
            raise ValueError(
                f"{self.subject} must be lower-case letters and digits, joined by single '.', "
                f"'_' or '-', at most {MAX_ID}. Got {name!r:.90}."
            )
        return name

    def description_name(self, name: str) -> str:
        """Where it is said what the results of an id are."""
        return f"{self.folder}/{self.check_id(name)}/{self.description}"

    def file_name(self, name: str, shard: str) -> str:
        """Where the results of a shard lie."""
        return f"{self.folder}/{self.check_id(name)}/{shard}{self.suffix}"

    def marker_name(self, name: str, shard: str) -> str:
        """Where the marker of a shard's results lies."""
        return f"{self.folder}/{self.check_id(name)}/{shard}.json"

    def summary_name(self, name: str) -> str:
        """Where the totals over all shards lie; written last."""
        return f"{self.folder}/{self.check_id(name)}/summary.json"

    def ids(self, storage: Storage) -> list[str]:
        """Ids in a dataset, sorted, finished or not."""
        names = (name.rpartition("/")[2] for name in storage.folders(self.folder))
        return sorted(name for name in names if len(name) <= MAX_ID and _ID.fullmatch(name))

    def id_for(self, name: str, digest: str) -> str:
        """The id of results that nobody named: what made them, and the hash of all settings.

        >>> SideFolder("labels", "labels.json", ".tar", "id").id_for("my.mod:Label_2", "0a1b2c3")
        'my-mod-label-2-0a1b2c3'
        """
        words = _NO_WORD.sub("-", name.lower()).strip("-")[:60].rstrip("-")
        return f"{words or self.folder}-{digest[:8]}"

    def claim(
        self, storage: Storage, name: str, settings: Mapping[str, Any], schema_version: int
    ) -> None:
        """Say what the results of an id are, or check that it is what was said before.

        Args:
            storage: The dataset.
            name: The id.
            settings: All that determines the results but the tars.
            schema_version: Of the results.

        Raises:
            ValueError: If the results there are of other settings, or the file is damaged.
        """
        standing = read_sealed(storage, self.description_name(name))
        if standing is not None:
            self.check_same(name, standing.get("settings", {}), settings)
        tree = {"schema_version": schema_version, "id": name, "settings": settings}
        content = sealed_json(tree)
        with explain_disk_errors(storage, len(content), f"the {self.folder} {name}"):
            storage.publish_bytes(content, self.description_name(name))
            storage.clear_stale_staging()

    def check_same(self, name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """Refuse to mix results of different settings under one id.

        Raises:
            ValueError: With the keys that differ.
        """
        changed = changed_keys(old, new)
        if changed:
            raise ValueError(
                f"The settings must be those of the standing {self.folder} {name}. Got a change "
                f"of {list_keys(changed)}. Undo it, or choose another --id."
            )

    def is_done(
        self, storage: Storage, name: str, marker: SideMarker | None, tar_sha256: str
    ) -> bool:
        """Whether a shard's results are complete and about the tar that stands there now."""
        return (
            marker is not None
            and marker.tar_sha256 == tar_sha256
            and storage.size(self.file_name(name, marker.name)) == marker.bytes
        )
