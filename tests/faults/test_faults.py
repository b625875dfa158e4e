"""Whatever interrupts a run, the next one ends in the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_table import Faults
from invariants import staged
from tiny_run import tiny_config, tree_hashes

from synthgen import jobs
from synthgen.config import Config
from synthgen.dataset.verify import verify_dataset
from synthgen.diffusion import generate as drawing


@pytest.fixture
def config(tiny_pipeline: Path, tiny_dataset: Path) -> Config:
    """The configuration that ``tiny_dataset`` was made with."""
    return tiny_config(tiny_pipeline, tiny_dataset.parent / "prompts.jsonl")


# --- killed at any moment -----------------------------------------------------------------------


# --- interrupted in the middle of a shard -------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("lost"), KeyboardInterrupt(), SystemExit(143)])
def test_an_exception_in_the_middle_of_a_shard_drops_it(
    error: BaseException,
    config: Config,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, real = [], drawing.generate

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # the second batch of the second shard
            raise error
        return real(*arguments)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "generate", failing)
        with pytest.raises(type(error)):
            jobs.generate(config, out)
    assert [path.name for path in (out / "data").iterdir()] == ["train-000000.tar"]
    assert [path.name for path in (out / "stats").iterdir()] == ["train-000000.json"]
    assert staged(out) == []
    assert not (out / "manifest.json").exists()
    jobs.generate(config, out)
    assert tree_hashes(out) == tree_hashes(tiny_dataset)


# --- half a shard -------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


def _garble(path: Path) -> None:
    path.write_bytes(b"{")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("data/train-000001.tar", Path.unlink),  # marker without tar
        ("stats/train-000001.json", Path.unlink),  # tar without marker
        ("data/train-000001.tar", _truncate),
        ("stats/train-000001.json", _garble),
    ],
)
def test_half_a_shard_is_made_again(
    name: str, damage: Callable[[Path], None], config: Config, tiny_dataset: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_dataset, tmp_path / "out")
    damage(out / name)
    assert verify_dataset(out) != []
    assert jobs.status(out).complete_shards == 2
    job = jobs.GenerateJob(config, out)
    reused = [job.run_shard(spec.name).reused for spec in job.specs]
    tar_lost = name.startswith("data/")  # a marker comes back without drawing
    assert reused == [True, not tar_lost, True]
    jobs.GenerateJob(config, out).finalize()
    assert tree_hashes(out) == tree_hashes(tiny_dataset)


def test_a_changed_configuration_is_refused_and_changes_nothing(
    config: Config, tiny_dataset: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_dataset, tmp_path / "out")
    with pytest.raises(ValueError, match=r"Got a change of seed\. Undo it"):
        jobs.generate(config.model_copy(update={"seed": 99}), out)
    before, after = (
        {path: path.read_bytes() for path in sorted(root.rglob("*.*")) if path.is_file()}
        for root in (tiny_dataset, out)
    )
    assert list(before.values()) == list(after.values())


# --- disks --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or _mount("-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)):
        pytest.skip("mounting a small tmpfs needs root and the permission to mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode


def test_a_full_disk_is_said_in_one_line_and_repaired_by_space(
    small_disk: Path, config: Config, tiny_dataset: Path, faults: Faults
) -> None:
    out = small_disk / "out"
    (small_disk / "ballast").write_bytes(b"x" * 180_000)
    with pytest.raises(OSError, match=r"must have about .* MB free for shard train-00000") as full:
        jobs.generate(config, out)
    faults.inject("disk full", out)
    assert len(str(full.value).splitlines()) == 1
    assert staged(out) == []
    assert jobs.status(out).finalized is False
    (small_disk / "ballast").unlink()
    assert _mount("-o", "remount,size=20m", str(small_disk)) == 0
    jobs.generate(config, out)
    assert tree_hashes(out) == tree_hashes(tiny_dataset)
    faults.survive()


def test_a_read_only_output_is_said_in_one_line(small_disk: Path, config: Config) -> None:
    assert _mount("-o", "remount,ro", str(small_disk)) == 0
    with pytest.raises(
        OSError, match=r"must be a writable folder.*read-only file system"
    ) as error:
        jobs.generate(config, small_disk / "out")
    assert len(str(error.value).splitlines()) == 1


def test_an_output_that_became_read_only_is_said_too(
    small_disk: Path, config: Config, tiny_dataset: Path, faults: Faults
) -> None:
    out = small_disk / "out"
    assert _mount("-o", "remount,size=20m", str(small_disk)) == 0
    jobs.GenerateJob(config, out).begin()
    specs = jobs.plan(config)
    for spec in specs[:2]:
        assert _mount("-o", "remount,ro", str(small_disk)) == 0
        with pytest.raises(OSError, match="must be a writable folder"):
            jobs.GenerateJob(config, out).run_shard(spec.name)
        faults.inject("read-only output", out)
        assert _mount("-o", "remount,rw", str(small_disk)) == 0
        jobs.GenerateJob(config, out).run_shard(spec.name)
    jobs.generate(config, out)
    assert tree_hashes(out) == tree_hashes(tiny_dataset)
    faults.survive()


def test_an_output_that_is_a_file_is_said_in_one_line(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="must be a folder") as error:
        jobs.generate(config, tmp_path / "file")
    assert len(str(error.value).splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"
