"""How well masks match a reference: IoU, Top-n (BL eq. 4), class and part IoU, ARI, boundary F.

Semantic maps are compared by `confusion`, summed over images as in VOC, and `class_ious`.

Best-of-all matching (eq. 4, class IoU) is optimistic, the more so the more masks there are;
`hungarian_iou` allows every mask only once and stands beside it in every report.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import scipy  # its parts load when they are asked for
from jaxtyping import Bool, Float, Int, Integer, Shaped

from synthgen.segmentation.packed import iou_matrix
from synthgen.types import IGNORE


def top_n(
    references: Bool[np.ndarray, "reference height width"],
    masks: Bool[np.ndarray, "mask height width"],
    n: int,
) -> tuple[float, int]:
    """BL eq. 4: mean best IoU of the n largest references, and how many there were.

    With fewer than n references the mean is over those that exist; with none it is NaN.
    References of equal area are taken in their order.
    """
    areas = references.sum((1, 2))
    largest = np.argsort(-areas, kind="stable")[:n]
    return mean_best(iou_matrix(references[largest], masks), areas[largest], n)


def mean_best(
    iou: Float[np.ndarray, "reference mask"], areas: Int[np.ndarray, " reference"], n: int
) -> tuple[float, int]:
    """BL eq. 4 from the IoU of all pairs and the references' areas; see `top_n`.

    >>> mean_best(np.array([[0.5, 0.25], [0.0, 1.0]]), np.array([10, 20]), 1)
    (1.0, 1)
    """
    largest = np.argsort(-areas, kind="stable")[:n]
    if not len(largest):
        return float("nan"), 0
    return float(iou[largest].max(1, initial=0.0).mean()), len(largest)


def class_iou(
    semantic: Shaped[np.ndarray, "height width"],
    masks: Bool[np.ndarray, "mask height width"],
    background: Collection[int] = (0,),
) -> dict[int, float]:
    """Best IoU of any mask with each object class in the image (BL section 5).

    Args:
        semantic: Class of each pixel; 255 is ignored in both the class and the masks.
        masks: Our masks.
        background: Classes left out.

    Returns:
        Class to IoU; average per class over images, then over classes.
    """
    return _best_per_value(semantic, masks, background)


def part_iou(
    parts: Shaped[np.ndarray, "height width"],
    masks: Bool[np.ndarray, "mask height width"],
) -> dict[int, float]:
    """Best IoU of any mask with each part in the image; 0 is no part."""
    return _best_per_value(parts, masks, (0,))


def hungarian_iou(
    references: Bool[np.ndarray, "reference height width"],
    masks: Bool[np.ndarray, "mask height width"],
) -> float:
    """Mean IoU over the references of the best one-to-one matching; unmatched ones count 0."""
    return mean_assigned(iou_matrix(references, masks))


def covering(
    pieces: Int[np.ndarray, "height width"], labels: Shaped[np.ndarray, "height width"]
) -> float:
    """How well a partition covers another: sum over pieces R of |R| max_C IoU(R, C), over all
    pixels (Arbelaez et al., PAMI 2011, eq. 8).

    >>> covering(np.array([[1, 1, 2, 2]]), np.array([[0, 0, 0, 1]])).__round__(3)
    0.583
    """
    _, rows = np.unique(pieces, return_inverse=True)
    _, columns = np.unique(labels, return_inverse=True)
    shape = int(rows.max()) + 1, int(columns.max()) + 1
    shared = np.zeros(shape, dtype=np.int64)
    np.add.at(shared, (rows.ravel(), columns.ravel()), 1)
    areas = shared.sum(1)
    union = areas[:, None] + shared.sum(0) - shared
    return float((areas * (shared / union).max(1)).sum() / areas.sum())


def mean_assigned(iou: Float[np.ndarray, "reference mask"]) -> float:
    """`hungarian_iou` from the IoU of all pairs.

    >>> mean_assigned(np.array([[1.0, 0.75], [1.0, 0.5]]))
    0.875
    """
    if not len(iou):
        return float("nan")
    rows, columns = scipy.optimize.linear_sum_assignment(iou, maximize=True)
    return float(iou[rows, columns].sum() / len(iou))


def adjusted_rand(
    reference: Shaped[np.ndarray, "height width"], labels: Shaped[np.ndarray, "height width"]
) -> float:
    """Adjusted Rand index of two label maps: 1 for equal partitions, about 0 by chance.

    >>> adjusted_rand(np.array([[0, 0, 1]]), np.array([[5, 5, 2]]))
    1.0
    """
    from sklearn.metrics import adjusted_rand_score  # loading it takes a second

    seen = reference != IGNORE
    return float(adjusted_rand_score(reference[seen], labels[seen]))


def boundary_f(
    reference: Bool[np.ndarray, "height width"],
    mask: Bool[np.ndarray, "height width"],
    tolerance: float = 2.0,
) -> float:
    """F-measure of the boundaries: shares of each within ``tolerance`` pixels of the other.

    A boundary pixel belongs to the mask and has a 4-neighbor in the image that does not.

    Args:
        reference: Mask to find.
        mask: Mask found.
        tolerance: Euclidean distance in pixels up to which a boundary counts as found.
    """
    truth, found = _boundary(reference), _boundary(mask)
    if not truth.any() or not found.any():
        return float(truth.any() == found.any())
    precision = (scipy.ndimage.distance_transform_edt(~truth)[found] <= tolerance).mean()
    recall = (scipy.ndimage.distance_transform_edt(~found)[truth] <= tolerance).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def confusion(
    truth: Integer[np.ndarray, "*shape"],
    predicted: Integer[np.ndarray, "*shape"],
    num_classes: int,
) -> Int[np.ndarray, "cls cls"]:
    """Pixels per true class (row) and predicted class (column).

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    pairs = truth.astype(np.int64).ravel() * num_classes + predicted.ravel()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_ious(counts: Int[np.ndarray, "cls cls"]) -> Float[np.ndarray, " cls"]:
    """Intersection over union of each class; NaN where it is neither shown nor predicted.

    >>> class_ious(np.array([[1, 1, 0], [0, 2, 0], [0, 0, 0]])).round(2).tolist()
    [0.5, 0.67, nan]
    """
    hits = counts.diagonal().astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - hits
    return np.where(union > 0, hits / np.maximum(union, 1), np.nan)


def _best_per_value(
    label_map: Shaped[np.ndarray, "height width"],
    masks: Bool[np.ndarray, "mask height width"],
    left_out: Collection[int],
) -> dict[int, float]:
    present = sorted(set(np.unique(label_map).tolist()) - {IGNORE, *left_out})
    if not present:
        return {}
    regions = np.stack([label_map == value for value in present])
    best = iou_matrix(regions, masks & (label_map != IGNORE)).max(1, initial=0.0)
    return dict(zip(present, best.tolist(), strict=True))


def _boundary(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    inner: Bool[np.ndarray, "height width"] = scipy.ndimage.binary_erosion(mask, border_value=1)
    edge: Bool[np.ndarray, "height width"] = mask & ~inner
    return edge
