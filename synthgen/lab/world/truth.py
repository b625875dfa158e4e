"""What is true of a scene, as masks, and how well a segmentation finds it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Bool

from synthgen.embedded.vocabulary import CLASS_PARTS, PARTS
from synthgen.lab.world.render import Scene
from synthgen.segmentation.metrics import (
    adjusted_rand,
    boundary_f,
    class_iou,
    hungarian_iou,
    part_iou,
)
from synthgen.segmentation.packed import iou_matrix
from synthgen.types import Segmentation

MIN_PIXELS = 20
"""Smaller objects and parts are left out: 20 are a disc of five across."""


def true_objects(scene: Scene) -> Bool[np.ndarray, "object height width"]:
    """Masks of the objects of at least `MIN_PIXELS`."""
    return _large([scene.instance == item.instance for item in scene.objects], scene)


def true_parts(scene: Scene) -> Bool[np.ndarray, "part height width"]:
    """Masks of the parts of at least `MIN_PIXELS`, of objects that have several."""
    masks = [
        (scene.instance == item.instance) & (scene.part == 1 + PARTS.index((item.class_name, p)))
        for item in scene.objects
        if len(CLASS_PARTS[item.class_name]) > 1
        for p in item.parts
    ]
    return _large(masks, scene)


def _large(
    masks: Sequence[Bool[np.ndarray, "height width"]], scene: Scene
) -> Bool[np.ndarray, "mask height width"]:
    kept = [mask for mask in masks if mask.sum() >= MIN_PIXELS]
    return np.stack(kept) if kept else np.zeros((0, *scene.instance.shape), dtype=bool)


def scene_scores(scene: Scene, segmentation: Segmentation) -> dict[str, Any]:
    """Best IoU of each class and part by id, so that classes can be averaged first (BL section 5);
    one-to-one IoU of the objects, ARI of the best k against the semantic map; F of the classes'
    boundaries within a pixel, each by the mask of the best IoU; how many masks there are.
    """
    masks = segmentation.mask_set.masks
    classes = [scene.semantic == cls for cls in np.unique(scene.semantic) if cls > 0]
    best = iou_matrix(np.stack(classes), masks).argmax(1)
    objects = np.stack([scene.instance == i for i in np.unique(scene.instance) if i > 0])
    return {
        "class_iou": class_iou(scene.semantic, masks),
        "part_iou": part_iou(scene.part, masks),
        "hungarian_iou": hungarian_iou(objects, masks),
        "ari": max(adjusted_rand(scene.semantic, labels) for labels in segmentation.labels),
        "boundary_f": fmean(
            boundary_f(truth, masks[mask], 1.0) for truth, mask in zip(classes, best, strict=True)
        ),
        "masks": float(len(masks)),
    }
