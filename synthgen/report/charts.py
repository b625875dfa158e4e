"""Geometry of the page's charts; ``templates/chart.svg.j2`` draws them as inline SVG.

SVG made here rather than by matplotlib: text stays text, colors follow the page's theme through
CSS variables, and a chart takes 3 kB instead of 30. Every chart says in words what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from synthgen.report.overview import Histogram

WIDTH, HEIGHT = 380, 222  # as in the template's viewBox
LEFT, RIGHT, TOP, BOTTOM = 46, 24, 24, 44


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle of a chart.

    Args:
        x: Left edge.
        y: Upper edge.
        width: Of the rectangle.
        height: Of the rectangle.
        series: Index of its series; decides the color.
        text: What it stands for, in words.
    """

    x: float
    y: float
    width: float
    height: float
    series: int
    text: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """All that the template draws.

    Args:
        title: What is shown.
        summary: The same in words, for those who do not see it.
        x_label: Under the horizontal axis.
        y_label: Above the vertical axis.
        bars: Rectangles.
        x_ticks: Marks of the horizontal axis.
        y_ticks: Marks of the vertical axis, with grid lines.
        series: Names for the legend; none where there is one series.
    """

    title: str
    summary: str
    x_label: str
    y_label: str
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[str, ...] = ()

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The bars as table rows."""
        return [tuple(bar.text.rsplit(": ", 1)) for bar in self.bars]


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
    histograms = list(series.values())
    edges = histograms[0].edges
    highest = max(1, *(int(h.counts.max()) for h in histograms))
    slot = (WIDTH - LEFT - RIGHT) / (len(edges) - 1)
    bars = [
        _bar(
            LEFT + slot * (index + number / len(histograms)),
            slot / len(histograms),
            int(histogram.counts[index]) / highest,
            number,
            f"{edges[index]:.3g} to {edges[index + 1]:.3g}: {int(histogram.counts[index])}",
        )
        for number, histogram in enumerate(histograms)
        for index in range(len(edges) - 1)
        if histogram.counts[index]
    ]
    places = {float(edge): LEFT + slot * index for index, edge in enumerate(edges)}
    marks = tuple(
        Tick(places[min(places, key=lambda edge: abs(edge - at))], text)
        for at, text in ticks.items()
    )
    names = tuple(series) if len(series) > 1 else ()
    summary = "; ".join(_in_words(name, histogram) for name, histogram in series.items())
    axis = _counts_axis(highest)
    return Chart(title, summary, x_label, y_label, tuple(bars), marks, axis, names)


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
    slot = (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    bars, ticks = [], []
    for index, (group, values) in enumerate(groups.items()):
        left = LEFT + slot * (index + 0.15)
        ticks.append(Tick(LEFT + slot * (index + 0.5), group))
        for number, value in enumerate(values):
            if value is not None and isfinite(value):
                width = slot * 0.7 / len(names)
                text = f"{group}, {names[number]}: {value:.3f}"
                bars.append(_bar(left + number * width, width, value, number, text))
    axis = tuple(Tick(_y(step / 5), f"{step / 5:.1f}") for step in range(6))
    summary = "; ".join(bar.text for bar in bars) or "no values"
    legend = tuple(names) if len(names) > 1 else ()
    return Chart(title, summary, x_label, "mean", tuple(bars), tuple(ticks), axis, legend)


def _bar(x: float, width: float, share: float, series: int, text: str) -> Bar:
    top, bottom = _y(min(max(share, 0.0), 1.0)), _y(0.0)
    return Bar(
        round(x + 0.5, 2), round(top, 2), round(width - 1, 2), round(bottom - top, 2), series, text
    )


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _counts_axis(highest: int) -> tuple[Tick, ...]:
    """Round counts at a distance that gives at most five marks."""
    steps = (base * 10**power for power in range(10) for base in (1, 2, 5))
    step = next(step for step in steps if highest / step <= 4)
    return tuple(Tick(_y(n / highest), f"{n:,}") for n in range(0, highest + 1, step))


def _in_words(name: str, histogram: Histogram) -> str:
    """One sentence on a histogram: how many values, and where the most common bin is."""
    if not histogram.total:
        return f"{name}: no values"
    peak, edges = int(histogram.counts.argmax()), histogram.edges
    return (
        f"{name}: {histogram.total:,} values, most often {edges[peak]:.3g} to "
        f"{edges[peak + 1]:.3g} ({int(histogram.counts[peak]):,})"
    )
