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
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from synthgen import registry
from synthgen.dataset.listed import ListedShard
from synthgen.dataset.manifest import CARD, CLASSES
from synthgen.dataset.split import parse_split, split_names
from synthgen.export.card import readme
from synthgen.export.checksums import ASKED, EXPORT, SUMS, read_summary, seal, sum_line
from synthgen.export.checksums import sizes as file_sizes
from synthgen.export.duplicates import count_near_duplicates
from synthgen.export.format import ExportContext, Exporter, File
from synthgen.export.settings import check_settings, describe_difference, refuse_foreign
from synthgen.export.source import Selection, Source, describe_origin
from synthgen.export.statistics import Tally, add_up
from synthgen.progress import Progress, report
from synthgen.storage.claim import LookAgain, claimed
from synthgen.storage.publish import Storage, dump_json, explain_disk_errors, open_storage

EXPORT_SCHEMA_VERSION = 2
_HASHES = "hashes"
_FILES = "_files"  # no exporter's table begins so


def export(
    directory: str | Path,
    out: str | Path,
    format: str = "coco",
    *,
    split: str = "1",
    audited: str | None = None,
    keep_only: bool = True,
    labels: str | None = None,
    min_label_score: float = 0.0,
    masks: str = "labeled",
    min_area: float = 0.0,
    segmentation: str | None = None,
    progress: Progress = report,
) -> dict[str, Any]:
    """Export a finished dataset, or finish an export that was cut off.

    Args:
        directory: The dataset's folder or URL.
        out: New or empty folder, or one of an export with the same settings.
        format: Row of ``EXPORTERS`` or ``module:attribute``.
        split: Shares of train, val and test, such as ``0.9/0.1``.
        audited: Id of an audit whose verdicts are honored.
        keep_only: With ``audited``, leave out the samples that it rejects.
        labels: Id of labels beside the dataset; None: those in its tars, if any.
        min_label_score: Objects with less sure labels become pixels to ignore, 0 to 1.
        masks: ``labeled``: the objects by class, or every mask where there are no labels;
            ``all``: every mask, with its label where it has one and its parent.
        min_area: Pixels, or below 1 a share of the image. A smaller object joins what it borders
            on, a smaller mask is left out.
        segmentation: How COCO's masks are written: ``polygon`` (None), ``rle`` or ``rle-list``.
        progress: Told about samples and shards; may raise, to stop.

    Returns:
        The content of ``export.json``.

    Raises:
        ValueError: In one line, for a bad setting, a dataset that is not finished, a format that
            needs labels where there are none, or a folder with other files.
        RuntimeError: In one line, if another process exports to that folder.
    """
    settings = {
        "format": format,
        "split": split,
        "audited": audited,
        "keep_only": keep_only,
        "labels": labels,
        "min_label_score": float(min_label_score),
        "masks": masks,
        "min_area": float(min_area),
        "segmentation": segmentation,
    }
    plan = ExportPlan(directory, out, settings)
    standing = plan.finished()
    if standing is not None:
        for shard in plan.source.shards:
            progress("shard", name=shard.stem, planned=shard.samples, reused=True)
        return standing
    with (
        explain_disk_errors(plan.out, 1_000_000, "an export"),
        claimed(plan.out, f"an export as {format}") as look_again,
    ):
        plan.begin()
        for shard in plan.source.shards:
            plan.export_shard(shard, look_again, progress)
        return plan.conclude(look_again)


