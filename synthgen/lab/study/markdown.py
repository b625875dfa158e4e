"""A study as Markdown: the paper's columns, what is real about them, and what they say."""

from __future__ import annotations

import numpy as np

from synthgen.config import TOPS
from synthgen.lab.study.bootstrap import FEW, Interval, paired_intervals
from synthgen.lab.study.claims import TRUTH, sentences
from synthgen.lab.study.results import Results
from synthgen.lab.study.settings import STUDIES, Row, StudyName
from synthgen.lab.tables import markdown_table

COMPARED = (5, 15)
"""The n whose differences to the reference row are shown: BL's usual one, and the finest."""


def study_markdown(results: Results) -> str:
    """The whole page of a study."""
    study = STUDIES[results.study]
    claims = "\n".join(f"- {sentence}" for sentence in sentences(results))
    parts = [
        f"## Study `{results.study}`: {study.title}",
        "\n".join(f"- {name}: {value}" for name, value in _facts(results).items()),
        _table(results),
        "What the figures say:",
        claims or "Too few rows are left on this model to compare any.",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(results: Results) -> dict[str, str]:
    """What must be known to read the table."""
    num, counts = len(results.images), results.metrics["num_annotations"][0]
    seen = f"{counts.mean():.1f} masks per image, at least 15 in {int((counts >= 15).sum())}"
    failed = ", ".join(f"{n} × {reason}" for reason, n in sorted(results.failures.items()))
    papers = [paper for row in results.rows for paper in row.papers]
    first = results.rows[results.reference]
    reference = row_label(results.study, first) if first.papers else "1"
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
    if any(len(row.papers) > 1 for row in results.rows):
        facts["ID"] = "rows of the paper that are one setting on this model stand together"
    if any(paper.table in (6, 7) and paper.layer == "both" for paper in papers):
        facts["Layer"] = (
            "the paper's table names none: its text says up, but its table 6 agrees with table 2 "
            "in 5 of 6 columns of the row that both have if it is both, in 2 if it is up"
        )
    if results.is_sd21:
        columns = "M2F" if results.family == "M2F" else "SAM"
        facts["in brackets"] = f"the paper's figure (its {columns} columns)"
    return facts


def _table(results: Results) -> str:
    """Tables 6 and 7 have their settings after the scores, 2 and 8 before them."""
    wide = STUDIES[results.study].wide
    truth = [name for name in TRUTH if name in results.metrics]
    tops = [f"{results.family} Top-{n}" for n in TOPS]
    sizes = ["Attention Resolution", "#Principal Components", "Upsample Resolution"]
    about = ["Reweight", "Layer", *(sizes if wide else [])]
    own = not STUDIES[results.study].papers
    about += ["refiner", "k"] if own else []
    shown = [*tops, *about, "Sample Count"] if wide else [*about, *tops]
    deltas = [f"Δ Top-{n}" for n in COMPARED]
    means = {name: results.mean(name) for name in (*(f"top_{n}" for n in TOPS), *truth)}
    masks, intervals = results.mean("num_masks"), [_deltas(results, n) for n in COMPARED]
    lines = []
    for i, row in enumerate(results.rows):
        scores = [_number(means[f"top_{n}"][i]) + _published(results, row, n) for n in TOPS]
        setting = _setting_cells(row, wide)
        if own:
            setting += [row.setting.refiner, str(row.setting.k or "all")]
        lines.append(
            [
                str(i + 1) if own else row_label(results.study, row),
                *([*scores, *setting, str(len(results.images))] if wide else [*setting, *scores]),
                *(column[i] for column in intervals),
                *(_number(means[name][i]) for name in truth),
                f"{masks[i]:.1f}",
            ]
        )
    header = ["ID", *shown, *deltas, *(TRUTH[name] for name in truth), "masks"]
    return markdown_table(header, lines)


def row_label(study: StudyName, row: Row) -> str:
    """The paper's IDs of a row; with their table where the study has several.

    >>> from synthgen.lab.study.paper import paper_row
    >>> from synthgen.lab.study.settings import Setting
    >>> row = Row(Setting("up", False, (8, 16), 3, False, 16), (paper_row(2, 7),))
    >>> row_label("layers", row), row_label("mid", row)
    ('7', 'T2: 7')
    """
    several = len({paper.table for paper in STUDIES[study].papers if paper.table}) > 1
    ids: dict[int, list[str]] = {}
    for paper in row.papers:
        if paper.table:
            ids.setdefault(paper.table, []).append(str(paper.id))
    labels = (f"{f'T{table}: ' if several else ''}{', '.join(own)}" for table, own in ids.items())
    return "; ".join(labels) or "–"


def _setting_cells(row: Row, wide: bool) -> list[str]:
    setting = row.setting
    if setting.layers == "none":
        return ["–", "RGB+XY", *(["–", "–", str(setting.resolution)] if wide else [])]
    position = "all" if setting.mid and setting.layers == "both" else setting.layers
    named = [str(setting.reweight), f"{position}{'+mid' if setting.mid else ''}"]
    grids = ", ".join(str(side) for side in setting.grids)
    sizes = [f"[{grids}]", str(setting.components), str(setting.resolution)]
    return [*named, *(sizes if wide else [])]


def _published(results: Results, row: Row, n: int) -> str:
    """The paper's figure in brackets, where the backbone is the paper's."""
    found = results.published(row, n) if results.is_sd21 else None
    return "" if found is None else f" ({found:.2f})"


def _deltas(results: Results, n: int) -> list[str]:
    values = results.metrics[f"top_{n}"]
    cells = [_bold(interval) for interval in paired_intervals(values, values[results.reference])]
    cells[results.reference] = "reference"
    return cells


def _bold(interval: Interval) -> str:
    return f"**{interval}**" if interval.is_real else str(interval)


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"
