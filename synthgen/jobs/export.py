"""Export a finished dataset: shard by shard, resumable, the same bytes whatever interrupts it.

    OUT/…                                     the files of the format
    OUT/classes.json                          id to name
    OUT/README.md                             card
    OUT/SHA256SUMS                            a hash of every file (`checksums`)
    OUT/export.json                           what was exported; written last
    OUT/.synthgen/export.json                 what is asked for; written first
    OUT/.synthgen/rows/train-000000/*.jsonl   a shard's part of files over all shards
    OUT/.synthgen/done/train-000000.json      commit marker of a shard, with its counts

A shard is done if and only if its marker carries the hash of the tar that stands there now, and
its files and rows stand with their sizes: what was lost is exported again. One process at a time
exports to a folder (`synthgen.storage.claim`). No file but that claim holds a time or a path, so
equal datasets and settings give equal bytes. A dataset that grew is exported again into the same
folder: only new shards are read.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from synthgen.config import load_section
from synthgen.dataset.manifest import CARD, CLASSES
from synthgen.dataset.split import split_names
from synthgen.export.card import readme
from synthgen.export.checksums import (
    ASKED,
    EXPORT,
    SUMS,
    file_sizes,
    read_summary,
    seal,
    sum_line,
)
from synthgen.export.format import ExportContext, Exporter, File, check_exporter
from synthgen.export.source import ExportSettings, Source, describe_origin
from synthgen.export.statistics import Tally, count_near_duplicates
from synthgen.jobs.job import Job, refuse_missing
from synthgen.progress import Progress, report
from synthgen.registry import EXPORTERS, resolve
from synthgen.storage.claim import LookAgain, claimed
from synthgen.storage.publish import Storage, dump_json, explain_disk_errors
from synthgen.storage.seal import sha256_of

EXPORT_SCHEMA_VERSION = 2
_HASHES = "hashes"
_FILES = "_files"  # no exporter's table begins so

_Marker = Mapping[str, Any]


def export(
    directory: str | Path,
    out: str | Path,
    format: str = "coco",
    *,
    progress: Progress = report,
    **settings: Any,
) -> dict[str, Any]:
    """Export a finished dataset, or finish an export that was cut off.

    Args:
        directory: The dataset's folder or URL.
        out: New or empty folder, or one of an export with the same settings.
        format: Row of ``EXPORTERS`` or ``module:attribute``.
        progress: Told about samples and shards; may raise, to stop.
        settings: Of `ExportSettings`: ``split``, ``audited``, ``labels``, ``masks``, …

    Returns:
        The content of ``export.json``.

    Raises:
        ValueError: In one line, for a bad setting, a dataset that is not finished, a format that
            needs labels where there are none, or a folder with other files.
        RuntimeError: In one line, if another process exports to that folder.
    """
    given = load_section(ExportSettings, format=format, **settings)
    return ExportJob(directory, out, given).run(progress)


class ExportJob(Job[_Marker]):
    """Writes a finished dataset in another format; see `export`.

    Args:
        directory: The dataset's folder or URL.
        out: The export's.
        settings: What is taken, and how it is written.
    """

    name = "export"

    def __init__(self, directory: str | Path, out: str | Path, settings: ExportSettings) -> None:
        super().__init__(out)
        self.settings = settings
        make_exporter = resolve(settings.format, EXPORTERS, "format")
        self.source = Source(directory, settings)
        self.listed = {shard.stem: shard for shard in self.source.shards}
        self.origin = describe_origin(self.source.storage)
        self.context = ExportContext(
            self.source.classes,
            split_names(settings.shares),
            self.source.labeled,
            self.origin["license"],
            self.source.overlapping,
            settings.segmentation,
        )
        self.exporter: Exporter = make_exporter(self.context)
        check_exporter(self.exporter, settings.format, self.context)
        classes = {str(number): name for number, name in self.source.classes.items()}
        dumped = settings.model_dump()
        self._asked = {"settings": dumped, "source": self.origin, "classes": classes}
        self._check_target()
        self._sizes = file_sizes(self.storage)
        self._look_again: LookAgain = _alone

    @property
    def planned(self) -> tuple[int, int]:
        """Samples and shards in all."""
        return sum(shard.samples for shard in self.source.shards), len(self.listed)

    def run(self, progress: Progress = report) -> dict[str, Any]:
        """All of it, while nobody else writes there; what is finished is not touched."""
        done = {shard for shard in self.listed if self.existing(shard) is not None}
        if len(done) == len(self.listed) and (finished := self._read_finished()) is not None:
            for shard in self.source.shards:
                progress("shard", name=shard.stem, planned=shard.samples, reused=True)
            return finished
        what = f"an export as {self.settings.format}"
        with (
            explain_disk_errors(self.storage, 1_000_000, "an export"),
            claimed(self.storage, what) as self._look_again,
        ):
            return super().run(progress)

    def _read_finished(self) -> dict[str, Any] | None:
        """What export.json says, if all that it lists is there."""
        try:
            summary = read_summary(self.storage)
        except ValueError:
            return None
        if summary is None or summary.get("shards") != self._hashes():
            return None
        files = {**summary.get("files", {}), SUMS: self._sizes.get(SUMS, -1)}
        there = all(self._sizes.get(name) == size for name, size in files.items())
        return summary if there else None

    def begin(self) -> None:
        """Say what is asked for, once nobody else can."""
        self._check_target()
        self.storage.publish_bytes(dump_json(self._asked), ASKED)
        self.storage.clear_stale_staging()

    def missing(self, progress: Progress = report) -> Sequence[str]:
        """All shards: a look at a marker costs little."""
        return list(self.listed)

    def needs(self, shard: str) -> tuple[int, int, str]:
        """Samples, bytes and name of a shard's files and rows."""
        listed = self.listed[shard]
        return listed.samples, 2 * listed.num_bytes, f"the export of {shard}"

    def existing(self, shard: str) -> _Marker | None:
        """The marker of a shard whose rows and files were there when the job was made.

        Raises:
            ValueError: If it was exported from another tar.
        """
        marker = _read_json(self.storage, _done_name(shard))
        if marker is None:
            return None
        if marker.get("tar_sha256") != self.listed[shard].sha256:
            raise ValueError(
                f"The dataset must be the one that the export was begun from. Got another "
                f"{self.listed[shard].name}. Choose another folder."
            )
        tables: dict[str, Any] = marker.get("tables", {})
        if any(self._sizes.get(_rows_name(shard, t)) != tables[t][0] for t in tables):
            return None
        try:
            files = list(self._rows(shard, _FILES))
        except RuntimeError:
            return None
        there = all(self._sizes.get(row["name"]) == row["bytes"] for row in files)
        return marker if there and _HASHES in tables else None

    def make(self, shard: str, progress: Progress) -> _Marker:
        """Write the files and rows of a shard, and its marker last."""
        self._look_again()
        listed, tally, rows = self.listed[shard], Tally(), defaultdict[str, list[bytes]](list)
        samples = self.source.samples(listed, tally.left_out)
        watched = tally.watch(samples, self.source.classes, progress)
        with self.storage.staging() as folder:
            for item in self.exporter.shard(shard, watched):
                if isinstance(item, File):
                    size, sha256 = self._publish(folder, item.name, [item.content])
                    described = {"name": item.name, "bytes": size, "sha256": sha256}
                    rows[_FILES].append(_line(described))
                else:
                    rows[item.table].append(_line(item.content))
            rows[_HASHES] = [_line({"key": key, "hash": value}) for key, value in tally.hashes]
            tables = {}
            for table, lines in rows.items():
                content = b"".join(lines)
                tables[table] = [len(content), sha256_of(content)]
                self.storage.publish_bytes(content, _rows_name(shard, table))
            marker = {"tar_sha256": listed.sha256, "tables": tables, **tally.counts()}
            self._look_again()
            self.storage.publish_bytes(dump_json(marker), _done_name(shard))
        return marker

    def finalize(self) -> dict[str, Any]:
        """Write the files over all shards, the card, the hashes, and last export.json."""
        markers = {shard: _read_json(self.storage, _done_name(shard)) for shard in self.listed}
        refuse_missing([s for s, marker in markers.items() if marker is None], "the export")
        self._look_again()
        self.storage.remove(EXPORT)  # it must not vouch for what is replaced below
        with explain_disk_errors(self.storage, 0, "the export"), self.storage.staging() as folder:
            table = dict(sorted({**self.source.classes, 0: "background", 255: "ignore"}.items()))
            names = dump_json({str(number): name for number, name in table.items()})
            card, counts = self._describe(marker or {} for marker in markers.values())
            own = self.exporter.finish(self._table)
            files = chain([(CLASSES, [names])], own, [(CARD, [card.encode("utf-8")])])
            written = {name: self._publish(folder, name, chunks) for name, chunks in files}
            sums = sorted(sum_line(sha256, name) for name, (_, sha256) in written.items())
            rows = (sum_line(row["sha256"], row["name"]) for row in self._table(_FILES))
            _, sums_sha256 = self._publish(folder, SUMS, chain(sums, rows))
            summary = {
                "schema_version": EXPORT_SCHEMA_VERSION,
                "settings": self.settings.model_dump(),
                "source": self.origin,
                "counts": counts,
                "shards": self._hashes(),
                "files": {name: size for name, (size, _) in written.items()},
                "sha256sums": sums_sha256,
            }
            self.storage.sync()
            self._look_again()
            self.storage.publish_bytes(dump_json(seal(summary)), EXPORT)
        return seal(summary)

    def _publish(self, folder: Path, name: str, chunks: Iterable[bytes]) -> tuple[int, str]:
        """Publish a file that is staged in a folder; its bytes and sha256."""
        whole, size = hashlib.sha256(), 0
        with (folder / "file").open("wb") as stream:
            for chunk in chunks:
                whole.update(chunk)
                size += stream.write(chunk)
        self.storage.publish(folder / "file", name)
        return size, whole.hexdigest()

    def _describe(self, markers: Iterable[_Marker]) -> tuple[str, dict[str, Any]]:
        """The card, and the counts that export.json has."""
        tally = Tally()
        for marker in markers:
            tally.add(marker)
        hashes = np.fromiter((row["hash"] for row in self._table(_HASHES)), dtype=np.uint64)
        near = count_near_duplicates(hashes)
        settings = self.settings.model_dump()
        text = readme(settings, self.origin, self.context, self.exporter, tally, near)
        return text, {"near_duplicates": near, **tally.counts()}

    def _check_target(self) -> None:
        """Refuse a folder with other files, or the export of another dataset or format."""
        existing = _read_json(self.storage, ASKED)
        if existing is None:
            names = sorted({*self.storage.names(), *self.storage.folders()} - {".synthgen"})
            if self.storage.local_root is not None and self.storage.local_root.is_file():
                names = [self.storage.local_root.name]
            if names:
                shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                raise ValueError(
                    f"The output must be a new or empty folder. Got {self.storage.root} with "
                    f"{shown}. Choose another folder."
                )
        elif existing != self._asked:
            raise ValueError(
                f"The output must be a new folder, or one of an export with the same settings "
                f"and dataset. Got {self.storage.root}, {_difference(existing, self._asked)}. "
                f"Choose another folder."
            )

    def _table(self, name: str) -> Iterator[dict[str, Any]]:
        """Rows of a table over all shards, a shard's at a time in memory."""
        for shard in self.listed:
            yield from self._rows(shard, name)

    def _rows(self, shard: str, table: str) -> Iterator[dict[str, Any]]:
        """Rows of a shard; a marker that names others is removed, so that it is made again.

        Raises:
            RuntimeError: If they are not what was written.
        """
        marker = _read_json(self.storage, _done_name(shard)) or {}
        if table not in marker.get("tables", {}):
            return
        name = _rows_name(shard, table)
        content = self.storage.read(name) or b""
        if sha256_of(content) != marker["tables"][table][1]:
            self.storage.remove(_done_name(shard))
            raise RuntimeError(
                f"{self.storage.path(name)} must hold what was written. Got other bytes; run "
                f"the same command again, which makes the shard again."
            )
        yield from (json.loads(line) for line in content.splitlines())

    def _hashes(self) -> dict[str, str]:
        return {shard.stem: shard.sha256 for shard in self.source.shards}


def _alone() -> None:
    """What a job asks before each commit that nobody has given a claim."""


def _difference(existing: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first thing that differs, in words."""
    for part, new in asked.items():
        old = existing.get(part) or {}
        for name in sorted(new):
            what = f"class {name}" if part == "classes" else name
            if name not in old:
                return f"begun without {what} {new[name]!r:.40}"
            if old[name] != new[name]:
                return f"begun with {what} {old[name]!r:.40}, not {new[name]!r:.40}"
    return "begun with other classes"


def _read_json(out: Storage, name: str) -> dict[str, Any] | None:
    try:
        tree = json.loads(out.read(name) or b"")
    except ValueError:
        return None
    return tree if isinstance(tree, dict) else None


def _line(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return (text + "\n").encode("ascii")


def _rows_name(stem: str, table: str) -> str:
    return f".synthgen/rows/{stem}/{table}.jsonl"


def _done_name(stem: str) -> str:
    return f".synthgen/done/{stem}.json"
