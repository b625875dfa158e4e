"""Samples are finished by threads while others are drawn: the same bytes, bounded, stoppable."""

from __future__ import annotations

import hashlib
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ordered import ordered_config

from synthgen import jobs
from synthgen.config import Config
from synthgen.dataset.records import encode_record
from synthgen.dataset.shards import ShardWriter
from synthgen.devices import free_cores, one_thread
from synthgen.jobs.batch import Recipe, draft, make_batches
from synthgen.jobs.estimate import bytes_in_flight
from synthgen.jobs.plan import batches, plan, samples_in_flight
from synthgen.progress import Stopped


def with_workers(config: Config, workers: int | None) -> Config:
    generation = config.generation.model_copy(update={"workers": workers})
    return config.model_copy(update={"generation": generation})


def finishing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("finish")]


def test_bytes_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    config = ordered_config(tmp_path, "num=11", "dataset.shard_size=6")
    found, before = [], torch.get_num_threads()
    for threads, workers in ((1, 0), (2, 0), (1, 1), (1, 2)):  # two draw: two finish in between
        out = tmp_path / f"out{threads}{workers}"
        torch.set_num_threads(threads)
        try:
            jobs.generate(with_workers(config, workers), out)
        finally:
            torch.set_num_threads(before)
        tars = sorted(out.glob("*/*.tar"))
        assert len(tars) == 4  # samples and previews of two shards
        found.append([hashlib.sha256(tar.read_bytes()).hexdigest() for tar in tars])
    assert all(each == found[0] for each in found)
    jobs.GenerateJob(with_workers(config, 1), tmp_path / "out10").begin()  # the same dataset


def test_no_more_samples_are_held_than_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the workers are, however many, and however late they wake after a result."""
    config = with_workers(ordered_config(tmp_path, "num=12", "dataset.shard_size=12"), 3)
    recipe = Recipe(config, "0" * 64, config.generation.batch_size)
    captured: list[weakref.ref[torch.Tensor]] = []
    most, draw = 0, recipe.model.draw

    def counted(*arguments: Any) -> Any:
        nonlocal most
        drawn = draw(*arguments)
        captured.extend(weakref.ref(next(iter(s.features.values.values()))) for s in drawn)
        most = max(most, sum(one() is not None for one in captured))
        return drawn

    def slow(*arguments: Any) -> Any:
        time.sleep(0.05)
        return segment(*arguments)

    class Late(ThreadPoolExecutor):
        """Its threads go on with their work, and drop the last one's arguments, late."""

        def submit(self, *arguments: Any, **named: Any) -> Any:
            future = super().submit(*arguments, **named)
            future.add_done_callback(lambda _: time.sleep(0.1))
            return future

    segment = jobs.batch.segment_sample
    monkeypatch.setattr(jobs.batch, "segment_sample", slow)
    monkeypatch.setattr(jobs.batch, "ThreadPoolExecutor", Late)
    recipe.__dict__["model"] = replace(recipe.model, draw=counted)
    made = [
        one
        for batch in make_batches(recipe, enumerate(batches(plan(config)[0].samples, 2)))
        for one in batch
    ]
    assert [one.row.key for one in made] == [s.key for s in plan(config)[0].samples]
    assert 2 < most <= samples_in_flight(3, 2) == 5
    assert bytes_in_flight(config) == pytest.approx(2 * 2048e6 * 5 / 2)  # of two shards


