"""The window of submissions, and which runners there are; clusters are in ``test_clusters.py``."""

from __future__ import annotations

import random
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from synthgen import progress
from synthgen.config import Config
from synthgen.flows.deploy import deploy
from synthgen.flows.runners import WINDOW, completed, task_runner
from synthgen.flows.serve import serve


@pytest.mark.parametrize("workers", [1, 40])
def test_the_window_bounds_what_is_in_flight_and_loses_nothing(workers: int) -> None:
    rng, waiting, most = random.Random(workers), [], 0

    def submit(item: int) -> Future[int]:
        nonlocal most
        future: Future[int] = Future()
        waiting.append((future, item))
        most = max(most, len(waiting))
        if len(waiting) == max(WINDOW, 2 * workers) or item == 299:
            rng.shuffle(waiting)
            for _ in range(len(waiting) if item == 299 else rng.randint(1, len(waiting))):
                done, value = waiting.pop()
                done.set_result(value)
        return future

    pairs = list(completed(range(300), submit, workers))  # type: ignore[arg-type]
    assert most == max(WINDOW, 2 * workers)
    assert sorted(item for item, _ in pairs) == list(range(300))
    assert all(future.result() == item for item, future in pairs)


def test_a_straggler_holds_up_nobody() -> None:
    release = Event()

    def make(item: int) -> int:
        if item == 0:
            release.wait(60)
        return item

    with ThreadPoolExecutor(2) as pool:
        done: Any = completed(range(100), lambda item: pool.submit(make, item), 2)
        first = [next(done)[0] for _ in range(99)]
        assert 0 not in first
        release.set()
        assert [item for item, _ in done] == [0]


def test_a_request_to_stop_does_not_wait_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthgen.flows.runners.stop_requested", lambda: True)
    with pytest.raises(progress.Stopped):
        next(completed([1], lambda _: Future(), 1))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("thread", 1), "Did you mean 'threads'"),
        (("threads", 0), "at least 1"),
        (("threads", 1, "auto"), "must be left out for threads"),
        (("ray", 1, "auto"), "PREFECT_API_URL must name a server"),
    ],
)
def test_what_cannot_run_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_runner(*arguments)


@pytest.mark.parametrize("out", ["s3://me:hunter2@b/x", "s3:/b/x", "http://b/x"])
def test_no_bad_url_becomes_a_parameter_of_a_deployment(out: str) -> None:
    """Refused before the server, or the schedule, is looked at."""
    for refuse in (lambda: deploy(out), lambda: serve(Config(), out, "nightly")):
        with pytest.raises(ValueError, match="URL") as caught:
            refuse()
        assert "hunter2" not in str(caught.value)


def test_ray_clients_are_refused() -> None:
    pytest.importorskip("prefect_ray", reason="Ray is not installed: pip install '.[ray]'")
    from synthgen.flows.ray_runner import ray_runner

    with pytest.raises(ValueError, match="auto or host:port"):
        ray_runner(2, "ray://head:10001")
