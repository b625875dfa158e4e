"""Kill exports at random moments: the next run ends in the same bytes."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from children import context
from export_children import finish_export
from made_export import make_dataset, tree

from synthgen.export.export import export
from synthgen.storage.claim import CLAIM

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
    """Started together: the target holds what one of them alone would make."""
    data, names = tmp_path / "data", ("coco", "voc", "yolo-seg")
    make_dataset(data, num=6, shard_size=2)
    alone = {}
    for name in names:
        export(data, tmp_path / name, name)
        alone[name] = tree(tmp_path / name)

    def race(out: Path, name: str, go: threading.Barrier) -> str:
        go.wait(60)
        try:
            export(data, out, name)
        except (RuntimeError, ValueError) as error:
            return str(error)
        return name

    for attempt in range(5):
        out, go = tmp_path / f"out{attempt}", threading.Barrier(len(names))
        with ThreadPoolExecutor(len(names)) as pool:
            said = list(pool.map(race, [out] * len(names), names, [go] * len(names)))
        winners = [name for name in names if name in said]
        assert winners, said
        assert len(winners) == 1, said
        refused = [text for text in said if text not in winners]
        assert all("one writer at a time" in t or "begun with format" in t for t in refused)
        assert tree(out) == alone[winners[0]]


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
