"""The examination as one Markdown page that can be sent away: no secrets; paths only in errors."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

from synthgen import __version__
from synthgen.diffusion.generate import settle
from synthgen.lab.doctor.findings import Finding, StepReport, Table, shareable
from synthgen.lab.doctor.install import installed_version
from synthgen.lab.doctor.machine import Examination
from synthgen.lab.doctor.probe import gigabytes

PAGE = "doctor.md"
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "segment-anything")
UNFINISHED = "still to come when this was written; if this line stays, the process was killed"


def write_page(
    examination: Examination,
    findings: Sequence[Finding],
    reports: Sequence[StepReport],
    names: Sequence[str],
) -> Path:
    """Write the page into the folder of the examination.

    Args:
        examination: What was examined.
        findings: Of the installation.
        reports: Of the steps so far.
        names: Of all steps.
    """
    path = examination.out / PAGE
    path.write_text(page(examination, findings, reports, names), encoding="utf-8")
    return path


def page(
    examination: Examination,
    findings: Sequence[Finding],
    reports: Sequence[StepReport],
    names: Sequence[str],
) -> str:
    """The whole page; steps that have not run yet are named."""
    bad = sum(report.status != "ok" for report in reports)
    bad += sum(finding.status == "failed" for finding in findings)
    verdict = "All is well." if not bad else f"{bad} of the lines below need attention."
    if len(reports) < len(names):
        verdict += f" {len(names) - len(reports)} steps are {UNFINISHED}."
    steps = [
        (r.name, r.status, r.outcome.text, f"{r.seconds:.1f}", gigabytes(r.peak_bytes))
        for r in reports
    ]
    lines = [
        f"# synthgen doctor: {examination.card.name}",
        "",
        verdict,
        "",
        *(f"- {name}: {cell(shareable(value))}" for name, value in facts(examination).items()),
        "",
        "## Steps",
        "",
        *markdown(Table(("step", "", "result", "seconds", "peak memory"), tuple(steps), _MEMORY)),
        *(line for report in reports for line in _section(report)),
        "## Installation",
        "",
        *markdown(Table(("", "", ""), tuple((f.name, f.status, f.text) for f in findings))),
    ]
    return "\n".join(lines).rstrip() + "\n"


_MEMORY = "Peak memory: torch's allocator on CUDA, otherwise resident memory of the process."


def facts(examination: Examination) -> dict[str, str]:
    """What must be known to read the figures."""
    versions = ", ".join(f"{name} {installed_version(name)}" for name in PACKAGES)
    known = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "synthgen": f"{__version__} on Python {platform.python_version()}; {versions}",
        "machine": _machine(),
    }
    if examination.backbone is None:
        return known
    model, config = examination.backbone, examination.config
    settings = settle(model, config.generation)
    revision = model.identity["revision"] if model.card.hub_id else None
    drawn = (
        f"{len(examination.samples)} from prompts {Path(config.prompts).name!r}, "
        f"{settings.height} × {settings.width} px, {settings.num_inference_steps} steps, "
        f"guidance {settings.guidance_scale:g}, "
        f"scheduler {settings.scheduler or type(model.pipeline.scheduler).__name__}"
    )
    return {
        **known,
        "model": f"{model.card.name}{f' at {revision}' if revision else ''}, {model.device}, "
        f"{str(model.dtype).removeprefix('torch.')}, attention {config.model.attention}",
        "images": drawn,
        "masks": f"layers {config.capture.layers or model.card.capture_layers}, "
        f"{config.segmentation.features.components} components, "
        f"k = {', '.join(map(str, config.segmentation.clusters.ks))}",
    }


def _machine() -> str:
    """System, processor, GPU; no name of the machine."""
    free = psutil.virtual_memory().available
    cores = f"{os.cpu_count()} CPU cores, {free / 1e9:.0f} GB of memory free"
    system = f"{platform.system()} {platform.machine()}, {cores}"
    if not torch.cuda.is_available():
        return f"{system}, no CUDA"
    gpu = torch.cuda.get_device_properties(0)
    return f"{system}; {gpu.name}, {gpu.total_memory / 1e9:.1f} GB, CUDA {torch.version.cuda}"


def _section(report: StepReport) -> list[str]:
    """Heading, figures and picture of a step that has any."""
    table, picture = report.outcome.table, report.outcome.picture
    if table is None and not picture:
        return []
    shown = [f"![{report.outcome.text}]({picture})", ""] if picture else []
    return [f"## {report.name}", "", *shown, *(markdown(table) if table else [])]


def markdown(table: Table) -> list[str]:
    """Lines of a table, its note below, and an empty line.

    >>> markdown(Table(("a", "b"), (("1", "x|y"),)))
    ['| a | b |', '| --- | --- |', '| 1 | x\\\\|y |', '']
    """
    rows = [table.header, ("---",) * len(table.header), *table.rows]
    lines = [f"| {' | '.join(cell(value) for value in row)} |" for row in rows]
    return [*lines, "", *([table.note, ""] if table.note else [])]


def cell(text: str) -> str:
    """Text that Markdown shows as it is: prompts and errors are nobody's markup.

    >>> cell("<b>[x](y)|\\n")
    '&lt;b>\\\\[x\\\\](y)\\\\|'
    """
    escaped = re.sub(r"([\\\[\]|`])", r"\\\1", " ".join(text.split()))
    return escaped.replace("<", "&lt;")
