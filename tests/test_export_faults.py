"""Kill exports at random moments: the next run ends in the same bytes."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from children import context
from export_children import finish_export, race_export
from made_export import make_dataset, tree

from synthgen.dataset.claim import CLAIM

pytestmark = pytest.mark.timeout(1500)  # processes of their own, on machines that are busy


def run(data: Path, out: Path, name: str, delay: float | None) -> tuple[bool, float]:
    """Run a child, kill it after ``delay`` seconds; whether it was killed, and its seconds."""
    ready = context().Event()
    child = context().Process(target=finish_export, args=(data, out, name, ready))
    child.start()
    assert ready.wait(300)
    started = time.perf_counter()
    child.join(delay if delay is not None else 900)
    if delay is not None:
        child.kill()
        child.join()
    assert child.exitcode in (0, -9)
    assert delay is not None or child.exitcode == 0
    return child.exitcode == -9, time.perf_counter() - started


def check_nothing_half(out: Path, whole: dict[str, bytes]) -> None:
    """Whatever stands at a name is what stands there in the end."""
    for name, content in tree(out).items():
        if "staging" not in name and name != CLAIM:
            assert whole[name] == content, name


def test_of_exports_of_other_settings_at_once_one_is_whole(tmp_path: Path) -> None:
    """Processes that start together: the target holds what one of them alone would make."""
    data, names = tmp_path / "data", ("coco", "voc", "yolo-seg")
    make_dataset(data, num=6, shard_size=2)
    alone = {}
    for name in names:
        run(data, tmp_path / name, name, None)
        alone[name] = tree(tmp_path / name)
    for attempt in range(3):
        out, go, codes = tmp_path / f"out{attempt}", context().Barrier(len(names)), {}
        children = {
            name: context().Process(target=race_export, args=(data, out, name, go))
            for name in names
        }
        for child in children.values():
            child.start()
        for name, child in children.items():
            child.join(300)
            codes[name] = child.exitcode
        assert sorted(codes.values())[0] == 0, codes
        winner = next(name for name, code in codes.items() if code == 0)
        assert sorted(codes.values()) == [0, 3, 3], codes
        assert tree(out) == alone[winner]


@pytest.mark.parametrize("name", ["coco", "voc"])
def test_sigkill_at_random_moments_changes_no_byte(name: str, tmp_path: Path) -> None:
    data, rng = tmp_path / "data", random.Random(name)
    make_dataset(data, num=12, shard_size=3)
    _, seconds = run(data, tmp_path / "whole", name, None)
    whole = tree(tmp_path / "whole")
    killed, round_ = 0, 0
    while killed < 3:
        out = tmp_path / f"out{round_}"
        if run(data, out, name, rng.uniform(0, seconds))[0]:
            killed += 1
            check_nothing_half(out, whole)
        else:
            assert tree(out) == whole
            round_ += 1
    run(data, out, name, None)
    assert tree(out) == whole
