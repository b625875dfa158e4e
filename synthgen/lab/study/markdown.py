"""A study as Markdown: the paper's columns, what is real about them, and what they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synthgen.config import TOPS
from synthgen.lab.study.bootstrap import FEW, Interval, paired_intervals
from synthgen.lab.study.claims import TRUTH, sentences
from synthgen.lab.study.results import Results
from synthgen.lab.study.settings import STUDIES, Row, StudyName

COMPARED = (5, 15)
"""The n whose differences to the reference row are shown: BL's usual one, and the finest."""


def study_markdown(results: Results) -> str:
    """The whole page of a study."""
    study = STUDIES[results.study]
    claims = "\n".join(f"- {sentence}" for sentence in sentences(results))
    lines = [
        f"## Study `{results.study}`: {study.title}",
        "",
        *(f"- {name}: {value}" for name, value in _facts(results).items()),
        "",
        *_table(results),
        "",
        "What the figures say:",
        "",
        claims or "Too few rows are left on this model to compare any.",
        "",
    ]
    return "\n".join(lines)


def _facts(results: Results) -> dict[str, str]:
    """What must be known to read the table."""
    num, counts = len(results.images), results.values("num_annotations")[0]
    seen = f"{counts.mean():.1f} masks per image, at least 15 in {int((counts >= 15).sum())}"
    failed = ", ".join(f"{n} × {reason}" for reason, n in sorted(results.failures.items()))
    papers = [row for row in results.rows if row.papers]
    reference = row_label(results.study, results.rows[results.reference])
    facts = {
        **results.about,
        "images": f"{num} {results.about['images']}" + (f" (failed: {failed})" if failed else ""),
        "auditor": f"{results.about['auditor']} ({seen})",
        "Top-n": "mean best IoU of the auditor's n largest masks (eq. 4); where there are "
        "fewer, of those",
        "Δ": f"paired difference to row {reference} with a 95 % bootstrap interval over the "
        "images; bold where it leaves out zero",
    }
    if num < FEW:
        facts["Δ"] += f"; with fewer than {FEW} images the intervals are too narrow: hints only"
    if any(len(row.papers) > 1 for row in papers):
        facts["ID"] = "rows of the paper that are one setting on this model stand together"
    if any(
        paper.table in (6, 7) and paper.layer == "both" for row in papers for paper in row.papers
    ):
        facts["Layer"] = (
            "the paper's table names none: its text says up, but its table 6 agrees with table 2 "
            "in 5 of 6 columns of the row that both have if it is both, in 2 if it is up"
        )
    if results.is_sd21:
        columns = "M2F" if results.family == "M2F" else "SAM"
        facts["in brackets"] = f"the paper's figure (its {columns} columns)"
    return facts


def _table(results: Results) -> list[str]:
    """Header, rule and rows; tables 6 and 7 have their settings after the scores."""
    wide = STUDIES[results.study].wide
    tops = [f"{results.family} Top-{n}" for n in TOPS]
    truth = [name for name in TRUTH if name in results.names]
    deltas = [f"Δ Top-{n}" for n in COMPARED]
    sizes = ["Attention Resolution", "#Principal Components", "Upsample Resolution"]
    about = ["Reweight", "Layer", *(sizes if wide else [])]
    shown = [*tops, *about, "Sample Count"] if wide else [*about, *tops]
    header = ["ID", *shown, *deltas, *(TRUTH[name] for name in truth), "masks"]
    rows = [
        [
            row_label(results.study, row),
            *(
                [*scores, *_setting_cells(row, wide), str(len(results.images))]
                if wide
                else [*_setting_cells(row, wide), *scores]
            ),
            *delta,
            *rest,
        ]
        for row, scores, delta, rest in zip(
            results.rows,
            _score_cells(results),
            _delta_cells(results),
            _mean_cells(results, [*truth, "num_masks"]),
            strict=True,
        )
    ]
    return [_line(header), _line(["---"] * len(header)), *(_line(row) for row in rows)]


def row_label(study: StudyName, row: Row) -> str:
    """The paper's IDs of a row; with their table where the study has several.

    >>> from synthgen.lab.study.paper import paper_row
    >>> from synthgen.lab.study.settings import Setting
    >>> row = Row(Setting("up", False, (8, 16), 3, False, 16), (paper_row(2, 7),))
    >>> row_label("layers", row), row_label("mid", row)
    ('7', 'T2: 7')
    """
    listed = [paper for paper in row.papers if paper.table]
    several = len({paper.table for paper in STUDIES[study].papers if paper.table}) > 1
    tables = dict.fromkeys(paper.table for paper in listed)
    labels = []
    for table in tables:
        ids = ", ".join(str(paper.id) for paper in listed if paper.table == table)
        labels.append(f"T{table}: {ids}" if several else ids)
    return "; ".join(labels) or "–"


def _setting_cells(row: Row, wide: bool) -> list[str]:
    setting = row.setting
    if setting.layers == "none":
        return ["–", "RGB+XY", *(["–", "–", str(setting.resolution)] if wide else [])]
    position = "all" if setting.mid and setting.layers == "both" else setting.layers
    named = [str(setting.reweight), f"{position}{'+mid' if setting.mid else ''}"]
    if not wide:
        return named
    grids = ", ".join(str(side) for side in setting.grids)
    return [*named, f"[{grids}]", str(setting.components), str(setting.resolution)]


def _score_cells(results: Results) -> list[list[str]]:
    """Top-n of every row, the paper's beside it where the backbone is the paper's."""
    means = np.stack([results.mean(f"top_{n}") for n in TOPS], axis=1)
    return [
        [
            _number(mean) + (_published(results, row, n) if results.is_sd21 else "")
            for n, mean in zip(TOPS, line.tolist(), strict=True)
        ]
        for row, line in zip(results.rows, means, strict=True)
    ]


def _published(results: Results, row: Row, n: int) -> str:
    found = results.published(row, n)
    return "" if found is None else f" ({found:.2f})"


def _delta_cells(results: Results) -> list[list[str]]:
    columns = []
    for n in COMPARED:
        values = results.values(f"top_{n}")
        intervals = paired_intervals(values, values[results.reference])
        columns.append([_delta(interval) for interval in intervals])
        columns[-1][results.reference] = "reference"
    return [list(cells) for cells in zip(*columns, strict=True)]


def _delta(interval: Interval) -> str:
    return f"**{interval}**" if interval.is_real else str(interval)


def _mean_cells(results: Results, metrics: Sequence[str]) -> list[list[str]]:
    columns = [results.mean(name).tolist() for name in metrics]
    return [
        [
            f"{value:.1f}" if name == "num_masks" else _number(value)
            for name, value in zip(metrics, line, strict=True)
        ]
        for line in zip(*columns, strict=True)
    ]


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
