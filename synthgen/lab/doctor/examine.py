"""The whole examination: which steps there are, in which order, and the page they end in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synthgen.lab.doctor.agreement import compare_with_auditor
from synthgen.lab.doctor.findings import Finding, StepReport
from synthgen.lab.doctor.install import examine_installation
from synthgen.lab.doctor.machine import Examination, Step, run_steps
from synthgen.lab.doctor.page import write_page
from synthgen.lab.doctor.probe import probe_batches
from synthgen.lab.doctor.steps import (
    check_hashes,
    count_heads,
    draw_captured,
    draw_plain,
    draw_sheet,
    load,
    segment_all,
)

STEPS = (
    Step("load", load),
    Step("hashes", check_hashes, ("load",)),
    Step("heads and grids", count_heads, ("load",)),
    Step("batch sizes", probe_batches, ("load",)),
    Step("images", draw_plain, ("load",)),
    Step("capture", draw_captured, ("load",)),
    Step("masks", segment_all, ("capture",)),
    Step("contact sheet", draw_sheet, ("masks",)),
)
TOP_N = Step("Top-n", compare_with_auditor, ("masks",))


def examine(examination: Examination) -> tuple[list[Finding], list[StepReport], Path]:
    """Look at the installation, run every step, write the page.

    Returns:
        Findings, reports, and the page.
    """
    steps = (*STEPS, *((TOP_N,) if examination.auditor is not None else ()))
    findings = examine_installation(examination.out)
    names = [step.name for step in steps]

    def show(reports: Sequence[StepReport]) -> Path:
        return write_page(examination, findings, reports, names)

    reports = run_steps(examination, steps, show)
    return findings, reports, show(reports)
