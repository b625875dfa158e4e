"""BL's claims as sentences that the figures decide.

A claim compares two rows that differ in one setting. "A is at least B" holds if the paired
difference is above zero with its whole interval; "B is enough" or "A adds nothing" holds if the
interval shows that A gains at most a stated margin. Whatever the images cannot decide is said so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from synthgen.config import SegmentationConfig
from synthgen.lab.study.bootstrap import Interval, paired_intervals
from synthgen.lab.study.results import Results
from synthgen.lab.study.settings import Row, StudyName
from synthgen.registry import CLUSTER_REFINERS

ENOUGH = 0.02
"""What BL calls no significant change: 3 components lose .02 in Top-5 (table 6, IDs 0 and 6)."""

NOTHING = 0.01
"""Largest change that BL's tables 2 and 8 show where the text says there is none."""

TRUTH = {"class_iou": "class IoU", "part_iou": "part IoU"}


@dataclass(frozen=True, slots=True)
class Claim:
    """One comparison.

    Args:
        text: What is claimed.
        more: The row that is claimed to be better, or to gain nothing.
        less: The row it is compared with.
        n: The n of the Top-n that decides.
        margin: None: ``more`` is claimed to be at least ``less``; otherwise it is claimed to
            gain at most this.
    """

    text: str
    more: Row
    less: Row
    n: int = 5
    margin: float | None = None


def verdict(interval: Interval, margin: float | None) -> str:
    """Whether a difference bears a claim out.

    >>> verdict(Interval(0.03, 0.01, 0.05), None), verdict(Interval(0.0, -0.01, 0.01), None)
    ('yes', 'no difference seen')
    >>> verdict(Interval(0.005, 0.0, 0.01), 0.02), verdict(Interval(0.05, 0.04, 0.06), 0.02)
    ('yes', 'no')
    """
    if not interval.low <= interval.high:  # NaN: too few images
        return "undecided"
    if margin is None:
        return "yes" if interval.low > 0 else "no" if interval.high < 0 else "no difference seen"
    if interval.high <= margin:
        return "yes"
    return "no" if interval.low > 0 and interval.mean > margin else "undecided"


def sentences(results: Results) -> list[str]:
    """The study's claims, each with what these images say of it."""
    return [_sentence(results, claim) for claim in study_claims(results)]


def study_claims(results: Results) -> list[Claim]:
    """The claims of a study that its rows can speak to."""
    rows = results.rows
    known = {row.setting: row for row in rows}
    claims = []
    for more, less, text, margin, tops in _comparisons(results.study, rows):
        better = (r for r in rows if all(getattr(r.setting, k) == v for k, v in more.items()))
        for row in better:
            other = known.get(replace(row.setting, **less))
            if other is None or other == row:
                continue
            about = other.setting
            words = {
                "layers": about.layers,
                "weights": "reweight" if about.reweight else "no reweight",
                "grids": f"{about.layers} [{', '.join(str(side) for side in about.grids)}]",
                "components": about.components,
                "k": f"k {about.k}" if about.k else "all k",
            }
            claims += [Claim(text.format(n=n, **words), row, other, n, margin) for n in tops]
    return claims


def _sentence(results: Results, claim: Claim) -> str:
    interval = difference(results, claim, f"top_{claim.n}")
    parts = [f"{claim.text}: **{verdict(interval, claim.margin)}**, Top-{claim.n} {interval}"]
    more, less = (results.published(row, claim.n) for row in (claim.more, claim.less))
    if more is not None and less is not None:
        parts.append(f"in the paper {round(more - less, 2) + 0.0:+.2f}")
    known = [name for name in TRUTH if name in results.metrics and claim.n == 5]
    parts += [f"{TRUTH[name]} {difference(results, claim, name)}" for name in known]
    return "; ".join(parts) + "."


def difference(results: Results, claim: Claim, metric: str) -> Interval:
    """How much ``more`` gains over ``less`` in a metric."""
    values = results.metrics[metric]
    more, less = (results.rows.index(row) for row in (claim.more, claim.less))
    return paired_intervals(values[more : more + 1], values[less])[0]


Comparison = tuple[Mapping[str, Any], Mapping[str, Any], str, float | None, tuple[int, ...]]
"""Settings of the rows that are claimed to be better or to gain nothing; what the rows that they
are compared with have in their place; the claim's text, filled in from the latter; margin; n."""


def _comparisons(study: StudyName, rows: Sequence[Row]) -> Iterator[Comparison]:
    full = max(row.setting.components for row in rows)
    nothing, enough = f"gain at most {NOTHING}", f"all {full} gain at most {ENOUGH}"
    if study == "layers":
        up, down, both = ({"layers": name} for name in ("up", "down", "both"))
        yield up, down, "up ≥ down ({weights})", None, (5,)
        text = f"down layers add nothing to up ({nothing}; {{weights}})"
        yield both, up, text, NOTHING, (5,)
        plain, weighted = {"reweight": False}, {"reweight": True}
        yield plain, weighted, "no reweight ≥ reweight ({layers})", None, (5,)
    if study == "refinement":
        default = SegmentationConfig().refiner
        for other in (name for name in CLUSTER_REFINERS if name != default):
            text = f"{default} ≥ {other} ({{grids}}, {{k}})"
            yield {"refiner": default}, {"refiner": other}, text, None, (5,)
    if study == "mid":
        text = f"mid adds nothing ({nothing}; {{layers}}, {{weights}})"
        yield {"mid": True}, {"mid": False}, text, NOTHING, (5,)
    if study == "resolutions":
        largest = max((row.setting.grids for row in rows), key=len)
        best = {"grids": largest, "components": min(8, full)}
        for grids in dict.fromkeys(row.setting.grids for row in rows if row.setting.grids):
            text = "all grids ≥ {grids} ({components} components)"
            yield best, {"grids": grids}, text, None, (5,)
    if study in ("resolutions", "components"):
        for few in (3, 8):
            text = f"{few} components are enough ({enough}; {{grids}})"
            yield {"components": full}, {"components": few}, text, ENOUGH, (5,)
    if study == "upsampling":
        sides = [row.setting.resolution for row in rows if row.papers and row.papers[0].table]
        coarse, fine = min(sides), max(sides)
        for few in (8, 3):
            text = f"clustering at {fine} ≥ at {coarse} in Top-{{n}} ({few} components)"
            finest = {"components": few, "resolution": fine}
            yield finest, {"resolution": coarse}, text, None, (1, 5, 10, 15)
