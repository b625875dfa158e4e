"""How well a network labels images: confusion summed over them, IoU per class, their mean.

As in VOC, the mean is over all classes, background included, and over those that occur in the
truth or in the prediction; the mean over the object classes alone stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import nn

from synthgen.lab.downstream.augment import to_unit
from synthgen.lab.downstream.labeled_images import LabeledImages
from synthgen.segmentation.metrics import class_ious, confusion
from synthgen.types import IGNORE

BATCH = 20


@dataclass(frozen=True, slots=True)
class Scores:
    """What a confusion matrix comes to.

    Args:
        miou: Mean IoU over all classes.
        object_miou: The same without the background.
        pixel_accuracy: Share of the pixels that have the right class.
        class_iou: IoU by name; classes that neither occur nor are predicted are left out.
    """

    miou: float
    object_miou: float
    pixel_accuracy: float
    class_iou: dict[str, float]


def score_model(model: nn.Module, data: LabeledImages, device: str = "cpu") -> Scores:
    """Scores of a network that maps images in [-1, 1] to logits."""
    num_classes = len(data.class_names)
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    for rows in same_size_batches(data):
        images = torch.stack([to_unit(data.images[row]) for row in rows])
        with torch.inference_mode():
            predicted = model(images.to(device)).argmax(1).cpu().numpy()
        counts += confuse(np.stack([data.semantics[row] for row in rows]), predicted, num_classes)
    return summarize(counts, data.class_names)


def confuse(
    truth: Integer[np.ndarray, "*shape"],
    predicted: Integer[np.ndarray, "*shape"],
    num_classes: int,
) -> Int[np.ndarray, "cls cls"]:
    """Pixels per true and predicted class; those whose truth is 255 do not count."""
    seen = truth != IGNORE
    return confusion(truth[seen], predicted[seen], num_classes)


def summarize(counts: Int[np.ndarray, "cls cls"], class_names: tuple[str, ...]) -> Scores:
    """The scores of a confusion matrix; NaN where nothing was counted.

    >>> summarize(np.array([[8, 0, 0], [1, 1, 0], [0, 0, 0]]), ("background", "cat", "dog")).miou
    0.6944444444444444
    """
    ious = class_ious(counts)
    occurs = ~np.isnan(ious)
    named = {
        name: float(iou)
        for name, iou, there in zip(class_names, ious, occurs, strict=True)
        if there
    }
    objects = [iou for name, iou in named.items() if name != class_names[0]]
    return Scores(
        miou=float(np.mean(list(named.values()))) if named else float("nan"),
        object_miou=float(np.mean(objects)) if objects else float("nan"),
        pixel_accuracy=float(counts.diagonal().sum() / max(counts.sum(), 1)),
        class_iou=named,
    )


def same_size_batches(data: LabeledImages) -> Iterator[list[int]]:
    """Rows in order, in runs of at most `BATCH` images of one size."""
    for _, group in groupby(range(len(data)), key=lambda row: data.images[row].shape):
        rows = list(group)
        yield from (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
