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
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=json_logs or not sys.stderr.isatty(),
    )
    with bars, attached(_Training(name, json_logs, bars)):
        yield


class _Training(logging.Handler):
    """Shows the records of trainings."""

    def __init__(self, name: str, as_json: bool, bars: Progress) -> None:
        super().__init__()
        self.own, self.as_json, self.bars = name, as_json, bars
        self.tasks: dict[str, Any] = {}
        self.last = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        event, fields = getattr(record, "event", ""), getattr(record, "fields", {})
        main = record.processName in (None, "MainProcess")
        run = self.own if main else str(record.processName)
        if event == "step":
            if run not in self.tasks:
                self.tasks[run] = self.bars.add_task(run, total=fields["steps"], figures="")
            self.bars.update(self.tasks[run], completed=fields["step"] + 1)
            if not self.as_json and time.monotonic() - self.last > PLAIN_EVERY_SECONDS:
                self._print(f"{run}: step {fields['step']}/{fields['steps']}")
        elif event == "validation":
            figures = f"loss {fields['loss']:.3f}, mIoU {fields['miou']:.3f}"
            self.bars.update(self.tasks[run], figures=figures)
            line = json.dumps({"event": event, "run": run, **fields})
            self._print(line if self.as_json else f"{run}: step {fields['step']}, {figures}")

    def _print(self, line: str) -> None:
        if self.bars.disable:
            self.last = time.monotonic()
            print(line, file=sys.stderr, flush=True)
