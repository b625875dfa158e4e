"""Faults at random moments of runs that cost a second: the fake model draws, all is real."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from children import finish_on_a_slow_disk, run_and_kill, run_to_end
from fault_table import Faults
from invariants import check_whole, keys, staged
from ordered import ORDERS, ordered_config
from tiny_run import tiny_config, tree_hashes

from synthgen import jobs
from synthgen.auditing.annotations import export_sa1b
from synthgen.config import Config, dump, load_audit
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.manifest import read_marker
from synthgen.dataset.metadata import read_rows
from synthgen.dataset.verify import verify_dataset
from synthgen.diffusion import backbones
from synthgen.export.push import push
from synthgen.report.page import write_report
from synthgen.storage.publish import open_storage

pytestmark = pytest.mark.timeout(1800)  # processes of their own, on machines that are busy
HELPERS = Path(__file__).parents[1] / "helpers"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return ordered_config(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    jobs.generate(config, out)
    return out


# --- killed at any moment -----------------------------------------------------------------------


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_slow_disk_and_kills_between_its_writes(
    kills: int, config: Config, whole: Path, tmp_path: Path, faults: Faults
) -> None:
    expected, rng, out = tree_hashes(whole), random.Random(kills), tmp_path / "out"
    for number in range(kills):
        delay = rng.uniform(0.2, 1.5)
        if run_and_kill(delay, finish_on_a_slow_disk, config, out, 0.2, number):
            faults.inject("SIGKILL on a slow disk", out)
        if (out / "manifest.json").exists():
            check_whole(config, out, expected)
            shutil.rmtree(out)
    run_to_end(finish_on_a_slow_disk, config, out, 0.02, kills)
    faults.inject("slow disk", out)
    check_whole(config, out, expected)
    faults.survive()


@pytest.mark.parametrize("runs", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_gc_beside_a_resume_on_a_slow_disk(
    runs: int,
    config: Config,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    faults: Faults,
) -> None:
    """It takes all that has no marker, however young, and nothing that is about to be used."""
    expected, rng, real = tree_hashes(whole), random.Random(runs), os.fsync

    def slow(handle: int) -> None:
        time.sleep(rng.uniform(0, 0.02))
        real(handle)

    monkeypatch.setattr(os, "fsync", slow)
    for number in range(runs):
        out = shutil.copytree(whole, tmp_path / f"out{number}")
        shutil.rmtree(out / "manifests")
        for lost in ("manifest.json", *rng.sample(sorted(expected_files(out)), 8)):
            (out / lost).unlink()
        faults.inject("gc beside a resume on a slow disk")
        with ThreadPoolExecutor(1) as pool:
            resume = pool.submit(jobs.generate, config, out)
            while not resume.done():
                jobs.gc(out, orphan_seconds=0.0)
        assert resume.result()["totals"]["samples"] == 40
        check_whole(config, out, expected)
    faults.survive()


def expected_files(out: Path) -> list[str]:
    """Files of shards by name."""
    return [path.relative_to(out).as_posix() for path in out.glob("*/train-*")]


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
    name: str, damage: Callable[[Path], None], config: Config, whole: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    damage(out / name)
    assert verify_dataset(out) != []
    assert jobs.status(out).complete_shards == 9
    job = jobs.GenerateJob(config, out)
    reused = [job.run_shard(spec.name).reused for spec in job.specs]
    tar_lost = name.startswith("data/")  # a marker comes back without drawing
    assert reused == [True, not tar_lost, *[True] * 8]
    jobs.GenerateJob(config, out).finalize()
    assert tree_hashes(out) == tree_hashes(whole)


# --- disks --------------------------------------------------------------------------------------


@pytest.fixture
def growing_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A small disk of its own, and what gives it another number of kilobytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root and the permission to mount")

    def resize(kilobytes: int) -> None:
        options = f"remount,size={kilobytes}k"
        subprocess.run(["mount", "-o", options, str(disk)], check=True)

    try:
        yield disk, resize
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_again_and_again(
    growing_disk: tuple[Path, Callable[[int], None]], config: Config, whole: Path, faults: Faults
) -> None:
    (disk, resize), size, said = growing_disk, 48, []
    out = disk / "out"
    while not (out / "manifest.json").exists():
        assert size < 4000
        try:
            jobs.generate(config, out)
        except OSError as error:
            said.append(str(error))
            faults.inject("disk full", out)
            assert staged(out) == []
            size += 28  # seven pages: each time it is full somewhere else
            resize(size)
    assert len(said) > 5
    assert all("must have about" in line and "\n" not in line for line in said)
    check_whole(config, out, tree_hashes(whole))
    faults.survive()


def test_an_output_that_became_read_only_is_said_and_gone_on_with(
    growing_disk: tuple[Path, Callable[[int], None]], config: Config, whole: Path, faults: Faults
) -> None:
    (disk, resize), out = growing_disk, growing_disk[0] / "out"
    resize(4000)
    job = jobs.GenerateJob(config, out)
    job.begin()
    for shard in ("train-000000", "train-000001"):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(OSError, match=r"must be a writable folder.*read-only") as error:
            job.run_shard(shard)
        assert len(str(error.value).splitlines()) == 1
        faults.inject("read-only output", out)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        job.run_shard(shard)
    jobs.generate(config, out)
    check_whole(config, out, tree_hashes(whole))
    faults.survive()


def test_what_is_written_after_a_dataset_needs_space_too(
    growing_disk: tuple[Path, Callable[[int], None]], whole: Path, tmp_path: Path, faults: Faults
) -> None:
    (disk, resize), data = growing_disk, tmp_path / "data"
    shutil.copytree(whole, data)
    settings = load_audit(["auditor.name=halves:load_halves", "verdict.min_top_n=0"])
    jobs.audit(data, settings, audit_id="halves")
    commands: list[Callable[[], object]] = [
        lambda: push(data, f"file://{disk}/pushed"),
        lambda: write_report(data, out=disk / "page" / "index.html"),
        lambda: export_sa1b(data, "halves", disk / "sa1b"),
        lambda: open_storage(disk).publish_bytes(b"x" * 40_000, "labels/mine/summary.json"),
    ]
    for command in commands:
        resize(48)
        (disk / "ballast").write_bytes(b"x" * (shutil.disk_usage(disk).free - 4096))
        with pytest.raises(OSError, match=r"must have about .* MB free for .*\. Got ") as full:
            command()
        faults.inject("disk full", data)
        assert len(str(full.value).splitlines()) == 1
        (disk / "ballast").unlink()
        resize(4000)
        command()
        for path in disk.iterdir():
            shutil.rmtree(path)
    faults.survive()


# --- clocks -------------------------------------------------------------------------------------


def libfaketime() -> Path | None:
    """The library that gives one process another clock; Debian's package is ``faketime``."""
    return next(iter(sorted(Path("/usr/lib").glob("**/faketime/libfaketime.so.1"))), None)


