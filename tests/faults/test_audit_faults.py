"""Whatever interrupts an audit, the next one ends in the same bytes and the data untouched."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import pytest
from audit_children import finish_audit
from children import context, run_and_kill, run_to_end
from fault_table import Faults
from truth_world import make_dataset

from synthgen.dataset.audits import audit_ids, is_audited, parse_table, read_audit_marker
from synthgen.storage.publish import open_storage

pytestmark = pytest.mark.timeout(1500)  # processes of their own, on machines that are busy


def hashes(root: Path) -> dict[str, str]:
    """Every file but what is hidden, and but markers: they hold times."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and ".synthgen" not in path.parts
        and not path.match("audit/*/train*.json")
    }


def staged(out: Path) -> list[str]:
    return [path.name for path in (out / ".synthgen/staging").iterdir()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes in three shards, not audited."""
    out = tmp_path_factory.mktemp("world") / "out"
    make_dataset(out, num=6, shard_size=2)
    return out


@pytest.fixture(scope="module")
def audited(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """Hashes after an audit that nothing interrupted, and its seconds."""
    out = shutil.copytree(world, tmp_path_factory.mktemp("whole") / "out")
    seconds = run_to_end(finish_audit, out, "a")
    return hashes(out), seconds


def check_nothing_half(out: Path) -> None:
    """Whatever stands at a final name is whole: tables parse, markers have their table."""
    storage = open_storage(out)
    for audit_id in audit_ids(storage):
        for table in (out / "audit" / audit_id).glob("*.parquet"):
            assert len(parse_table(table.read_bytes())) == 2
        for path in (out / "audit" / audit_id).glob("train-*.json"):
            marker = read_audit_marker(storage, audit_id, path.stem)
            assert marker is not None
            assert is_audited(storage, audit_id, marker, marker.tar_sha256)


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_changes_no_byte(
    kills: int, world: Path, audited: tuple[dict[str, str], float], tmp_path: Path, faults: Faults
) -> None:
    (expected, seconds), rng, killed = audited, random.Random(kills), 0
    out = shutil.copytree(world, tmp_path / "out0")
    while killed < kills:
        if run_and_kill(rng.uniform(0, seconds), finish_audit, out, "a"):
            killed += 1
            faults.inject("SIGKILL of an audit", out)
            check_nothing_half(out)
        else:  # it was faster than the kill: compare, and begin another audit
            assert hashes(out) == expected
            out = shutil.copytree(world, tmp_path / f"out{killed}-{rng.random()}")
    run_to_end(finish_audit, out, "a")
    assert hashes(out) == expected
    assert staged(out) == []
    faults.survive()


def test_two_audits_beside_each_other_and_two_processes_on_one(
    world: Path, audited: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    out = shutil.copytree(world, tmp_path / "out")
    ready = context().Event()
    children = [
        context().Process(target=finish_audit, args=(out, audit_id, ready))
        for audit_id in ("a", "a", "b")
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(600)
    assert [child.exitcode for child in children] == [0, 0, 0]
    found = hashes(out)
    assert {name: sha for name, sha in found.items() if "audit/b" not in name} == audited[0]
    tables = [name for name in found if name.endswith(".parquet") and "audit/a" in name]
    assert len(tables) == 3
    assert all(found[name] == found[name.replace("audit/a", "audit/b")] for name in tables)
    assert staged(out) == []
