"""What an audit says of one sample: metrics of its masks against an auditor's, and a verdict.

`score` measures, `judge` compares with the thresholds of `synthgen.config.VerdictConfig`. Top-n
is BL eq. 4 with the auditor's masks as references. It is optimistic, so three figures stand
beside it: the one-to-one (Hungarian) IoU, the same Top-n of the color baseline, and the same
Top-n of other samples' masks laid on this image. Empty annotations are left out; a mask or an
annotation of the whole image counts like any other. Labels are compared in `label_agreement`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int, UInt64

from synthgen.auditing.label_agreement import label_metric
from synthgen.config import TOPS, VerdictConfig
from synthgen.segmentation.metrics import boundary_f, mean_assigned, mean_best
from synthgen.segmentation.packed import PackedMasks, packed_areas, packed_iou
from synthgen.types import Verdict

PER_K = 5
"""The n of the Top-n of the masks of each k alone, and the references of the boundary F."""

REASONS: Mapping[str, str] = {
    "size_mismatch": "its masks do not have the size of its image",
    "no_masks": "it has no masks",
    "no_annotations": "the auditor found nothing in its image",
    "too_many_masks": "it has more masks than allowed",
    "low_coverage": "too little of its image is in any mask",
    "low_agreement": "its Top-n is below the threshold",
    "not_its_image": "other samples' masks fit its image as well as its own",
    "weak_boundaries": "its masks do not end where the auditor's do",
    "below_color_baseline": "k-means on RGB+XY fits better than its masks",
    "label_disagrees": "the auditor calls something else what one of its labels says",
}
"""The closed vocabulary of reasons, in the order in which they are looked at."""


def metric_names(ks: Iterable[int], class_names: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of all metrics, in the order of the columns; classes are those that are compared.

    >>> [name for name in metric_names((2,)) if "5" in name]
    ... # doctest: +NORMALIZE_WHITESPACE
    ['top_5', 'top_5_count', 'top_15', 'top_15_count', 'top_5_k2', 'color_baseline_top_5',
     'color_baseline_top_15', 'shuffled_masks_top_5', 'shuffled_masks_top_15']
    """
    return (
        *("num_masks", "num_annotations", "coverage"),
        *(name for n in TOPS for name in (f"top_{n}", f"top_{n}_count")),
        *("hungarian", "boundary_f"),
        *(f"top_{PER_K}_k{k}" for k in ks),
        *("color_baseline_num_masks", "color_baseline_hungarian"),
        *(f"color_baseline_top_{n}" for n in TOPS),
        *(f"shuffled_masks_top_{n}" for n in TOPS),
        *("label_mean_iou", "label_least_iou"),
        *map(label_metric, class_names),
    )


def score(
    masks: PackedMasks,
    members: Sequence[Sequence[tuple[int, int]]],
    seen: PackedMasks,
    ks: Sequence[int],
    color_baseline: PackedMasks | None = None,
    shuffled_masks: Sequence[UInt64[np.ndarray, "_other word"]] = (),
) -> dict[str, float]:
    """The metrics of one sample; NaN where one has no meaning or was not asked for.

    Args:
        masks: The sample's masks.
        members: Per mask the (k, cluster) that were merged into it.
        seen: The auditor's masks of the same image.
        ks: Cluster counts; the masks of each alone are scored too (``top_5_k10``).
        color_baseline: Masks of k-means on color and position.
        shuffled_masks: Packed masks of other samples of the same size; their Top-n is averaged.
    """
    metrics = dict.fromkeys(metric_names(ks), math.nan)
    areas = packed_areas(seen.bits)
    seen = replace(seen, bits=seen.bits[areas > 0])
    packed, areas = seen.bits, areas[areas > 0]
    iou = packed_iou(packed, masks.bits)
    metrics |= {
        "num_masks": float(len(masks)),
        "num_annotations": float(len(seen)),
        "coverage": float(masks.union(range(len(masks))).mean()),
        "hungarian": mean_assigned(iou),
        "boundary_f": mean_boundary_f(seen, masks, iou, areas),
    }
    for n in TOPS:
        metrics[f"top_{n}"], count = mean_best(iou, areas, n)
        metrics[f"top_{n}_count"] = float(count)
    metrics |= _per_k(iou, areas, members, ks)
    if color_baseline is not None:
        against = packed_iou(packed, color_baseline.bits)
        metrics |= {
            f"color_baseline_{name}": value for name, value in _tops(against, areas).items()
        }
        metrics["color_baseline_hungarian"] = mean_assigned(against)
        metrics["color_baseline_num_masks"] = float(len(color_baseline))
    if shuffled_masks:
        largest = np.argsort(-areas, kind="stable")[: max(TOPS)]
        rows = [
            _tops(packed_iou(packed[largest], other), areas[largest]) for other in shuffled_masks
        ]
        metrics |= {
            f"shuffled_masks_{name}": float(np.mean([r[name] for r in rows])) for name in rows[0]
        }
    return metrics


