"""What trainings came to: JSON for programs, Markdown and curves for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from synthgen.lab.downstream.experiment import GAIN_BAR, RATIO_BAR, run_folder
from synthgen.lab.downstream.trainer import load_averaged
from synthgen.lab.tables import markdown_table

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe-Ito

Histories = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""Per name the validations of one training or of several."""


def training_curves(histories: Histories) -> Figure:
    """Loss (left) and mIoU (right) over the steps; one line per training, a color per name."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    titles = {"loss": "training loss", "miou": "validation mIoU"}
    for axes, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for number, (name, runs) in enumerate(histories.items()):
            for run, rows in enumerate(runs):
                steps, values = [row["step"] for row in rows], [row[key] for row in rows]
                color, label = COLORS[number % len(COLORS)], name if run == 0 else None
                axes.plot(steps, values, color=color, marker=".", label=label)
        axes.set_xlabel("optimizer step")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8)
    return figure


def write_curves(histories: Histories, path: Path) -> Path:
    """Save `training_curves` as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    training_curves(histories).savefig(path, dpi=120)
    return path


def write_downstream(out: Path, result: Mapping[str, Any]) -> list[Path]:
    """Write ``downstream.json``, ``downstream.md`` and ``downstream.png`` to `out`."""
    seeds = result["settings"]["seeds"]
    histories = {
        arm: [load_averaged(run_folder(out, arm, seed))[1]["history"] for seed in seeds]
        for arm in result["arms"]
    }
    figures, table = out / "downstream.json", out / "downstream.md"
    figures.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table.write_text(markdown(result), encoding="utf-8")
    return [figures, table, write_curves(histories, out / "downstream.png")]


def markdown(result: Mapping[str, Any]) -> str:
    """The comparison as a table, what it comes to, and the IoU of each class."""
    settings, class_iou = result["settings"], result["class_iou"]
    training, num, few = settings["training"], settings["num"], settings["few"]
    names = {
        "synthetic": f"{num * settings['times']} synthetic, our labels",
        "rendered": f"{num} rendered, exact truth",
        "few": f"{few} rendered",
        "few+synthetic": f"{few} rendered + {num * settings['times']} synthetic",
    }
    rows = [
        [
            names[arm],
            *(f"{scores[k]['mean']:.3f} ± {scores[k]['sd']:.3f}" for k in ("miou", "object_miou")),
            ", ".join(f"{value:.3f}" for value in scores["miou"]["values"]),
        ]
        for arm, scores in result["arms"].items()
    ]
    classes = dict.fromkeys(name for own in class_iou.values() for name in own)
    lines = [[cls, *(f"{own.get(cls, 0.0):.2f}" for own in class_iou.values())] for cls in classes]
    parts = [
        f"{training['model']}, {training['steps']} steps of {training['batch']} samples, "
        f"{len(settings['seeds'])} seeds, {settings['test']} "
        f"{'tuning' if settings['tuning'] else 'held-out'} rendered scenes.",
        markdown_table(("learns from", "mIoU", "without background", "seeds"), rows),
        "\n".join(_verdicts(result)),
        markdown_table(["class", *class_iou], lines),
    ]
    return "\n\n".join(parts) + "\n"


def _verdicts(result: Mapping[str, Any]) -> list[str]:
    """One line per bar: what was measured, and whether that is enough."""
    lines = []
    if "ratio" in result:
        lines.append(
            f"Ratio synthetic / rendered: {result['ratio']:.3f} (without background "
            f"{result['object_ratio']:.3f}); bar {RATIO_BAR:.2f}: "
            f"{'met' if result['ratio_bar_met'] else 'not met'}."
        )
    if "gain" in result:
        lines.append(
            f"Gain of few + synthetic over few: {result['gain']:+.3f}; bar {GAIN_BAR:+.2f}: "
            f"{'met' if result['gain_bar_met'] else 'not met'}."
        )
    return lines
