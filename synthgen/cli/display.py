"""What progress looks like: a bar on a terminal, plain lines elsewhere, JSON on request."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from synthgen.progress import logger

PLAIN_EVERY_SECONDS = 5.0


@dataclass(slots=True)
class Tally:
    """Counts of one run, kept by the display; ``words`` name what samples and shards are."""

    planned: int
    shards: int
    words: tuple[str, str] = ("images", "shards")
    done: int = 0
    made: int = 0
    shards_done: int = 0
    started: float = field(default_factory=time.perf_counter)

    def count(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take one event into account; reused samples are done but not made."""
        if event == "samples":
            self.done += fields["count"]
            self.made += fields["count"]
        elif event == "standing":
            self.shards_done += fields["shards"]
            self.done += fields["samples"]
        elif event == "shard":
            self.shards_done += 1
            self.done += fields["planned"] if fields["reused"] else 0

    @property
    def rate(self) -> float:
        """Images made per second."""
        return self.made / max(time.perf_counter() - self.started, 1e-9)

    @property
    def line(self) -> str:
        """One line for a log."""
        samples, shards = self.words
        counts = f"{self.done}/{self.planned} {samples}, {self.shards_done}/{self.shards} {shards}"
        if not self.made:
            return counts
        left = (self.planned - self.done) / self.rate
        return f"{counts}, {self.rate:.2f} {samples}/s, {left:.0f} s left"


class _Handler(logging.Handler):
    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.tally = tally

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", "")
        self.tally.count(event, getattr(record, "fields", {}))
        self.show(event, record)

    def show(self, event: str, record: logging.LogRecord) -> None:
        """Show the tally after an event."""


class _JsonHandler(_Handler):
    def show(self, event: str, record: logging.LogRecord) -> None:
        fields = getattr(record, "fields", {})
        line = {"time": round(record.created, 3), "event": event, **fields}
        print(
            json.dumps({**line, "images_per_second": round(self.tally.rate, 3)}),
            file=sys.stderr,
            flush=True,
        )


class _PlainHandler(_Handler):
    last = 0.0

    def show(self, event: str, record: logging.LogRecord) -> None:
        finished = self.tally.done == self.tally.planned and event in ("shard", "standing")
        if finished or time.perf_counter() - self.last > PLAIN_EVERY_SECONDS:
            self.last = time.perf_counter()
            print(self.tally.line, file=sys.stderr, flush=True)


class _BarHandler(_Handler):
    def __init__(self, tally: Tally, bar: Progress) -> None:
        super().__init__(tally)
        self.bar = bar
        self.task = bar.add_task("", total=tally.planned, rate="", shards="")

    def show(self, event: str, record: logging.LogRecord) -> None:
        self.bar.update(
            self.task,
            completed=self.tally.done,
            rate=f"{self.tally.rate:.2f} {self.tally.words[0]}/s",
            shards=f"{self.tally.shards_done}/{self.tally.shards} {self.tally.words[1]}",
        )


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[shards]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


@contextmanager
def show_progress(
    planned: int, shards: int, json_logs: bool, words: tuple[str, str] = ("images", "shards")
) -> Iterator[Tally]:
    """Show the events of ``synthgen.progress`` while the block runs.

    Args:
        planned: Samples planned.
        shards: Shards planned.
        json_logs: One JSON object per event on standard error.
        words: What samples and shards are called.
    """
    tally = Tally(planned, shards, words)
    if json_logs:
        with attached(_JsonHandler(tally)):
            yield tally
    elif sys.stderr.isatty():
        with _bar() as bar, attached(_BarHandler(tally, bar)):
            yield tally
    else:
        with attached(_PlainHandler(tally)):
            yield tally


@contextmanager
def attached(handler: logging.Handler) -> Iterator[None]:
    """Give progress records to this handler alone for a while."""
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
