"""Results beside the data: ``<folder>/<id>/``, a file and a commit marker per shard.

Audits and labels stand so. What a shard gave is done if and only if its marker is about the tar
that stands there now, and the file has the marker's size. Ids come from users and become paths,
so they are checked wherever they enter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from synthgen.dataset.changes import changed_keys, list_keys
from synthgen.storage.publish import Storage, explain_disk_errors
from synthgen.storage.seal import SEALED, parse_sealed, parse_sealed_record, sealed_json

MAX_ID = 80
_ID = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class SideMarker:
    """What the commit marker of a shard's results says."""

    name: str  # file stem of the shard
    digest: str  # of everything that determines the results but the tar
    tar_sha256: str  # hash of the data tar that they are about
    sha256: str  # hash of the file that was made
    bytes: int
    samples: int  # samples in it
    schema_version: int = field(default=SEALED, kw_only=True)


AnyMarker = TypeVar("AnyMarker", bound=SideMarker)


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
class SideFolder(Generic[AnyMarker]):
    """Where results of one sort stand in a dataset.

    Args:
        folder: Name of the folder beside ``data``.
        command: That makes them; a file called so says what the results of an id are.
        suffix: Of the file per shard.
        marker: What the marker of such a file is.
        subject: What error messages call an id.
    """

    folder: str
    command: str
    suffix: str
    marker: type[AnyMarker]
    subject: str

    def check_id(self, name: str) -> str:
        """The id itself, if it may become the name of a folder.

        Raises:
            ValueError: If it is anything but lower-case words joined by one of ``. _ -``.
        """
        if len(name) > MAX_ID or not _ID.fullmatch(name):
            raise ValueError(
                f"{self.subject} must be lower-case letters and digits, joined by single '.', "
                f"'_' or '-', at most {MAX_ID}. Got {name!r:.90}."
            )
        return name

    def description_name(self, name: str) -> str:
        """Where it is said what the results of an id are; written first."""
        return f"{self.folder}/{self.check_id(name)}/{self.folder}.json"

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

        >>> SideFolder("labels", "label", ".tar", SideMarker, "id").id_for("my.mod:Label_2", "0a1")
        'my-mod-label-2-0a1'
        """
        words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60].rstrip("-")
        return f"{words or self.folder}-{digest[:8]}"

    def claim(
        self, storage: Storage, name: str, settings: Mapping[str, Any], schema_version: int
    ) -> None:
        """Say what the results of an id are, or check that it is what was said before.

        Args:
            settings: All that determines the results but the tars.
            schema_version: Of the results.

        Raises:
            ValueError: If the results there are of other settings, or the file is damaged.
        """
        existing = read_sealed(storage, self.description_name(name))
        if existing is not None:
            self.check_same(name, existing.get("settings", {}), settings)
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
                f"The settings must be those of the existing {self.folder} {name}. Got a change "
                f"of {list_keys(changed)}. Undo it, or choose another --id."
            )

    def read_marker(self, storage: Storage, name: str, shard: str) -> AnyMarker | None:
        """The marker of a shard's results, None where there is none or it cannot be read."""
        content = storage.read(self.marker_name(name, shard)) or b""
        try:
            marker = parse_sealed_record(self.marker, content)
        except ValueError:
            return None
        return marker if marker.schema_version in (1, SEALED) and marker.name == shard else None

    def is_done(
        self, storage: Storage, name: str, marker: SideMarker | None, tar_sha256: str
    ) -> bool:
        """Whether a shard's results are complete and about the tar that stands there now."""
        return (
            marker is not None
            and marker.tar_sha256 == tar_sha256
            and storage.size(self.file_name(name, marker.name)) == marker.bytes
        )

    def read_done(
        self, storage: Storage, name: str, shards: Mapping[str, str]
    ) -> dict[str, AnyMarker]:
        """The markers by shard of results that must be about all of some shards.

        Args:
            shards: File stem to tar hash of these shards.

        Raises:
            ValueError: If there are no such results, or not for every one of the shards.
        """
        asked, what = ("audited", "an audit") if self.command == "audit" else ("labels", "labels")
        existing = self.ids(storage)
        if self.check_id(name) not in existing:
            there = ", ".join(existing) or f"no {self.command}s"
            raise ValueError(
                f"{asked} must be the id of {what} of {storage.root}. Got {name!r}; "
                f"there: {there}."
            )
        found = {}
        for shard, tar_sha256 in shards.items():
            marker = self.read_marker(storage, name, shard)
            if marker is None or not self.is_done(storage, name, marker, tar_sha256):
                raise ValueError(
                    f"The {self.folder} {name} must be about every shard. Got none of {shard} as "
                    f"it stands; run 'synthgen {self.command}' with the same settings to finish."
                )
            found[shard] = marker
        return found
