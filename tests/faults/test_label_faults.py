"""Whatever interrupts ``synthgen label``, the next run ends in the same bytes, data untouched."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from children import context, run_and_kill, run_to_end
from fault_table import Faults
from label_children import SETTINGS, finish_labels

from synthgen.dataset.labels import is_labeled, label_ids, read_labels_marker
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.shards import scan, spans
from synthgen.storage.publish import open_storage

pytestmark = pytest.mark.timeout(1800)  # processes of their own, on machines that are busy


def hashes(root: Path) -> dict[str, str]:
    """Every file but what is hidden, and but the labels' markers: they hold times."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and ".synthgen" not in path.parts
        and not path.match("labels/*/train*.json")
    }


def staged(out: Path) -> list[str]:
    return [path.name for path in (out / ".synthgen/staging").iterdir()]


@pytest.fixture(scope="module")
def labeled(
    tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], float]:
    """Hashes after labels that nothing interrupted, and their seconds."""
    out = shutil.copytree(tiny_dataset, tmp_path_factory.mktemp("whole") / "out")
    before = hashes(out)
    seconds = run_to_end(finish_labels, out, "a")
    after = hashes(out)
    assert before == {name: after[name] for name in before}
    tars = [name for name in after.keys() - before.keys() if name.endswith(".tar")]
    assert len(tars) == 3
    return after, seconds


def check_nothing_half(out: Path, expected: dict[str, str]) -> None:
    """Whatever stands at a final name is whole: tars as they end, markers have their tar."""
    storage = open_storage(out)
    found = hashes(out)
    assert found == {name: expected[name] for name in found}
    for label_id in label_ids(out):
        for tar in (out / "labels" / label_id).glob("*.tar"):
            with storage.open(f"labels/{label_id}/{tar.name}") as stream:
                assert sum(1 for _ in spans(scan(stream))) in (2, 3)
        for path in (out / "labels" / label_id).glob("train-*.json"):
            marker = read_labels_marker(storage, label_id, path.stem)
            assert marker is not None
            assert is_labeled(storage, label_id, marker, marker.tar_sha256)


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_changes_no_byte(
    kills: int,
    tiny_dataset: Path,
    labeled: tuple[dict[str, str], float],
    tmp_path: Path,
    faults: Faults,
) -> None:
    (expected, seconds), rng, killed = labeled, random.Random(kills), 0
    out = shutil.copytree(tiny_dataset, tmp_path / "out0")
    while killed < kills:
        if run_and_kill(rng.uniform(0, seconds), finish_labels, out, "a"):
            killed += 1
            faults.inject("SIGKILL of labeling", out)
            check_nothing_half(out, expected)
        else:  # it was faster than the kill: compare, and begin other labels
            assert hashes(out) == expected
            out = shutil.copytree(tiny_dataset, tmp_path / f"out{killed}-{rng.random()}")
    run_to_end(finish_labels, out, "a")
    assert hashes(out) == expected
    assert staged(out) == []
    faults.survive()
    assert all("semantic" in sample for sample in open_dataset(out, labels="a"))


def test_two_labels_beside_each_other_and_two_processes_on_one(
    tiny_dataset: Path, labeled: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_dataset, tmp_path / "out")
    ready = context().Event()
    children = [
        context().Process(target=finish_labels, args=(out, label_id, ready))
        for label_id in ("a", "a", "b")
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(900)
    assert [child.exitcode for child in children] == [0, 0, 0]
    found = hashes(out)
    assert {name: sha for name, sha in found.items() if "labels/b" not in name} == labeled[0]
    tars = [name for name in found if name.endswith(".tar") and "labels/a" in name]
    assert all(found[name] == found[name.replace("labels/a", "labels/b")] for name in tars)
    assert staged(out) == []


@pytest.mark.parametrize("engine", ["inline"])
def test_sigterm_ends_the_command_and_the_same_command_goes_on(
    engine: str, tiny_dataset: Path, labeled: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_dataset, tmp_path / "out")
    changed = ("presence", "margin", "background")
    words = [w for name in changed for w in ("-s", f"labeling.{name}={getattr(SETTINGS, name)}")]
    code = "from synthgen.cli import main; main()"
    options = ["label", str(out), "--id", "a", "--engine", engine, "--json-logs", *words]
    home = {"PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", code, *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **home}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{") and json.loads(line)["event"] == "samples":
            process.send_signal(signal.SIGTERM)
            break
    said = process.stderr.read()
    assert process.wait(timeout=300) == 143, said
    assert "run again to go on" in said
    assert not (out / "labels/a/summary.json").exists()
    check_nothing_half(out, labeled[0])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env={**os.environ, **home}
    )
    assert done.returncode == 0, done.stderr
    assert "Labels a of 8 samples" in done.stdout
    assert hashes(out) == labeled[0]