def test_a_clock_that_jumps(config: Config, whole: Path, tmp_path: Path, faults: Faults) -> None:
    library = libfaketime()
    if library is None:
        pytest.skip("a clock of its own needs libfaketime: apt-get install faketime")
    source, clock, out = tmp_path / "config.yaml", tmp_path / "clock", tmp_path / "out"
    source.write_text(dump(config))
    clock.write_text("+0\n")
    settings = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a jump of the wall clock leaves it alone
        "NO_FAKE_STAT": "1",  # files keep the times at which they were written
        "PYTHONPATH": os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])]),
    }
    program = str(HELPERS / "clock_children.py")
    done = subprocess.run(
        [sys.executable, program, str(source), str(out), str(clock)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said["years"]) >= 3  # it did jump
    assert said["removed"] == []  # the clean-up took nothing from the shard in flight
    for _ in range(said["jumps"]):
        faults.inject("clock jump", out)
    check_whole(config, out, tree_hashes(whole))
    faults.survive()


# --- the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 0])
def test_a_gpu_out_of_memory_costs_one_shard_its_batches(
    most: int,
    config: Config,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    faults: Faults,
) -> None:
    """Too much at once: batches of one. Too much alone: that sample fails, the others do not."""
    spec = jobs.plan(config)[3]
    monkeypatch.setenv(ORDERS, str(tmp_path))
    (tmp_path / "memory").write_text(f"{spec.samples[2].seed} {most}")
    outs = [tmp_path / "first", tmp_path / "second"]
    for out in outs:
        faults.inject("GPU out of memory", out)
        jobs.generate(config, out)
        assert verify_dataset(out, deep=True) == []
    found, expected = tree_hashes(outs[0]), tree_hashes(whole)
    assert found == tree_hashes(outs[1])  # the same fact, the same bytes
    apart = {name for name in expected if found[name] != expected[name]} - {"README.md"}
    assert {name for name in apart if "/train-" in name} <= {
        f"{folder}/{spec.name}.tar" for folder in ("data", "previews")
    }
    storage = open_storage(outs[0])
    marker = read_marker(storage, spec.name)
    assert marker is not None
    assert marker.batch_size == 1
    lost = [] if most else [spec.samples[2].key]
    assert [row.key for row in read_rows(storage, spec.name) if row.status == "failed"] == lost
    assert keys(outs[0]) == [key for key in keys(whole) if key not in lost]
    assert drawn(outs[0], lost) == drawn(whole, lost)
    faults.survive()


def drawn(out: Path, without: list[str]) -> list[tuple[str, bytes, bytes]]:
    """Key, image and masks of every sample."""
    return [
        (sample["key"], sample["image"].tobytes(), sample["masks"].tobytes())
        for sample in open_dataset(out)
        if sample["key"] not in without
    ]


def test_nan_latents_fail_one_sample_alone(
    tiny_pipeline: Path, tiny_dataset: Path, tmp_path: Path, faults: Faults
) -> None:
    """The real UNet of the tiny pipeline, whose second call gives NaN in its first row."""
    config = tiny_config(tiny_pipeline, tiny_dataset.parent / "prompts.jsonl")
    out, calls = tmp_path / "out", []

    def poison(_unet: Any, _inputs: Any, output: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            (output[0] if isinstance(output, tuple) else output.sample)[0] = torch.nan
        return output

    hook = backbones.load_backbone(config.model).pipeline.unet.register_forward_hook(poison)
    try:
        faults.inject("NaN latents", out)
        jobs.generate(config, out)
    finally:
        hook.remove()
    assert verify_dataset(out, deep=True) == []
    failed = [r for r in read_rows(open_storage(out), "train-000000") if r.status == "failed"]
    assert [row.reason for row in failed] == ["nan_latents"]
    lost = [row.key for row in failed]
    assert keys(out) == [key for key in keys(tiny_dataset) if key not in lost]
    assert drawn(out, lost) == drawn(tiny_dataset, lost)
    faults.survive()


def flip(content: bytes) -> bytes:
    """One bit in the middle of the weights."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (UNET, flip, r"change of model\.sha256\.unet"),
        ("vae/diffusion_pytorch_model.safetensors", flip, r"change of model\.sha256\.vae"),
        (UNET, lambda content: content[:-100], "must load as a Stable Diffusion pipeline"),
        (UNET, lambda content: b"\xff" * 8 + content[8:], "must load as a Stable Diffusion"),
        ("text_encoder/model.safetensors", lambda _: b"", "must load as a Stable Diffusion"),
    ],
)
def test_corrupt_weights_are_refused_before_anything_is_drawn(
    name: str,
    damage: Callable[[bytes], bytes],
    said: str,
    tiny_pipeline: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    faults: Faults,
) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    config = tiny_config(folder, tiny_dataset.parent / "prompts.jsonl")
    out, weights = tmp_path / "out", folder / name
    jobs.GenerateJob(config, out).begin()
    jobs.GenerateJob(config, out).run_shard("train-000000")
    whole = weights.read_bytes()
    weights.write_bytes(damage(whole))
    before = tree_hashes(out)
    faults.inject("corrupt weights file", out)
    backbones._load.cache_clear()  # as in a new process
    backbones._outline.cache_clear()
    with pytest.raises(ValueError, match=said) as refusal:
        jobs.generate(config, out)
    assert len(str(refusal.value).splitlines()) == 1
    assert tree_hashes(out) == before
    weights.write_bytes(whole)
    backbones._load.cache_clear()
    backbones._outline.cache_clear()
    jobs.generate(config, out)
    expected = tree_hashes(tiny_dataset)
    found = tree_hashes(out)
    assert {n: h for n, h in found.items() if n != "config.yaml"} == {
        n: h
        for n, h in expected.items()
        if n != "config.yaml"  # it names the model's folder
    }
    assert verify_dataset(out, deep=True) == []
    faults.survive()
