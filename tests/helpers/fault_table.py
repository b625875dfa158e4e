"""Counts what the tests did to runs, and prints it when the session ends.

A test takes the fixture ``faults``, says ``inject`` when it strikes, and ``survive`` once its
invariants hold again. Imported by ``conftest.py``. With ``SYNTHGEN_FAULT_TABLE=faults`` in the
environment the table is also written, to ``faults.json`` and ``faults.md``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

TABLE = "SYNTHGEN_FAULT_TABLE"
COLUMNS = ("injected", "survived", "bytes_lost")


class Faults:
    """What one test injected.

    Args:
        rows: By kind of fault: how many, how many of them were survived, and bytes of shards that
            were complete when a fault struck and are not what they were.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, int]] = {}
        self._open: list[tuple[str, dict[Path, tuple[int, str]]]] = []

    def inject(self, kind: str, out: Path | None = None) -> None:
        """A fault strikes now, with these complete shards in ``out``."""
        row = self.rows.setdefault(kind, dict.fromkeys(COLUMNS, 0))
        row["injected"] += 1
        self._open.append((kind, {} if out is None else complete_tars(out)))

    def survive(self) -> None:
        """The invariants hold after every fault so far."""
        for kind, stood in self._open:
            row = self.rows[kind]
            row["survived"] += 1
            row["bytes_lost"] += sum(
                size for path, (size, content) in stood.items() if content_of(path) != content
            )
        self._open.clear()


def complete_tars(out: Path) -> dict[Path, tuple[int, str]]:
    """Bytes and content of every tar of a dataset that its marker calls complete."""
    found = {}
    for marker in sorted(out.glob("stats/*.json")):
        tar = out / "data" / f"{marker.stem}.tar"
        size = int(json.loads(marker.read_text())["bytes"])
        if tar.exists() and tar.stat().st_size == size:
            found[tar] = (size, content_of(tar))
    return found


def content_of(path: Path) -> str:
    """The hash of a file, empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


@pytest.fixture
def faults(record_property: Any) -> Faults:
    """The counter of one test; its rows travel with the test's report, also from xdist."""
    counted = Faults()
    record_property("faults", counted.rows)
    return counted


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of this session, and write it where the environment says."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    called = [report for report in reports if getattr(report, "when", "") == "call"]
    rows = totals(
        rows
        for report in called
        for name, rows in getattr(report, "user_properties", ())
        if name == "faults"
    )
    if not rows:
        return
    lines = markdown(rows)
    terminalreporter.section("faults")
    terminalreporter.write_line("\n".join(lines))
    if where := os.environ.get(TABLE):
        Path(where).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        Path(where).with_suffix(".md").write_text("\n".join(lines) + "\n")


def totals(found: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Rows of all tests by kind, and their sum.

    >>> row = {"injected": 2, "survived": 2, "bytes_lost": 0}
    >>> totals([{"kill": row}, {"kill": row}])["all"]["injected"]
    4
    """
    sums: dict[str, Counter[str]] = {}
    for rows in found:
        for kind, row in rows.items():
            sums.setdefault(kind, Counter()).update(row)
            sums.setdefault("~all", Counter()).update(row)
    names = {kind: "all" if kind == "~all" else kind for kind in sorted(sums)}
    return {name: {c: sums[kind][c] for c in COLUMNS} for kind, name in names.items()}


def markdown(rows: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The table as lines of Markdown."""
    lines = ["| fault | injected | survived | bytes lost |", "|---|---:|---:|---:|"]
    for kind, row in rows.items():
        lines.append(f"| {kind} | {' | '.join(str(row[name]) for name in COLUMNS)} |")
    return lines
