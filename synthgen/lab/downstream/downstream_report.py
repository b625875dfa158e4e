"""The downstream comparison on paper: JSON for programs, Markdown and curves for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthgen.lab.downstream.curves import write_curves
from synthgen.lab.downstream.experiment import GAIN_BAR, RATIO_BAR, run_folder
from synthgen.lab.downstream.trainer import load_averaged


def write_downstream(out: Path, result: Mapping[str, Any]) -> list[Path]:
    """Write ``downstream.json``, ``downstream.md`` and ``downstream.png`` beside the runs."""
    seeds = result["settings"]["seeds"]
    histories = {
        arm: [load_averaged(run_folder(out, arm, seed))[1] for seed in seeds]
        for arm in result["arms"]
    }
    figures = out / "downstream.json"
    figures.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = out / "downstream.md"
    table.write_text(markdown(result), encoding="utf-8")
    return [figures, table, write_curves(histories, out / "downstream.png")]


def markdown(result: Mapping[str, Any]) -> str:
    """The comparison as a table, what it comes to, and the IoU of each class."""
    settings = result["settings"]
    training = settings["training"]
    scenes = "tuning" if settings["tuning"] else "held-out"
    lines = [
        f"{training['model']}, {training['steps']} steps of {training['batch']} samples, "
        f"{len(settings['seeds'])} seeds, {settings['test']} {scenes} rendered scenes.",
        "",
        "| learns from | mIoU | without background | seeds |",
        "|---|---|---|---|",
        *(_row(_describe(arm, settings), scores) for arm, scores in result["arms"].items()),
        "",
        *verdicts(result),
        "",
        *_class_table(result["class_iou"]),
    ]
    return "\n".join(lines) + "\n"


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """One line per bar: what was measured, and whether that is enough."""
    lines = []
    if "ratio" in result:
        met = "met" if result["ratio_bar_met"] else "not met"
        lines.append(
            f"Ratio synthetic / rendered: {result['ratio']:.3f} (without background "
            f"{result['object_ratio']:.3f}); bar {RATIO_BAR:.2f}: {met}."
        )
    if "gain" in result:
        met = "met" if result["gain_bar_met"] else "not met"
        lines.append(
            f"Gain of few + synthetic over few: {result['gain']:+.3f}; bar {GAIN_BAR:+.2f}: {met}."
        )
    return lines


def _describe(arm: str, settings: Mapping[str, Any]) -> str:
    num, few = settings["num"], settings["few"]
    return {
        "synthetic": f"{num} synthetic, our labels",
        "rendered": f"{num} rendered, exact truth",
        "few": f"{few} rendered",
        "few+synthetic": f"{few} rendered + {num} synthetic",
    }[arm]


def _row(name: str, scores: Mapping[str, Any]) -> str:
    miou, objects = scores["miou"], scores["object_miou"]
    seeds = ", ".join(f"{value:.3f}" for value in miou["values"])
    return (
        f"| {name} | {miou['mean']:.3f} ± {miou['sd']:.3f} "
        f"| {objects['mean']:.3f} ± {objects['sd']:.3f} | {seeds} |"
    )


def _class_table(class_iou: Mapping[str, Mapping[str, float]]) -> Sequence[str]:
    arms = list(class_iou)
    names = list(dict.fromkeys(name for rows in class_iou.values() for name in rows))
    cells = [[f"{class_iou[arm].get(name, 0.0):.2f}" for arm in arms] for name in names]
    return [
        f"| class | {' | '.join(arms)} |",
        f"|---{'|---' * len(arms)}|",
        *(f"| {name} | {' | '.join(row)} |" for name, row in zip(names, cells, strict=True)),
    ]