def mean_boundary_f(
    references: PackedMasks,
    masks: PackedMasks,
    iou: Float[np.ndarray, "reference mask"],
    areas: Int[np.ndarray, " reference"],
) -> float:
    """Mean boundary F of the five largest references with the mask of the best IoU of each.

    A boundary counts as found within 0.75 % of the image's diagonal, as in BSDS500 (Arbeláez et
    al., 2011), but at least one pixel. NaN without references, 0 without masks.
    """
    if not len(references):
        return math.nan
    if not len(masks):
        return 0.0
    tolerance = max(1.0, 0.0075 * math.hypot(masks.height, masks.width))
    largest = np.argsort(-areas, kind="stable")[:PER_K]
    best = iou[largest].argmax(1)
    values = [
        boundary_f(references[i], masks[j], tolerance)
        for i, j in zip(largest.tolist(), best.tolist(), strict=True)
    ]
    return float(np.mean(values))


def judge(metrics: Mapping[str, float], config: VerdictConfig) -> Verdict:
    """The verdict on a sample: kept, or the first of `REASONS` that applies.

    A threshold on a metric that was not measured (NaN) rejects nothing.

    >>> judge({"num_masks": 0.0}, VerdictConfig()).reason
    'no_masks'
    """
    value = {**dict.fromkeys(metric_names(()), math.nan), **metrics}
    top = value[f"top_{config.top}"]
    failed = {
        "no_masks": value["num_masks"] == 0,
        "no_annotations": value["num_annotations"] == 0,
        "too_many_masks": value["num_masks"] > config.max_masks,
        "low_coverage": value["coverage"] < config.min_coverage,
        "low_agreement": top < config.min_top_n,
        "not_its_image": top - value[f"shuffled_masks_top_{config.top}"]
        < config.min_over_shuffled_masks,
        "weak_boundaries": value["boundary_f"] < config.min_boundary_f,
        "below_color_baseline": top - value[f"color_baseline_top_{config.top}"]
        < config.min_over_color_baseline,
        "label_disagrees": value["label_least_iou"] < config.min_label_iou,
    }
    reason = next((name for name in REASONS if failed.get(name)), "")
    return Verdict(not reason, reason, dict(metrics))


def mismatch(ks: Iterable[int], class_names: Iterable[str] = ()) -> Verdict:
    """The verdict on a sample whose masks do not have the size of its image."""
    return Verdict(False, "size_mismatch", dict.fromkeys(metric_names(ks, class_names), math.nan))


def _tops(
    iou: Float[np.ndarray, "reference mask"], areas: Int[np.ndarray, " reference"]
) -> dict[str, float]:
    return {f"top_{n}": mean_best(iou, areas, n)[0] for n in TOPS}


def _per_k(
    iou: Float[np.ndarray, "reference mask"],
    areas: Int[np.ndarray, " reference"],
    members: Sequence[Sequence[tuple[int, int]]],
    ks: Sequence[int],
) -> dict[str, float]:
    """Top-5 of the masks that a cluster of each k was merged into; 0 where there are none."""
    counts = [{k for k, _ in pairs} for pairs in members]
    columns = {k: [i for i, found in enumerate(counts) if k in found] for k in ks}
    return {
        f"top_{PER_K}_k{k}": mean_best(iou[:, own], areas, PER_K)[0] for k, own in columns.items()
    }
