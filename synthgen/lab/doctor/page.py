"""The examination as one Markdown page that can be sent away: no secrets; paths only in errors."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

from synthgen import __version__
from synthgen.diffusion.generate import resolve_settings
from synthgen.lab.doctor.install import Finding, installed_version, shareable
from synthgen.lab.doctor.machine import Examination
from synthgen.lab.tables import escape, markdown_table

PAGE = "doctor.md"
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "segment-anything")
UNFINISHED = "still to come when this was written; if this line stays, the process was killed"
MEMORY = "Peak memory: torch's allocator on CUDA, otherwise resident memory of the process."


def write_page(
    examination: Examination,
    installation: Sequence[Finding],
    steps: Sequence[Finding],
    num_steps: int,
) -> Path:
    """Write what was found into the folder of the examination.

    Args:
        examination: What was examined.
        installation: What was found of the installation.
        steps: What was found by the steps so far.
        num_steps: Of all steps.
    """
    bad = sum(found.status != "ok" for found in steps)
    bad += sum(found.status == "failed" for found in installation)
    verdict = "All is well." if not bad else f"{bad} of the lines below need attention."
    if len(steps) < num_steps:
        verdict += f" {num_steps - len(steps)} steps are {UNFINISHED}."
    known = facts(examination).items()
    rows = [(f.name, f.status, f.text, f"{f.seconds:.1f}", gigabytes(f.peak_bytes)) for f in steps]
    parts = [
        f"# synthgen doctor: {examination.card.name}",
        verdict,
        "\n".join(f"- {name}: {escape(shareable(value))}" for name, value in known),
        "## Steps",
        _table([("step", "", "result", "seconds", "peak memory"), *rows]),
        MEMORY,
        *(part for found in steps for part in _section(found)),
        "## Installation",
        _table([("", "", ""), *((f.name, f.status, f.text) for f in installation)]),
    ]
    path = examination.out / PAGE
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *others = ([escape(cell) for cell in row] for row in rows)
    return markdown_table(header, others)


def _section(found: Finding) -> list[str]:
    """Heading, picture and figures of a step that has any."""
    shown = [f"![{found.text}]({found.picture})"] if found.picture else []
    shown += [_table(found.table)] if found.table else []
    shown += [found.note] if found.note else []
    return [f"## {found.name}", *shown] if shown else []


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
    settings = resolve_settings(model, config.generation)
    revision = model.identity["revision"] if model.card.hub_id else None
    return {
        **known,
        "model": f"{model.card.name}{f' at {revision}' if revision else ''}, {model.device}, "
        f"{str(model.dtype).removeprefix('torch.')}, attention {config.model.attention}",
        "images": f"{len(examination.samples)} from prompts {Path(config.prompts).name!r}, "
        f"{settings.height} × {settings.width} px, {settings.num_inference_steps} steps, "
        f"guidance {settings.guidance_scale:g}, "
        f"scheduler {settings.scheduler or type(model.pipeline.scheduler).__name__}",
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


def gigabytes(num_bytes: int) -> str:
    """Bytes for people; an en dash where nobody measured.

    >>> gigabytes(2_345_678_901), gigabytes(0)
    ('2.35 GB', '–')
    """
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes else "–"
