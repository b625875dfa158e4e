"""The page's charts: what their bars stand for; ``templates/chart.svg.j2`` draws them as SVG.

SVG of our own rather than matplotlib's: the page's policy forbids the style attributes that the
latter is made of, text stays text, colors follow the page's theme, and a chart takes 3 kB instead
of 30. Every chart says in words what it shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from synthgen.config import TOPS
from synthgen.report.audits import Audit
from synthgen.report.overview import SHARE_EDGES, Histogram, Overview

_SERIES = {
    "our masks": "",
    "color baseline (RGB+XY)": "color_baseline_",
    "other images' masks": "shuffled_masks_",
}
"""Whose Top-n is shown, and how their metrics begin."""

_PER_K = re.compile(r"top_5_k([0-9]+)")
_DECADES = {0.0001: "0.01 %", 0.001: "0.1 %", 0.01: "1 %", 0.1: "10 %", 1.0: "100 %"}
_SHARES = {0.0: "0", 0.25: "0.25", 0.5: "0.5", 0.75: "0.75", 1.0: "1"}
_PERCENT = {0.0: "0 %", 0.25: "25 %", 0.5: "50 %", 0.75: "75 %", 1.0: "100 %"}
_SECONDS = {0.01: "10 ms", 0.1: "0.1 s", 1.0: "1 s", 10.0: "10 s", 100.0: "100 s"}


@dataclass(frozen=True, slots=True)
class Chart:
    """Groups of bars from left to right, in each a bar per series.

    Args:
        title: What is shown.
        summary: The same in words, for those who do not see it.
        x_label: Under the horizontal axis.
        y_label: Above the vertical axis.
        names: Of the series.
        groups: Each in words, and its values; None or 0 leaves a bar out.
        x_ticks: Marks of the horizontal axis: how many groups from the left, and the text.
        y_ticks: Marks of the vertical axis: value and text.
        highest: Value at the top of the vertical axis.
        gap: Share of a group's width that is left free between it and its neighbors.
        digits: After the decimal point of values.
    """

    title: str
    summary: str
    x_label: str
    y_label: str
    names: tuple[str, ...]
    groups: tuple[tuple[str, tuple[float | None, ...]], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    highest: float = 1.0
    gap: float = 0.0
    digits: int = 0


def histogram_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Histogram],
    ticks: Mapping[float, str],
) -> Chart:
    """A histogram; several series share their edges and stand side by side in each bin.

    Args:
        title: What is shown.
        x_label: Quantity and unit.
        y_label: What is counted.
        series: Histograms by name.
        ticks: Text at edges of bins.
    """
    edges = next(iter(series.values())).edges.tolist()
    counts = [list(map(float, histogram.counts)) for histogram in series.values()]
    highest = int(max(1.0, *map(max, counts)))
    groups = zip(edges[:-1], edges[1:], zip(*counts, strict=True), strict=True)
    steps = (base * 10**power for power in range(10) for base in (1, 2, 5))
    step = next(step for step in steps if highest / step <= 4)  # at most five round marks
    return Chart(
        title,
        "; ".join(f"{name}: {histogram.words}" for name, histogram in series.items()),
        x_label,
        y_label,
        tuple(series),
        tuple((f"{low:.3g} to {high:.3g}", values) for low, high, values in groups),
        tuple(
            (float(min(range(len(edges)), key=lambda i: abs(edges[i] - at))), text)
            for at, text in ticks.items()
        ),
        tuple((float(count), f"{count:,}") for count in range(0, highest + 1, step)),
        float(highest),
    )


def grouped_chart(
    title: str, x_label: str, groups: Mapping[str, Sequence[float | None]], names: Sequence[str]
) -> Chart:
    """Groups of bars between 0 and 1, one bar per series.

    Args:
        title: What is compared.
        x_label: What the groups are.
        groups: Values of all series by group; None leaves a bar out.
        names: Names of the series.
    """
    finite = {
        group: tuple(v if v is not None and isfinite(v) else None for v in values)
        for group, values in groups.items()
    }
    words = [
        f"{group}, {name}: {value:.3f}"
        for group, values in finite.items()
        for name, value in zip(names, values, strict=True)
        if value is not None
    ]
    ticks = tuple((index + 0.5, group) for index, group in enumerate(finite))
    axis = tuple((step / 5, f"{step / 5:.1f}") for step in range(6))
    summary = "; ".join(words) or "no values"
    bars = tuple(finite.items())
    return Chart(
        title, summary, x_label, "mean", tuple(names), bars, ticks, axis, gap=0.3, digits=3
    )


def dataset_charts(overview: Overview, audit: Audit | None) -> list[Chart]:
    """All charts of the page: those of the audit first, where there is one."""
    counts = {float(edge): f"{edge:.0f}" for edge in overview.num_masks.edges[::5]}
    share = "share of the image"
    rows = (
        ("Masks per image", "masks", "images", overview.num_masks, counts),
        ("Coverage", f"{share} in any mask", "images", overview.coverage, _PERCENT),
        ("Mask areas", f"{share} (log)", "masks", overview.areas, _DECADES),
        ("Time per sample", "seconds (log)", "samples", overview.seconds, _SECONDS),
    )
    counted = [
        histogram_chart(title, label, unit, {unit: histogram}, ticks)
        for title, label, unit, histogram, ticks in rows
    ]
    return [*(_audit_charts(audit) if audit else ()), *counted]


def _audit_charts(audit: Audit) -> Iterator[Chart]:
    series = {
        name: prefix
        for name, prefix in _SERIES.items()
        if any(audit.mean(f"{prefix}top_{n}") is not None for n in TOPS)
    }
    tops = {
        f"Top-{n}": [audit.mean(f"{prefix}top_{n}") for prefix in series.values()] for n in TOPS
    }
    yield grouped_chart("Top-n (eq. 4)", "largest masks of the auditor", tops, tuple(series))
    per_k = {int(match[1]): name for name in audit.metrics if (match := _PER_K.fullmatch(name))}
    alone = {f"k = {k}": [audit.mean(per_k[k])] for k in sorted(per_k)}
    if any(value is not None for (value,) in alone.values()):
        yield grouped_chart("Top-5 of each k alone", "number of clusters", alone, ("our masks",))
    histograms = {}
    for name, prefix in series.items():
        values = audit.metrics.get(f"{prefix}top_5")
        if values:
            histograms[name] = Histogram(SHARE_EDGES)
            histograms[name].add(values.values())
    if histograms:
        yield histogram_chart("Top-5 per sample", "mean best IoU", "samples", histograms, _SHARES)
