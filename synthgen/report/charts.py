"""The page's charts: what their bars stand for; ``templates/chart.svg.j2`` draws them as SVG.

SVG of our own rather than matplotlib's: the page's policy forbids the style attributes that the
latter is made of, text stays text, colors follow the page's theme, and a chart takes 3 kB instead
of 30. Every chart says in words what it shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

import numpy as np
from jaxtyping import Float, Int

from synthgen.config import TOPS
from synthgen.report.audits import Audit
from synthgen.report.overview import EDGES, Overview, count_bins

_SERIES = {
    "our masks": "",
    "color baseline (RGB+XY)": "color_baseline_",
    "other images' masks": "shuffled_masks_",
}
"""Whose Top-n is shown, and how their metrics begin."""

_PER_K = re.compile(r"top_5_k([0-9]+)")
_AXES = {
    "num_masks": {float(edge): f"{edge:.0f}" for edge in EDGES["num_masks"][::5]},
    "coverage": {share / 4: f"{25 * share} %" for share in range(5)},
    "areas": {0.0001: "0.01 %", 0.001: "0.1 %", 0.01: "1 %", 0.1: "10 %", 1.0: "100 %"},
    "seconds": {0.01: "10 ms", 0.1: "0.1 s", 1.0: "1 s", 10.0: "10 s", 100.0: "100 s"},
}
"""What is written below the bins of ``EDGES``, and where."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Groups of bars from left to right, in each a bar per series."""

    title: str
    summary: str  # what is shown in words, for those who do not see it
    x_label: str  # quantity and unit
    y_label: str  # what is counted
    names: Sequence[str]  # of the series
    # each in words, and its values; None or 0 leaves a bar out
    groups: Sequence[tuple[str, Sequence[float | None]]]
    x_ticks: Sequence[tuple[float, str]]  # how many groups from the left, and the text
    y_ticks: Sequence[tuple[float, str]]  # value and text
    highest: float = 1.0  # value at the top of the vertical axis
    gap: float = 0.0  # share of a group's width that is left free
    digits: int = 0  # after the decimal point of values


def histogram_chart(
    title: str,
    x_label: str,
    y_label: str,
    edges: Float[np.ndarray, " edge"],
    series: Mapping[str, Int[np.ndarray, " bin"]],
    ticks: Mapping[float, str],
) -> Chart:
    """A histogram with text at some edges; several series stand side by side in each bin."""
    bins = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    words = []
    for name, counts in series.items():
        peak, total = int(counts.argmax()), int(counts.sum())
        common = f"most often {bins[peak]} ({counts[peak]:,})"
        words.append(f"{name}: {total:,} values, {common}" if total else f"{name}: no values")
    highest = max(1, *(int(counts.max()) for counts in series.values()))
    steps = (base * 10**power for power in range(10) for base in (1, 2, 5))
    step = next(step for step in steps if highest / step <= 4)  # at most five round marks
    return Chart(
        title,
        "; ".join(words),
        x_label,
        y_label,
        list(series),
        list(zip(bins, np.transpose([*series.values()]).astype(float).tolist(), strict=True)),
        [(float(np.abs(edges - at).argmin()), text) for at, text in ticks.items()],
        [(float(count), f"{count:,}") for count in range(0, highest + 1, step)],
        float(highest),
    )


def grouped_chart(
    title: str, x_label: str, names: Sequence[str], groups: Mapping[str, Sequence[float | None]]
) -> Chart:
    """Groups of means between 0 and 1, a bar per series; None leaves a bar out."""
    bars = [
        (group, [value if value is not None and isfinite(value) else None for value in values])
        for group, values in groups.items()
    ]
    words = [
        f"{group}, {name}: {value:.3f}"
        for group, values in bars
        for name, value in zip(names, values, strict=True)
        if value is not None
    ]
    x_ticks = [(index + 0.5, group) for index, group in enumerate(groups)]
    y_ticks = [(step / 5, f"{step / 5:.1f}") for step in range(6)]
    summary = "; ".join(words) or "no values"
    return Chart(title, summary, x_label, "mean", names, bars, x_ticks, y_ticks, gap=0.3, digits=3)


def dataset_charts(overview: Overview, audit: Audit | None) -> list[Chart]:
    """All charts of the page: those of the audit first, where there is one."""
    share = "share of the image"
    rows = (
        ("Masks per image", "masks", "images", "num_masks"),
        ("Coverage", f"{share} in any mask", "images", "coverage"),
        ("Mask areas", f"{share} (log)", "masks", "areas"),
        ("Time per sample", "seconds (log)", "samples", "seconds"),
    )
    counted = [
        histogram_chart(title, label, unit, EDGES[n], {unit: overview.bins[n]}, _AXES[n])
        for title, label, unit, n in rows
    ]
    return [*(_audit_charts(audit) if audit else ()), *counted]


def _audit_charts(audit: Audit) -> Iterator[Chart]:
    series = {
        name: prefix
        for name, prefix in _SERIES.items()
        if any(audit.mean(f"{prefix}top_{n}") is not None for n in TOPS)
    }
    tops = {f"Top-{n}": [audit.mean(f"{p}top_{n}") for p in series.values()] for n in TOPS}
    yield grouped_chart("Top-n (eq. 4)", "largest masks of the auditor", list(series), tops)
    per_k = {int(match[1]): name for name in audit.metrics if (match := _PER_K.fullmatch(name))}
    alone = {f"k = {k}": [audit.mean(per_k[k])] for k in sorted(per_k)}
    if any(value is not None for (value,) in alone.values()):
        yield grouped_chart("Top-5 of each k alone", "number of clusters", ["our masks"], alone)
    edges = EDGES["coverage"]
    counts = {
        name: count_bins(values.values(), edges)
        for name, prefix in series.items()
        if (values := audit.metrics.get(f"{prefix}top_5"))
    }
    if counts:
        ticks = {share / 4: f"{share / 4:g}" for share in range(5)}
        yield histogram_chart("Top-5 per sample", "mean best IoU", "samples", edges, counts, ticks)
