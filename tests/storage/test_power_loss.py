"""What is reported done outlives a power loss: every file, every folder's entry, every parent."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_config, write_prompts

from synthgen import jobs
from synthgen.auditing.annotations import export_sa1b
from synthgen.config import LabelConfig, load_audit
from synthgen.export.push import push
from synthgen.jobs import export
from synthgen.jobs.audit import audit
from synthgen.jobs.label import label
from synthgen.report.page import write_report

SMALL = ("num=3", "dataset.shard_size=2", "dataset.preview_every=2")
LABELS = LabelConfig(method="clusters", presence=0.05, margin=0.001, background=0.05)


class Disk:
    """What is on the disk for certain: files and folders as they were when they were synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real = os.fsync
        self.synced: dict[tuple[int, int], object] = {}
        monkeypatch.setattr(os, "fsync", self.sync)

    def sync(self, handle: int) -> None:
        self.real(handle)
        found = os.fstat(handle)
        is_folder = stat.S_ISDIR(found.st_mode)
        self.synced[found.st_dev, found.st_ino] = (
            entries(handle) if is_folder else (found.st_size, found.st_mtime_ns)
        )

    def lost(self, root: Path, above: Path, contents: bool = True) -> list[str]:
        """What a power loss may take of a folder, of which nothing was there but ``above``.

        Args:
            root: The folder.
            above: One above it.
            contents: Also of files; False: names alone.
        """
        parents = [path for path in root.parents if above in (path, *path.parents)]
        paths = [*root.rglob("*"), root, *parents[:-1]]
        hidden = [p for p in paths if any(part[0] == "." for part in p.relative_to(above).parts)]
        return sorted(
            str(path) for path in set(paths) - set(hidden) if not self.has(path, contents)
        )

    def has(self, path: Path, contents: bool) -> bool:
        found, parent = path.stat(), path.parent.stat()
        names: Any = self.synced.get((parent.st_dev, parent.st_ino), set())
        content = self.synced.get((found.st_dev, found.st_ino))
        whole = path.is_dir() or not contents or content == (found.st_size, found.st_mtime_ns)
        return whole and (path.name, found.st_ino) in names


def entries(folder: int) -> set[tuple[str, int]]:
    with os.scandir(folder) as items:
        return {(item.name, item.inode()) for item in items}


def test_the_disk_of_this_test_knows_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, folder = Disk(monkeypatch), tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("a")
    assert disk.lost(folder, tmp_path) == [str(folder), str(folder / "file")]
    for path in (folder / "file", folder, tmp_path):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    assert disk.lost(folder, tmp_path) == []
    (folder / "file").write_text("ab")
    assert disk.lost(folder, tmp_path) == [str(folder / "file")]


def test_what_every_job_reports_done_is_durable(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    config, other = (tiny_config(tiny_pipeline, prompts, *SMALL, f"seed={n}") for n in (1, 2))
    settings = load_audit(["auditor.name=halves:load_halves", "verdict.min_top_n=0"])
    disk, new = Disk(monkeypatch), tmp_path / "new"
    data, second, merged = new / "deep/data", new / "second", new / "merged/data"
    exported, pushed = new / "exports/coco", new / "remote/deep"
    page, sa1b = new / "pages/page.html", new / "masks/sa1b"
    runs: list[tuple[Path, Callable[[], object]]] = [
        (data, lambda: jobs.generate(config, data)),
        (data, lambda: jobs.extend(data, 1)),
        (second, lambda: jobs.generate(other, second)),
        (merged, lambda: jobs.merge([data, second], merged)),
        (data, lambda: audit(data, settings, "halves")),
        (data, lambda: label(data, LABELS)),
        (page.parent, lambda: write_report(data, out=page)),
        (sa1b, lambda: export_sa1b(data, "halves", sa1b, keep_only=False)),
        (exported, lambda: export(data, exported)),
        (pushed, lambda: push(data, f"file://{pushed}")),
    ]
    for root, run in runs:
        run()
        assert disk.lost(root, tmp_path) == []
    disk.synced.clear()
    for root, run in (runs[2], runs[3], runs[9]):  # found there, and vouched for again
        run()
        assert disk.lost(root, root.parent, contents=False) == []
