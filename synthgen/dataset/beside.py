"""Results beside the data: ``<folder>/<id>/``, a file and a commit marker per shard.

Audits and labels stand so. What a shard gave is done if and only if its marker is about the tar
that stands there now, and the file has the marker's size. Ids come from users and become paths,
so they are checked wherever they enter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from synthgen.dataset.publish import Storage

MAX_ID = 80
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
        try:
            found = storage.fs.ls(storage.path(self.folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        folders = (item for item in found if item["type"] == "directory")
        names = (str(item["name"]).rstrip("/").rsplit("/", 1)[-1] for item in folders)
        return sorted(name for name in names if len(name) <= MAX_ID and _ID.fullmatch(name))

    def is_done(
        self, storage: Storage, name: str, marker: SideMarker | None, tar_sha256: str
    ) -> bool:
        """Whether a shard's results are complete and about the tar that stands there now."""
        return (
            marker is not None
            and marker.tar_sha256 == tar_sha256
            and storage.size(self.file_name(name, marker.name)) == marker.bytes
        )
