"""What progress looks like: a bar on a terminal, plain lines elsewhere, JSON on request.

What libraries log goes the same way, a line each: above the bar, or as JSON. Prefect's own records
are shown with ``--verbose`` only; its server has them all.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from synthgen.cli.options import printed
from synthgen.cli.stopping import reporting
from synthgen.progress import logger
from synthgen.storage.redaction import redact
from synthgen.storage.untrusted import one_line

PLAIN_EVERY_SECONDS = 5.0
Quiet = Annotated[bool, printed("--quiet", "-q", help="Errors and results alone.")]
Verbose = Annotated[bool, printed("--verbose", "-v", help="Also what libraries tell.")]
JsonLogs = Annotated[bool, printed("--json-logs", help="One JSON object per log line.")]
_console = Console(stderr=True)  # of the bar: lines are printed above it
_quiet = _as_json = False


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
        elif event == "existing":
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


class LogLines(logging.Handler):
    """Records of libraries as lines of ours, on standard error.

    Args:
        level: The least that is shown.
        as_json: As JSON objects.
    """

    def __init__(self, level: int, as_json: bool) -> None:
        super().__init__(level)
        self.as_json, self._told = as_json, set[str]()
        self.setFormatter(logging.Formatter())  # by which Prefect knows that the root is taken

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record once; of Prefect's only where everything is shown."""
        if record.name.startswith("prefect") and self.level > logging.INFO:
            return
        level, text = record.levelname.lower(), one_line(redact(record.getMessage()))
        if text in self._told:
            return
        self._told.add(text)
        if self.as_json:
            fields = {"event": "log", "level": level, "logger": record.name, "message": text}
            print(json.dumps({"time": round(record.created, 3), **fields}), file=sys.stderr)
        else:
            _console.print(f"{level}: {text}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def logged(quiet: bool, verbose: bool, as_json: bool) -> Iterator[None]:
    """Show what is logged while the block runs, and nothing of it twice."""
    global _quiet, _as_json
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    root, lines = logging.getLogger(), LogLines(level, as_json)
    before = root.level, list(root.handlers)
    root.setLevel(level)
    root.handlers = [h for h in root.handlers if type(h).__name__ != "PrefectConsoleHandler"]
    root.addHandler(lines)
    shown = warnings.showwarning
    warnings.showwarning = lambda message, *_: logging.getLogger("py.warnings").warning(message)
    _quiet, _as_json = quiet, as_json
    try:
        yield
    finally:
        _quiet = _as_json = False
        warnings.showwarning = shown
        root.setLevel(before[0])
        root.handlers = before[1]


class _Handler(logging.Handler):
    """Counts events, and shows the tally by a function of event and record."""

    def __init__(self, tally: Tally, show: Callable[[str, logging.LogRecord], None]) -> None:
        super().__init__()
        self.tally, self.show = tally, show

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", "")
        self.tally.count(event, getattr(record, "fields", {}))
        if not _quiet:
            self.show(event, record)


def _json_lines(tally: Tally) -> _Handler:
    def show(event: str, record: logging.LogRecord) -> None:
        line = {"time": round(record.created, 3), "event": event, **getattr(record, "fields", {})}
        line["images_per_second"] = round(tally.rate, 3)
        print(json.dumps(line), file=sys.stderr, flush=True)

    return _Handler(tally, show)


def _plain_lines(tally: Tally) -> _Handler:
    last = 0.0

    def show(event: str, _record: logging.LogRecord) -> None:
        nonlocal last
        finished = tally.done == tally.planned and event in ("shard", "existing")
        if finished or time.perf_counter() - last > PLAIN_EVERY_SECONDS:
            last = time.perf_counter()
            print(tally.line, file=sys.stderr, flush=True)

    return _Handler(tally, show)


def _bar(tally: Tally, bar: Progress) -> _Handler:
    (samples, shards), task = (
        tally.words,
        bar.add_task("", total=tally.planned, rate="", shards=""),
    )

    def show(_event: str, _record: logging.LogRecord) -> None:
        counts = f"{tally.shards_done}/{tally.shards} {shards}"
        bar.update(task, completed=tally.done, rate=f"{tally.rate:.2f} {samples}/s", shards=counts)

    return _Handler(tally, show)


@contextmanager
def show_progress(
    planned: int,
    shards: int,
    json_logs: bool = False,
    words: tuple[str, str] = ("images", "shards"),
) -> Iterator[Tally]:
    """Show the events of ``synthgen.progress`` while the block runs.

    Args:
        planned: Samples planned.
        shards: Shards planned.
        json_logs: One JSON object per event on standard error.
        words: What samples and shards are called.
    """
    tally = Tally(planned, shards, words)
    if json_logs or _as_json:
        with attached(_json_lines(tally)):
            yield tally
    elif sys.stderr.isatty() and not _quiet:
        columns = (
            *(SpinnerColumn(), BarColumn(), MofNCompleteColumn()),
            *(TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[shards]}")),
            TimeRemainingColumn(),
        )
        with (
            Progress(*columns, console=_console, transient=True) as bar,
            attached(_bar(tally, bar)),
        ):
            yield tally
    else:
        with attached(_plain_lines(tally)):
            yield tally


@contextmanager
def attached(handler: logging.Handler) -> Iterator[None]:
    """Give progress records to this handler alone for a while, in which a stop waits for them."""
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        with reporting():
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
