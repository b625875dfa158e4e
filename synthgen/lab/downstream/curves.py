"""The course of a training as a picture: loss and mIoU over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, VERMILION = "#0072b2", "#d55e00"  # Okabe-Ito


def training_curves(histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> Figure:
    """Loss (left) and mIoU (right) over the steps; one line per training, a color per name.

    Args:
        histories: Per name the validations of one training or of several.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for place, key, title in ((1, "loss", "training loss"), (2, "miou", "validation mIoU")):
        axes = figure.add_subplot(1, 2, place)
        for number, (name, runs) in enumerate(histories.items()):
            for run, rows in enumerate(runs):
                label = name if run == 0 else None
                steps, values = [row["step"] for row in rows], [row[key] for row in rows]
                axes.plot(steps, values, color=_color(number), marker=".", label=label)
        axes.set_xlabel("optimizer step")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        if key == "miou":
            axes.set_ylim(0, 1)
            axes.legend(fontsize=8)
    return figure


def write_curves(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], path: Path
) -> Path:
    """Save `training_curves` as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    training_curves(histories).savefig(path, dpi=120)
    return path


def _color(number: int) -> str:
    colors = (BLUE, VERMILION, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
    return colors[number % len(colors)]