def test_a_cpu_that_draws_on_all_cores_finishes_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch before the next one is drawn, its two samples at once."""
    config = with_workers(ordered_config(tmp_path, "num=6", "dataset.shard_size=6"), 0)
    recipe = Recipe(config, "0" * 64, config.generation.batch_size)
    both, events, draw = threading.Barrier(2), [], recipe.model.draw

    def drawn(*arguments: Any) -> Any:
        events.append("drawn")
        return draw(*arguments)

    def together(*arguments: Any) -> Any:
        both.wait(60)
        made = segment(*arguments)
        events.append("segmented")
        return made

    segment = jobs.batch.segment_sample
    monkeypatch.setattr(jobs.batch, "segment_sample", together)
    recipe.__dict__["model"] = replace(recipe.model, draw=drawn)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in make_batches(recipe, enumerate(batches(plan(config)[0].samples, 2))):
            assert finishing()
    finally:
        torch.set_num_threads(before)
    assert events == ["drawn", "segmented", "segmented"] * 3
    assert finishing() == []


class Cut(BaseException):
    """Raised by a report, as a stop is."""


def test_what_stops_a_shard_leaves_no_thread(tmp_path: Path) -> None:
    config = with_workers(ordered_config(tmp_path, "num=12", "dataset.shard_size=12"), 2)
    recipe = Recipe(config, "0" * 64, config.generation.batch_size)

    def cut(event: str, **fields: Any) -> None:
        raise Cut

    with pytest.raises(Cut):
        draft(recipe, plan(config)[0].samples, tmp_path, cut)
    assert finishing() == []


def test_a_shard_is_finished_while_the_next_one_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two shards in flight one is drawn at a time; the last samples of the first wait here
    until the second is drawn."""
    config = with_workers(ordered_config(tmp_path, "num=8", "dataset.shard_size=4"), 1)
    jobs.generate(config, tmp_path / "alone")
    job = jobs.GenerateJob(config, tmp_path / "out")
    job.begin()
    drawn: list[int] = []
    next_begun = threading.Event()
    denoise, segment = jobs.batch._denoise, jobs.batch.segment_sample

    def logged(recipe: Recipe, samples: Any) -> Any:
        drawn.extend(int(sample.key) // 10_000 for sample in samples)
        if len(set(drawn)) == 2:
            next_begun.set()
        return denoise(recipe, samples)

    def held(*arguments: Any) -> Any:
        assert len(drawn) < 4 or next_begun.wait(60)
        return segment(*arguments)

    monkeypatch.setattr(jobs.batch, "_denoise", logged)
    monkeypatch.setattr(jobs.batch, "segment_sample", held)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(job.run_shard, ("train-000000", "train-000001")))
    assert drawn in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)
    for tar in ("train-000000.tar", "train-000001.tar"):
        one, other = (tmp_path / out / "data" / tar for out in ("alone", "out"))
        assert one.read_bytes() == other.read_bytes()


def test_a_shard_that_waits_for_its_turn_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it draws anything; and the turn is free again."""
    config = ordered_config(tmp_path, "num=4")
    recipe = Recipe(config, "0" * 64, config.generation.batch_size)
    monkeypatch.setattr(jobs.batch, "stop_requested", lambda: True)
    with pytest.raises(Stopped):
        draft(recipe, plan(config)[0].samples, tmp_path, lambda *_, **__: None)
    assert recipe.model.turn.acquire(blocking=False)
    recipe.model.turn.release()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_without_memory_sends_the_shard_to_batches_of_one(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_workers(ordered_config(tmp_path, "num=4"), workers)
    segment, left = jobs.batch.segment_sample, [None]

    def full(*arguments: Any) -> Any:
        if left:
            left.pop()
            raise MemoryError("no memory left")
        return segment(*arguments)

    monkeypatch.setattr(jobs.batch, "segment_sample", full)
    marker = jobs.generate(config, tmp_path / "out")
    assert marker["totals"]["samples"] == 4
    made = jobs.GenerateJob(config, tmp_path / "out").existing("train-000000")
    assert made is not None
    assert made.batch_size == 1
    assert finishing() == []


def test_what_is_not_what_was_made_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte that changes on its way to the disk, and a sample that was encoded wrongly."""
    config, write, encode = ordered_config(tmp_path, "num=4"), ShardWriter.write, encode_record
    job = jobs.GenerateJob(config, tmp_path / "out")
    job.begin()

    def flipped(writer: ShardWriter, key: str, members: Mapping[str, bytes]) -> None:
        write(writer, key, {s: m[:-1] + b"0" if s == "jpg" else m for s, m in members.items()})

    def wrong(*arguments: Any) -> dict[str, bytes]:
        return {**encode(*arguments), "txt": b"another prompt"}

    monkeypatch.setattr(ShardWriter, "write", flipped)
    with pytest.raises(RuntimeError, match="wrong hash: is not what was written"):
        job.run_shard("train-000000")
    monkeypatch.setattr(ShardWriter, "write", write)
    monkeypatch.setattr(jobs.batch, "encode_record", wrong)
    with pytest.raises(RuntimeError, match="wrong prompt"):
        job.run_shard("train-000000")
    assert not list((tmp_path / "out").glob("*/train-*"))
    assert finishing() == []


def test_one_thread_is_of_one_thread() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    try:
        torch.set_num_threads(3)

        def work() -> None:
            with one_thread():
                seen.append(torch.get_num_threads())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [1]
        assert torch.get_num_threads() == 3
        assert free_cores(torch.device("cuda")) >= free_cores(torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
