"""Whatever interrupts a job, the next run of it ends in the same bytes; each job alike."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from children import context, run_and_kill, run_to_end
from fault_table import Faults
from invariants import staged
from job_children import BESIDE, JOBS, run_job
from made_photos import PHOTO_OVERRIDES, write_photos
from ordered import ordered_config
from tiny_run import tiny_config

from synthgen import jobs
from synthgen.config import dump, load
from synthgen.dataset.verify import find_problems, verify_dataset
from synthgen.export.checksums import verify_export
from synthgen.jobs.from_prompts import annotating
from synthgen.storage.publish import open_storage

pytestmark = pytest.mark.timeout(1800)  # processes of their own, on machines that are busy


@pytest.fixture(scope="module")
def world(
    tiny_dataset: Path, tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the jobs begin with; see ``job_children``."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "config.yaml").write_text(dump(ordered_config(folder)))
    shutil.copytree(tiny_dataset, folder / "data")
    prompts = tiny_dataset.parent / "prompts.jsonl"
    other = tiny_config(tiny_pipeline, prompts, "num=4", "seed=12")
    jobs.generate(other, folder / "other")
    given = load(overrides=[*PHOTO_OVERRIDES, f"model.card={tiny_pipeline}"])
    photos = annotating(given, [write_photos(folder / "photos")])
    (folder / "photos.yaml").write_text(dump(photos))
    return folder


@pytest.fixture(scope="module", params=JOBS)
def job(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(
    job: str, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], float]:
    """Hashes of what a job gives that nothing interrupts, and its seconds."""
    out = begin(job, world, tmp_path_factory.mktemp("whole") / "out")
    seconds = run_to_end(run_job, job, world, out)
    return hashes(out), seconds


def begin(job: str, world: Path, out: Path) -> Path:
    """An output as a job finds it."""
    if job in BESIDE:
        shutil.copytree(world / "data", out)
    return out


def hashes(out: Path) -> dict[str, str]:
    """Every file by name but what is hidden or holds times: markers, rows, those of manifests."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        hidden = name.startswith((".synthgen/", "stats/", "metadata/"))
        if path.is_file() and not hidden and not path.match("*/*/train*.json"):
            content = path.read_bytes()
            if name.startswith("manifest"):
                tree = json.loads(content)
                content = json.dumps({k: tree[k] for k in tree if k not in ("times", "seal")})
                content = content.encode()
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def check_nothing_half(job: str, world: Path, out: Path, expected: dict[str, str]) -> None:
    """Whatever has its final name is whole and what it will be; readers are not disturbed."""
    found = hashes(out)
    begun = hashes(world / "data") if job in BESIDE else {}
    described = {"config.yaml", "manifest.json", "README.md"} if job != "export" else set()
    for name, sha in found.items():
        assert sha in (expected[name], begun.get(name)) or name in described, name
    if job in ("label", "audit"):
        folder = "labels" if job == "label" else "audit"
        wrong = [p for p in find_problems(str(out)) if not p.where.startswith(folder)]
        assert wrong == []


def check(job: str, out: Path, expected: dict[str, str]) -> None:
    assert hashes(out) == expected
    problems = verify_export(open_storage(out)) if job == "export" else verify_dataset(out, True)
    assert list(problems) == []
    assert staged(out) == []


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_changes_no_byte(
    kills: int,
    job: str,
    world: Path,
    whole: tuple[dict[str, str], float],
    tmp_path: Path,
    faults: Faults,
) -> None:
    (expected, seconds), rng, killed = whole, random.Random(kills), 0
    out = begin(job, world, tmp_path / "out0")
    while killed < kills:
        # short delays too: a run that only finishes another one is over soon
        if run_and_kill(rng.uniform(0, seconds * rng.random()), run_job, job, world, out):
            killed += 1
            faults.inject(f"SIGKILL of {job}", out)
            check_nothing_half(job, world, out, expected)
        else:  # it was faster than the kill: compare, and begin another
            check(job, out, expected)
            out = begin(job, world, tmp_path / f"out{killed}-{rng.random()}")
    run_to_end(run_job, job, world, out)
    check(job, out, expected)
    faults.survive()


def test_two_processes_on_one_output_agree_or_one_is_refused(
    job: str,
    world: Path,
    whole: tuple[dict[str, str], float],
    tmp_path: Path,
    faults: Faults,
) -> None:
    out = begin(job, world, tmp_path / "out")
    faults.inject(f"two processes of {job} on one output", out)
    ready = context().Event()
    children = [context().Process(target=run_job, args=(job, world, out, ready)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(600)
    allowed = {0, 1} if job in ("extend", "export") else {0}  # one writer at a time
    codes = [child.exitcode for child in children]
    assert 0 in codes
    assert set(codes) <= allowed
    if job != "extend" or 1 in codes:
        check(job, out, whole[0])
    faults.survive()


class Cut(BaseException):
    """Raised in the middle of a shard, as a stop is."""


def test_what_stops_in_the_middle_of_a_shard_drops_it_and_the_next_run_goes_on(
    job: str, world: Path, whole: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    out, shards, reused = begin(job, world, tmp_path / "out"), list[str](), list[str]()

    def cut(event: str, **fields: Any) -> None:
        shards.extend([fields["name"]] if event == "shard" and not fields["reused"] else [])
        if event == "samples" and shards:  # in the second shard that is made
            raise Cut

    def note(event: str, **fields: Any) -> None:
        reused.extend([fields["name"]] if event == "shard" and fields["reused"] else [])
        reused.extend([event] if event == "existing" else [])

    with pytest.raises(Cut):
        JOBS[job](world, out, cut)
    assert len(shards) == 1
    assert staged(out) == []
    check_nothing_half(job, world, out, whole[0])
    JOBS[job](world, out, note)
    made = ("generate", "annotate", "extend")
    assert reused == (["existing"] if job in made else shards)
    check(job, out, whole[0])
