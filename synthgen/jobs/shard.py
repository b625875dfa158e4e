"""A staged shard becomes part of a dataset: verified, published whole, its marker last.

Killed anywhere, there is either a complete shard or something that the next run overwrites.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synthgen.dataset.manifest import (
    Marker,
    marker_bytes,
    marker_name,
    metadata_name,
    preview_name,
    shard_index,
    tar_name,
)
from synthgen.dataset.metadata import Row, rows_bytes
from synthgen.dataset.shards import scan, span_sha256, spans
from synthgen.dataset.verify import verify_tar
from synthgen.storage.publish import Storage, sha256_file
from synthgen.storage.seal import sha256_of


@dataclass(frozen=True, slots=True)
class Staged:
    """A shard in a staging folder.

    Args:
        tar: Its samples, an empty tar or none where all failed.
        previews: Their previews; None where there are none.
        rows: One for each planned sample, without places in the tar.
        verified: Hashes by key of samples that were verified before; None: none was.
    """

    tar: Path
    previews: Path | None
    rows: Sequence[Row]
    verified: Mapping[str, str] | None = None


def publish_shard(
    storage: Storage,
    shard: str,
    staged: Staged,
    facts: Mapping[str, Any],
    look_again: Callable[[], Marker | None],
) -> Marker:
    """Put a shard into the dataset; the marker, which makes it count, is last.

    Between processes of one machine, or of a file system with locks, nothing comes in between: the
    plan is still ours, and a shard that another has completed meanwhile stays. On an object store
    we look, too, right before; what another does in the second after that look is seen by nobody:
    a shard then has the tar of one and the marker of the other until the next run.

    Args:
        storage: The dataset.
        shard: Its file stem.
        staged: What was made of it.
        facts: What its marker says beside what the files tell: ``config``, ``batch_size``,
            ``seconds``, ``environment``.
        look_again: Called under the lock; gives the marker that another has published.

    Raises:
        RuntimeError: If anything is wrong with the tar; nothing is published then.
    """
    ok = [row for row in staged.rows if row.status == "ok"]
    rows, num_bytes, sha256 = staged.rows, 0, ""
    if ok:
        rows, num_bytes, sha256 = _verified(staged, shard)
    content = rows_bytes(rows)
    marker = Marker(
        name=shard,
        planned=len(rows),
        counts={"ok": len(ok), "failed": len(rows) - len(ok)},
        reasons=dict(sorted(Counter(row.reason for row in rows if row.reason).items())),
        bytes=num_bytes,
        sha256=sha256,
        skipped=not ok,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        metadata_sha256=sha256_of(content),
        previews_sha256=_hash(staged.previews),
        unconverged=sum(not row.converged for row in rows),
        **facts,
    )
    with storage.publishing():
        if (published := look_again()) is not None:
            return published
        if ok:
            storage.publish(staged.tar, tar_name(shard))
        else:  # readers fail on a tar without members; that of an earlier, smaller plan may exist
            storage.remove(tar_name(shard))
        if staged.previews is not None:
            storage.publish(staged.previews, preview_name(shard))
        storage.publish_bytes(content, metadata_name(shard))
        storage.publish_bytes(marker_bytes(marker), marker_name(shard))
    return marker


def _hash(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open("rb") as stream:
        return sha256_file(stream)


def _verified(staged: Staged, shard: str) -> tuple[list[Row], int, str]:
    """Rows with their places in a new tar, its size and its hash, once all of it is checked."""
    rows = staged.rows
    num_ok = sum(row.status == "ok" for row in rows)
    with staged.tar.open("rb") as stream:
        problems = verify_tar(
            stream, shard, shard_index(shard), num_ok, deep=True, verified=staged.verified
        )
        if problems:
            raise RuntimeError(f"A new shard must be correct. Got {problems[0]}.")
        places = {span.key: span for span in spans(scan(stream))}
        placed = [
            replace(
                row,
                byte_offset=places[row.key].offset,
                byte_size=places[row.key].size,
                sha256=span_sha256(stream, places[row.key]),
            )
            if row.key in places
            else row
            for row in rows
        ]
        num_bytes = stream.seek(0, 2)
        stream.seek(0)
        return placed, num_bytes, sha256_file(stream)