class ExportPlan:
    """An export that was begun; see `export` for its arguments."""

    def __init__(
        self, directory: str | Path, out: str | Path, settings: Mapping[str, Any]
    ) -> None:
        check_settings(settings)
        self.settings, format = settings, settings["format"]
        shares = parse_split(settings["split"])
        make_exporter = registry.resolve(format, registry.EXPORTERS, "format")
        chosen = ("audited", "keep_only", "labels", "min_label_score", "min_area")
        selection = Selection(
            **{name: settings[name] for name in chosen},
            shares=shares,
            all_masks=settings["masks"] == "all",
        )
        self.source = Source(directory, selection)
        self.out = open_storage(out)
        self.origin = describe_origin(self.source.storage)
        context = ExportContext(
            self.source.classes,
            split_names(shares),
            self.source.labeled,
            self.origin["license"],
            self.source.overlapping,
            settings["segmentation"],
        )
        self.splits = context.splits
        self.exporter: Exporter = make_exporter(context)
        if not isinstance(self.exporter, Exporter):
            raise ValueError(
                f"A format must have the methods shard, finish, usage and metadata; see "
                f"synthgen.export.format. Got {format!r}."
            )
        classes = {str(number): name for number, name in self.source.classes.items()}
        self._asked = {"settings": settings, "source": self.origin, "classes": classes}
        self._check_target()
        sizes = file_sizes(self.out)
        self._done = {shard.stem for shard in self.source.shards if self._is_done(shard, sizes)}
        self._sizes = sizes

    def finished(self) -> dict[str, Any] | None:
        """What export.json says, if all that it and the shards list stands there now."""
        try:
            standing = read_summary(self.out)
        except ValueError:
            return None
        if standing is None or standing.get("shards") != self._hashes():
            return None
        files = dict(standing.get("files", ()))
        stand = all(self._sizes.get(name) == size for name, size in files.items())
        whole = stand and SUMS in self._sizes and len(self._done) == len(self.source.shards)
        return standing if whole else None

    def begin(self) -> None:
        """Say what is asked for, once nobody else can."""
        self._check_target()
        self.out.publish_bytes(dump_json(self._asked), ASKED)
        self.out.clear_stale_staging()

    def export_shard(
        self, shard: ListedShard, look_again: LookAgain, progress: Progress = report
    ) -> None:
        """Export one shard, or find that it was."""
        if shard.stem in self._done:
            progress("shard", name=shard.stem, planned=shard.samples, reused=True)
            return
        look_again()
        tally, rows = Tally(), defaultdict[str, list[bytes]](list)
        samples = self.source.samples(shard, tally.left_out)
        watched = tally.watch(samples, self.source.classes, progress)
        needed = 2 * shard.num_bytes
        with (
            explain_disk_errors(self.out, needed, f"the export of {shard.stem}"),
            self.out.staging() as folder,
        ):
            for item in self.exporter.shard(shard.stem, watched):
                if isinstance(item, File):
                    staged = folder / "file"
                    staged.write_bytes(item.content)
                    self.out.publish(staged, item.name)
                    sha256 = hashlib.sha256(item.content).hexdigest()
                    described = {"name": item.name, "bytes": len(item.content), "sha256": sha256}
                    rows[_FILES].append(_line(described))
                else:
                    rows[item.table].append(_line(item.content))
            rows[_HASHES] = [_line({"key": key, "hash": value}) for key, value in tally.hashes]
            tables = {}
            for table, lines in rows.items():
                content = b"".join(lines)
                tables[table] = [len(content), hashlib.sha256(content).hexdigest()]
                self.out.publish_bytes(content, _rows_name(shard.stem, table))
            marker = {"tar_sha256": shard.sha256, "tables": tables, **tally.counts()}
            look_again()
            self.out.publish_bytes(dump_json(marker), _done_name(shard.stem))
        self._done.add(shard.stem)
        progress("shard", name=shard.stem, planned=shard.samples, reused=False)

    def conclude(self, look_again: LookAgain) -> dict[str, Any]:
        """Write what stands over all shards, the card, the hashes, and last export.json."""
        look_again()
        self.out.remove(EXPORT)  # it must not vouch for what is replaced below
        written: dict[str, tuple[int, str]] = {}

        def publish(name: str, chunks: Iterable[bytes]) -> None:
            """A file over all shards, by way of the disk, and what is to be said of it."""
            whole, size = hashlib.sha256(), 0
            with self.out.staging() as folder:
                with (folder / "file").open("wb") as stream:
                    for chunk in chunks:
                        whole.update(chunk)
                        size += stream.write(chunk)
                self.out.publish(folder / "file", name)
            written[name] = size, whole.hexdigest()

        with explain_disk_errors(self.out, 0, "the export"):
            table = dict(sorted({**self.source.classes, 0: "background", 255: "ignore"}.items()))
            names = dump_json({str(number): name for number, name in table.items()})
            files = chain([(CLASSES, [names])], self.exporter.finish(self._table))
            for name, chunks in files:
                publish(name, chunks)
            card, counts = self._describe()
            publish(CARD, [card.encode("utf-8")])
            sums = sorted(sum_line(sha256, name) for name, (_, sha256) in written.items())
            rows = (sum_line(row["sha256"], row["name"]) for row in self._table(_FILES))
            publish(SUMS, chain(sums, rows))
            _, sums_sha256 = written.pop(SUMS)
            summary = {
                "schema_version": EXPORT_SCHEMA_VERSION,
                "settings": self.settings,
                "source": self.origin,
                "counts": counts,
                "shards": self._hashes(),
                "files": {name: size for name, (size, _) in written.items()},
                "sha256sums": sums_sha256,
            }
            self.out.sync()
            look_again()
            self.out.publish_bytes(dump_json(seal(summary)), EXPORT)
        return seal(summary)

    def _describe(self) -> tuple[str, dict[str, Any]]:
        """The card, and the counts that export.json has."""
        markers = [_read_json(self.out, _done_name(s.stem)) or {} for s in self.source.shards]
        tally = add_up(markers)
        hashes = np.fromiter((row["hash"] for row in self._table(_HASHES)), dtype=np.uint64)
        near = count_near_duplicates(hashes)
        filled = [split for split in self.splits if tally.splits[split]]
        text = readme(
            self.settings,
            self.origin,
            list(self.source.classes.values()),
            self.source.labeled,
            self.source.overlapping,
            tally,
            near,
            self.exporter.usage(),
            self.exporter.metadata(filled),
        )
        return text, {"near_duplicates": near, **tally.counts()}

    def _check_target(self) -> None:
        """Refuse a folder with other files, or the export of another dataset or format."""
        standing = _read_json(self.out, ASKED)
        if standing is None:
            refuse_foreign(self.out)
        elif standing != self._asked:
            what = describe_difference(standing, self._asked)
            raise ValueError(
                f"The output must be a new folder, or one of an export with the same settings "
                f"and dataset. Got {self.out.root}, {what}. Choose another folder."
            )

    def _is_done(self, shard: ListedShard, sizes: Mapping[str, int]) -> bool:
        """Whether its marker, its rows and its files stand there."""
        marker = _read_json(self.out, _done_name(shard.stem))
        if marker is None:
            return False
        if marker.get("tar_sha256") != shard.sha256:
            raise ValueError(
                f"The dataset must be the one that the export was begun from. Got another "
                f"{shard.name}. Choose another folder."
            )
        tables: dict[str, Any] = marker.get("tables", {})
        for table, (size, _) in tables.items():
            if sizes.get(_rows_name(shard.stem, table)) != size:
                return False
        try:
            files = list(self._rows(shard, _FILES))
        except RuntimeError:
            return False
        return _HASHES in tables and all(sizes.get(row["name"]) == row["bytes"] for row in files)

    def _table(self, name: str) -> Iterator[dict[str, Any]]:
        """Rows of a table over all shards, a shard's at a time in memory."""
        for shard in self.source.shards:
            yield from self._rows(shard, name)

    def _rows(self, shard: ListedShard, table: str) -> Iterator[dict[str, Any]]:
        """Rows of a shard; a marker that names others is removed, so that it is made again.

        Raises:
            RuntimeError: If they are not what was written.
        """
        marker = _read_json(self.out, _done_name(shard.stem)) or {}
        if table not in marker.get("tables", {}):
            return
        content = self.out.read(_rows_name(shard.stem, table)) or b""
        if hashlib.sha256(content).hexdigest() != marker["tables"][table][1]:
            self.out.remove(_done_name(shard.stem))
            raise RuntimeError(
                f"{self.out.path(_rows_name(shard.stem, table))} must hold what was written. Got "
                f"other bytes; run the same command again, which makes the shard again."
            )
        yield from (json.loads(line) for line in content.splitlines())

    def _hashes(self) -> dict[str, str]:
        return {shard.stem: shard.sha256 for shard in self.source.shards}


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
