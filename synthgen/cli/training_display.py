"""What training looks like: a bar per run on a terminal, a line per validation elsewhere."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from synthgen.cli.display import attached

PLAIN_EVERY_SECONDS = 30.0


@contextmanager
def show_training(name: str, json_logs: bool) -> Iterator[None]:
    """Show the steps and validations that are reported while the block runs.

    Args:
        name: What to call a training of this process; one of another has its process's name.
        json_logs: One JSON object per validation on standard error.
    """
    if not sys.stderr.isatty() or json_logs:
        with attached(_Lines(name, json_logs)):
            yield
        return
    with _bars() as bars, attached(_Bars(name, bars)):
        yield


class _Training(logging.Handler):
    """Takes the records of trainings apart."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.own = name

    def emit(self, record: logging.LogRecord) -> None:
        event, fields = getattr(record, "event", ""), getattr(record, "fields", {})
        other = record.processName not in (None, "MainProcess")
        run = str(record.processName) if other else self.own
        if event == "step":
            self.step(run, fields["step"], fields["steps"])
        elif event == "validation":
            self.validation(run, fields)

    def step(self, run: str, step: int, steps: int) -> None:
        """Show how far a run is."""

    def validation(self, run: str, fields: dict[str, Any]) -> None:
        """Show what a run has learned."""


class _Lines(_Training):
    def __init__(self, name: str, as_json: bool) -> None:
        super().__init__(name)
        self.as_json = as_json
        self.last = time.monotonic()

    def step(self, run: str, step: int, steps: int) -> None:
        if not self.as_json and time.monotonic() - self.last > PLAIN_EVERY_SECONDS:
            self._print(f"{run}: step {step}/{steps}")

    def validation(self, run: str, fields: dict[str, Any]) -> None:
        if self.as_json:
            self._print(json.dumps({"event": "validation", "run": run, **fields}))
        else:
            figures = f"loss {fields['loss']:.3f}, mIoU {fields['miou']:.3f}"
            self._print(f"{run}: step {fields['step']}, {figures}")

    def _print(self, line: str) -> None:
        self.last = time.monotonic()
        print(line, file=sys.stderr, flush=True)


class _Bars(_Training):
    def __init__(self, name: str, bars: Progress) -> None:
        super().__init__(name)
        self.bars = bars
        self.tasks: dict[str, Any] = {}

    def step(self, run: str, step: int, steps: int) -> None:
        if run not in self.tasks:
            self.tasks[run] = self.bars.add_task(run, total=steps, figures="")
        self.bars.update(self.tasks[run], completed=step + 1)

    def validation(self, run: str, fields: dict[str, Any]) -> None:
        if run in self.tasks:
            figures = f"loss {fields['loss']:.3f}  mIoU {fields['miou']:.3f}"
            self.bars.update(self.tasks[run], completed=fields["step"], figures=figures)


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
