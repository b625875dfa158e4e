"""Top-n (BL eq. 4) of this machine's masks by an auditor, with the paper's row beside it.

Our defaults are no row of the paper, so the same captures are also segmented as the paper's row
was. Best-of-43 matching is optimistic, so one-to-one IoU, the number of masks and k-means on
RGB+XY stand in the table too.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from synthgen.auditing.color_baseline import chance_masks
from synthgen.auditing.judge import score
from synthgen.auditing.loading import annotate, load_auditor
from synthgen.config import TOPS, SegmentationConfig
from synthgen.diffusion.selection import attention_layers
from synthgen.lab.doctor.findings import Outcome, Table
from synthgen.lab.doctor.machine import Examination
from synthgen.lab.study.paper import PaperRow, paper_row
from synthgen.lab.study.settings import Setting, adapt, model_layout
from synthgen.progress import report
from synthgen.segmentation.segment import segment
from synthgen.types import Annotations, Sample, Segmentation

PAPER = paper_row(7, 4)
"""All grids of the up layers, 8 components, reweighted, at 256: nearest to our defaults."""

CHANCE_RESOLUTION = 128  # `synthgen.config.AuditConfig.chance_resolution`

Metrics = Mapping[str, float]


def compare_with_auditor(examination: Examination) -> Outcome:
    """Scores of every image under both settings, averaged."""
    assert examination.auditor is not None
    auditor = load_auditor(examination.auditor)
    base, setting = examination.config.segmentation, _paper_setting(examination)
    ours: list[Metrics] = []
    papers: list[Metrics] = []
    for sample, found in zip(examination.captured, examination.segmentations, strict=True):
        (seen,) = annotate(auditor, [sample.prompt.id], [sample.image])
        ours.append(_score_ours(sample, found, seen, base))
        if setting is not None:
            papers.append(_score_as(setting, sample, seen, base))
        report("samples", count=1)
    kind = f"{auditor.identity.get('name', '')} {auditor.identity.get('model_type', '')}".strip()
    annotations = float(np.mean([metrics["num_annotations"] for metrics in ours]))
    if not annotations:
        return Outcome(f"{kind} must find something in an image. Got no mask", ok=False)
    rows = [
        _paper_cells(PAPER),
        *([_cells(f"here, that row: {setting.name}", papers)] if papers and setting else []),
        _cells("here, our settings", ours),
        _cells("chance: k-means on RGB+XY", [_chance(metrics) for metrics in ours]),
    ]
    top = _mean(papers or ours, "top_5")
    text = (
        f"Top-5 {top:.2f}{' as the paper segments' if papers else ''} (paper {PAPER.sam[5]:.2f}, "
        f"chance {_mean(ours, 'chance_top_5'):.2f}) by {kind}, {len(ours)} images"
    )
    return Outcome(text, True, Table(_HEADER, tuple(rows), _note(examination, kind, annotations)))


_HEADER = ("", *(f"Top-{n}" for n in TOPS), "one-to-one", "masks", "images")


def _paper_setting(examination: Examination) -> Setting | None:
    """The paper's row on this model; None if the layers it clusters were not captured."""
    first = examination.captured[0]
    size = (first.image.shape[0], first.image.shape[1])
    model = examination.model
    layers = attention_layers(model.pipeline.unet, model.latent_size(*size))
    setting = adapt(PAPER, model_layout(layers, size))
    wanted = {x.name for x in layers if x.name.startswith("up_blocks")}
    return setting if wanted <= set(first.features.values) else None


def _score_ours(
    sample: Sample, found: Segmentation, seen: Annotations, base: SegmentationConfig
) -> Metrics:
    chance = chance_masks(sample.image, base, CHANCE_RESOLUTION)
    return score(found.mask_set, seen, found.ks, chance)


def _score_as(
    setting: Setting, sample: Sample, seen: Annotations, base: SegmentationConfig
) -> Metrics:
    chosen = replace(sample, features=setting.select(sample.features))
    with warnings.catch_warnings():  # heads of fewer features keep all they have
        warnings.filterwarnings("ignore", "features.components must be at most")
        found = segment(chosen, setting.segmentation(base))
    return score(found.mask_set, seen, found.ks)


def _chance(metrics: Metrics) -> Metrics:
    prefix = "chance_"
    return {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}


def _cells(name: str, rows: Sequence[Metrics]) -> tuple[str, ...]:
    names = [*(f"top_{n}" for n in TOPS), "hungarian"]
    figures = [f"{_mean(rows, metric):.3f}" for metric in names]
    return (name, *figures, f"{_mean(rows, 'num_masks'):.1f}", str(len(rows)))


def _paper_cells(row: PaperRow) -> tuple[str, ...]:
    figures = [f"{row.sam[n]:.2f}" for n in TOPS]
    return (f"paper: table {row.table}, row {row.id}", *figures, "–", "–", str(row.samples))


def _mean(rows: Sequence[Metrics], name: str) -> float:
    values = [row[name] for row in rows if not np.isnan(row[name])]
    return float(np.mean(values)) if values else float("nan")


def _note(examination: Examination, kind: str, annotations: float) -> str:
    about = (
        f"The paper's row: SD 2.1, SAM ViT-L, up layers, {PAPER.components} components, "
        f"reweighted, clustered at {PAPER.resolution} px. Here: {examination.model.card.name}, "
        f"{kind}, {annotations:.1f} masks of the auditor per image."
    )
    if len(examination.captured) < (PAPER.samples or 0):
        about += f" Fewer images than the paper's {PAPER.samples} are a hint, no more."
    return about
