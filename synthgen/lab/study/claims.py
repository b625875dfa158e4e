"""BL's claims as sentences that the figures decide.

A claim compares two rows that differ in one setting. "A is at least B" holds if the paired
difference is above zero with its whole interval; "B is enough" or "A adds nothing" holds if the
interval shows that A gains at most a stated margin. Whatever the images cannot decide is said so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from synthgen.lab.study.bootstrap import Interval, paired_intervals
from synthgen.lab.study.results import Results
from synthgen.lab.study.settings import Row, StudyName

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
    return list(_CLAIMS[results.study](results.rows))


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


def _pairs(
    rows: tuple[Row, ...], more: Mapping[str, Any], less: Mapping[str, Any]
) -> Iterator[tuple[Row, Row]]:
    """Rows with the settings ``more``, each with the row that has ``less`` in their place."""
    known = {row.setting: row for row in rows}
    for row in rows:
        if all(getattr(row.setting, name) == value for name, value in more.items()):
            other = known.get(replace(row.setting, **less))
            if other is not None and other != row:
                yield row, other


def _weights(row: Row) -> str:
    return "reweight" if row.setting.reweight else "no reweight"


def _grids(row: Row) -> str:
    return f"{row.setting.layers} [{', '.join(str(side) for side in row.setting.grids)}]"


def _layer_claims(rows: tuple[Row, ...]) -> Iterator[Claim]:
    for up, down in _pairs(rows, {"layers": "up"}, {"layers": "down"}):
        yield Claim(f"up ≥ down ({_weights(up)})", up, down)
    for both, up in _pairs(rows, {"layers": "both"}, {"layers": "up"}):
        text = f"down layers add nothing to up (gain at most {NOTHING}; {_weights(up)})"
        yield Claim(text, both, up, margin=NOTHING)
    for plain, weighted in _pairs(rows, {"reweight": False}, {"reweight": True}):
        yield Claim(f"no reweight ≥ reweight ({plain.setting.layers})", plain, weighted)


def _mid_claims(rows: tuple[Row, ...]) -> Iterator[Claim]:
    for mid, plain in _pairs(rows, {"mid": True}, {"mid": False}):
        where = f"{plain.setting.layers}, {_weights(plain)}"
        text = f"mid adds nothing (gain at most {NOTHING}; {where})"
        yield Claim(text, mid, plain, margin=NOTHING)


def _component_claims(rows: tuple[Row, ...]) -> Iterator[Claim]:
    full = max(row.setting.components for row in rows)
    for few in (3, 8):
        for all_of_them, row in _pairs(rows, {"components": full}, {"components": few}):
            text = f"{few} components are enough (all {full} gain at most {ENOUGH}; {_grids(row)})"
            yield Claim(text, all_of_them, row, margin=ENOUGH)


def _resolution_claims(rows: tuple[Row, ...]) -> Iterator[Claim]:
    largest = max((row.setting.grids for row in rows), key=len)
    full = max(row.setting.components for row in rows)
    subsets = dict.fromkeys(row.setting.grids for row in rows if row.setting.grids)
    for grids in subsets:
        wanted = {"grids": largest, "components": min(8, full)}
        for whole, part in _pairs(rows, wanted, {"grids": grids}):
            text = f"all grids ≥ {_grids(part)} ({part.setting.components} components)"
            yield Claim(text, whole, part)
    yield from _component_claims(rows)


def _upsampling_claims(rows: tuple[Row, ...]) -> Iterator[Claim]:
    sides = [row.setting.resolution for row in rows if row.papers and row.papers[0].table]
    coarse, fine = min(sides), max(sides)
    for number in (8, 3):
        wanted = {"components": number, "resolution": fine}
        for n in (1, 5, 10, 15):
            for finer, coarser in _pairs(rows, wanted, {"resolution": coarse}):
                text = f"clustering at {fine} ≥ at {coarse} in Top-{n} ({number} components)"
                yield Claim(text, finer, coarser, n)


_CLAIMS: Mapping[StudyName, Callable[[tuple[Row, ...]], Iterator[Claim]]] = {
    "layers": _layer_claims,
    "mid": _mid_claims,
    "resolutions": _resolution_claims,
    "components": _component_claims,
    "upsampling": _upsampling_claims,
}
