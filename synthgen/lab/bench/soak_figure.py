"""The picture of a soak: memory, speed and database over the samples made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito's, told apart by everybody
WINDOWS = 40  # over which speed is averaged


def soak_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Resident memory, speed by three clocks, and the server's database.

    Args:
        rows: Readings of one stretch, in order (see `synthgen.lab.bench.soak.Reading`).
    """
    figure = Figure(figsize=(9.0, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    memory, speed, database = figure.subplots(1, 3)
    read = {name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]}
    made = read["samples"]
    memory.plot(made, read["flow_bytes"] / 1e6, color=COLORS[0], label="flow")
    memory.plot(made, read["server_bytes"] / 1e6, color=COLORS[1], label="server")
    memory.set(title="resident memory, MB", ylim=(0.0, None))
    marks = np.unique(np.linspace(0, len(rows) - 1, min(WINDOWS, len(rows))).astype(int))
    rates = {name: _rate(made, read[name], marks) for name in ("seconds", "cpu_seconds")}
    yards = 1 / _rate(np.arange(len(rows)), read["yardstick_seconds"], marks)
    for label, rate, color in (
        ("yardstick", rates["cpu_seconds"] * yards, COLORS[0]),
        ("CPU second", rates["cpu_seconds"], COLORS[1]),
        ("second", rates["seconds"], COLORS[2]),
    ):
        speed.plot(made[marks][1:], rate / rate.mean(), color=color, label=f"per {label}")
    speed.set(title="speed, of its mean", ylim=(0.0, 2.0))
    database.plot(made, read["database_bytes"] / 1e6, color=COLORS[1], label="MB")
    database.plot(made, read["database_rows"] / 1e3, color=COLORS[0], label="1000 rows")
    database.set(title="server's database", ylim=(0.0, None))
    for axes in (memory, speed, database):
        for quarter in (0.25, 0.5, 0.75):
            axes.axvline(quarter * made[-1], color="#bbbbbb", linewidth=0.8)
        axes.set(xlabel="samples made")
        axes.locator_params(axis="x", nbins=4)
        axes.legend(loc="lower right", frameon=False)
    return figure


def _rate(
    what: Shaped[np.ndarray, " row"], per: Float[np.ndarray, " row"], marks: Int[np.ndarray, " m"]
) -> Float[np.ndarray, " window"]:
    """Growth of one thing per growth of another, between marks."""
    return np.asarray(np.diff(what[marks]) / np.maximum(np.diff(per[marks]), 1e-9))


def save_figure(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write ``soak_figure`` as a PNG."""
    soak_figure(rows).savefig(path, dpi=100)
