"""Two plans for one folder: the larger one stands, and no run says that it is done when it is not.

Real processes on the planted backbone; their pauses and stops are seeded.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from children import finish_at_its_pace, start
from fault_table import Faults
from ordered import ordered_config
from tiny_run import tree_hashes

from synthgen import jobs
from synthgen.config import Config
from synthgen.dataset.verify import verify_dataset

pytestmark = pytest.mark.timeout(1800)  # processes of their own, on machines that are busy
SMALL, LARGE = 10, 12


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Config]:
    """Ten samples are shards of 4, 4 and 2, twelve are 4, 4 and 4: the last one is disputed."""
    config = ordered_config(tmp_path_factory.mktemp("fencing"))
    return {num: config.model_copy(update={"num": num}) for num in (SMALL, LARGE)}


@pytest.fixture(scope="module")
def expected(plans: dict[int, Config], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bytes of the larger dataset."""
    out = tmp_path_factory.mktemp("whole") / "out"
    jobs.generate(plans[LARGE], out)
    return without_history(out)


def without_history(out: Path) -> dict[str, str]:
    return {k: v for k, v in tree_hashes(out).items() if not k.startswith("manifests/")}


def begin(config: Config, out: Path, seed: int, stop_at: int = 0) -> BaseProcess:
    return start(finish_at_its_pace, config, out, seed, stop_at)


def code(child: BaseProcess) -> int:
    child.join(240)
    assert child.exitcode is not None
    return child.exitcode


def published(out: Path) -> list[int]:
    """Planned samples of every version of the manifest."""
    paths = sorted((out / "manifests").glob("*.json"))
    return [json.loads(path.read_text())["totals"]["planned"] for path in paths]


def check_larger(out: Path, expected: dict[str, str], codes: dict[int, int]) -> None:
    """The larger plan is whole; the smaller run is refused, or was done before."""
    assert codes[LARGE] == 0
    assert codes[SMALL] in ((0, 1, 2) if SMALL in published(out) else (1, 2))
    assert published(out)[-1] == LARGE
    assert verify_dataset(out, deep=True) == []
    assert without_history(out) == expected
    assert jobs.gc(out, orphan_seconds=0.0) == []


@pytest.mark.parametrize("pairs", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_two_plans_at_once(
    pairs: int, plans: dict[int, Config], expected: dict[str, str], tmp_path: Path, faults: Faults
) -> None:
    for seed in range(pairs):
        out, order = tmp_path / f"out{seed}", (SMALL, LARGE) if seed % 3 else (LARGE, SMALL)
        faults.inject("two plans at once")
        children = {num: begin(plans[num], out, 2 * seed + num) for num in order}
        check_larger(out, expected, {num: code(child) for num, child in children.items()})
    faults.survive()


@pytest.mark.parametrize("stops", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_while_another_planned_more(
    stops: int, plans: dict[int, Config], expected: dict[str, str], tmp_path: Path, faults: Faults
) -> None:
    """Stopped between two syncs, also in the middle of what is locked: then nobody can go on."""
    rng = random.Random(stops)
    for seed in range(stops):
        out = tmp_path / f"out{seed}"
        faults.inject("stopped while num is raised")
        small = begin(plans[SMALL], out, seed, rng.randrange(1, 60))
        while small.is_alive() and state(small) != "T":
            time.sleep(0.01)
        codes = {LARGE: code(begin(plans[LARGE], out, seed))}
        if small.is_alive():
            os.kill(small.pid or 0, signal.SIGCONT)
        codes[SMALL] = code(small)
        if codes[LARGE] == 1:  # the lock was held: what the message says helps
            assert codes[SMALL] == 0
            assert jobs.status(out).planned == SMALL
            codes[LARGE] = code(begin(plans[LARGE], out, seed))
        check_larger(out, expected, codes)
    faults.survive()


def state(child: BaseProcess) -> str:
    """``T`` where a process is stopped."""
    try:
        return Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""
