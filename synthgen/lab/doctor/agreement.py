"""Top-n (BL eq. 4) of this machine's masks by an auditor, with the paper's row beside it.

Our defaults are no row of the paper, so the same captures are also segmented as the paper's row
was. Best-of-43 matching is optimistic, so one-to-one IoU, the number of masks and k-means on
RGB+XY stand in the table too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from synthgen.auditing.color_baseline import color_baseline_masks
from synthgen.auditing.judge import score
from synthgen.auditing.loading import annotate, load_auditor
from synthgen.config import TOPS, AuditorConfig, Config
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.selection import attention_layers
from synthgen.lab.doctor.install import Finding
from synthgen.lab.study.paper import paper_row
from synthgen.lab.study.settings import Setting, adapt, model_layout
from synthgen.segmentation.packed import PackedMasks
from synthgen.types import Sample, Segmentation

PAPER = paper_row(7, 4)
"""All grids of the up layers, 8 components, reweighted, at 256: nearest to our defaults."""

BASELINE_RESOLUTION = 128  # `synthgen.config.AuditConfig.color_baseline_resolution`
BASELINE = "color_baseline_"
"""Prefix of the color baseline's metrics."""

Metrics = Mapping[str, float]


def compare_with_auditor(
    settings: AuditorConfig,
    model: Backbone,
    config: Config,
    captured: Sequence[Sample],
    segmentations: Sequence[Segmentation],
) -> Finding:
    """Scores of every image under both settings, averaged."""
    auditor = load_auditor(settings)
    base, setting = config.segmentation, _paper_setting(model, captured[0])
    ours: list[Metrics] = []
    papers: list[Metrics] = []
    for sample, found in zip(captured, segmentations, strict=True):
        (seen,) = annotate(auditor, [sample.prompt.id], [sample.image])
        size, members = sample.image.shape[:2], found.mask_set.members
        theirs = PackedMasks.of(seen.masks, *size)
        color = color_baseline_masks(sample.image, base, BASELINE_RESOLUTION)
        masks, baseline = (PackedMasks.of(x.masks, *size) for x in (found.mask_set, color))
        ours.append(score(masks, members, theirs, found.ks, baseline))
        if setting is not None:
            other = setting.segment(sample, base).mask_set
            masks = PackedMasks.of(other.masks, *size)
            papers.append(score(masks, other.members, theirs, found.ks))
    kind = f"{auditor.identity.get('name', '')} {auditor.identity.get('model_type', '')}".strip()
    annotations = float(np.mean([metrics["num_annotations"] for metrics in ours]))
    if not annotations:
        return Finding(f"{kind} must find something in an image. Got no mask", "failed")
    rows = [
        ("", *(f"Top-{n}" for n in TOPS), "one-to-one", "masks", "images"),
        (
            f"paper: table {PAPER.table}, row {PAPER.id}",
            *(f"{PAPER.sam[n]:.2f}" for n in TOPS),
            *("–", "–", str(PAPER.samples)),
        ),
        *([_cells(f"here, that row: {setting.name}", papers)] if papers and setting else []),
        _cells("here, our settings", ours),
        _cells("color baseline: k-means on RGB+XY", ours, BASELINE),
    ]
    text = (
        f"Top-5 {_mean(papers or ours, 'top_5'):.2f}"
        f"{' as the paper segments' if papers else ''} (paper {PAPER.sam[5]:.2f}, color baseline "
        f"{_mean(ours, f'{BASELINE}top_5'):.2f}) by {kind}, {len(ours)} images"
    )
    note = (
        f"The paper's row: SD 2.1, SAM ViT-L, up layers, {PAPER.components} components, "
        f"reweighted, clustered at {PAPER.resolution} px. Here: {model.card.name}, "
        f"{kind}, {annotations:.1f} masks of the auditor per image."
    )
    if len(ours) < (PAPER.samples or 0):
        note += f" Fewer images than the paper's {PAPER.samples} are a hint, no more."
    return Finding(text, table=tuple(rows), note=note)


def _paper_setting(model: Backbone, first: Sample) -> Setting | None:
    """The paper's row on this model; None if the layers it clusters were not captured."""
    assert first.features is not None
    size = (first.image.shape[0], first.image.shape[1])
    layers = attention_layers(model.pipeline.unet, model.latent_size(*size))
    wanted = {x.name for x in layers if x.name.startswith("up_blocks")}
    captured = wanted <= set(first.features.values)
    return adapt(PAPER, model_layout(layers, size)) if captured else None


def _cells(name: str, rows: Sequence[Metrics], prefix: str = "") -> tuple[str, ...]:
    names = [*(f"{prefix}top_{n}" for n in TOPS), f"{prefix}hungarian"]
    figures = [f"{_mean(rows, metric):.3f}" for metric in names]
    return (name, *figures, f"{_mean(rows, f'{prefix}num_masks'):.1f}", str(len(rows)))


def _mean(rows: Sequence[Metrics], name: str) -> float:
    values = [row[name] for row in rows if not np.isnan(row[name])]
    return float(np.mean(values)) if values else float("nan")
