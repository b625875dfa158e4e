"""What every plug-in must satisfy, ours and third parties'; each check raises AssertionError."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from planted import planted_sample, random_sample

from synthgen.auditing.auditor import Auditor
from synthgen.config import AuditorConfig, ClusterConfig, MaskConfig, SegmentationConfig
from synthgen.segmentation.segment import Segmenter
from synthgen.types import Annotations, Sample, Segmentation


def check_segmenter(segmenter: Segmenter) -> None:
    """A segmenter gives partitions and a mask hierarchy at image resolution, reproducibly."""
    config = SegmentationConfig(
        clusters=ClusterConfig(max_iterations=10), masks=MaskConfig(min_area=0.0)
    )
    for sample in (planted_sample(), random_sample(((4, 6), (8, 12)), (32, 48))):
        segmentation = segmenter(sample, config)
        check_partitions(segmentation, sample)
        check_hierarchy(segmentation)
        again = segmenter(sample, config)
        assert again.labels.tobytes() == segmentation.labels.tobytes(), "labels must repeat"
        assert again.mask_set.masks.tobytes() == segmentation.mask_set.masks.tobytes()
        assert again.mask_set.members == segmentation.mask_set.members


def check_partitions(segmentation: Segmentation, sample: Sample) -> None:
    """One uint8 label map per k at image resolution, values below k."""
    assert segmentation.labels.dtype == np.uint8
    assert segmentation.labels.shape == (len(segmentation.ks), *sample.image.shape[:2])
    for k, labels in zip(segmentation.ks, segmentation.labels, strict=True):
        assert labels.max() < k, f"labels of k = {k} must be below k"


def check_hierarchy(segmentation: Segmentation) -> None:
    """Masks are not empty, stand largest first, and lie in parents that are larger."""
    masks, parent = segmentation.mask_set.masks, segmentation.mask_set.parent
    areas = masks.sum((1, 2))
    assert len(masks) == len(parent) == len(segmentation.mask_set.members) > 0
    assert (areas > 0).all()
    assert (np.diff(areas) <= 0).all(), "masks must stand largest first"
    for mask, own, above in zip(masks, areas, parent, strict=True):
        if above >= 0:
            assert areas[above] > own, "a parent must be larger"
            assert (mask & masks[above]).sum() >= 0.95 * own, "a parent must hold 95 %"
    for members in segmentation.mask_set.members:
        assert members, "a mask must name its clusters"
        assert all(k in segmentation.ks and 0 <= c < k for k, c in members)


def check_auditor(auditor: Auditor) -> list[Annotations]:
    """An auditor's annotations fit images of any shape and repeat; its identity is JSON."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in ((48, 48), (40, 72))]
    found = auditor.annotate(images)
    assert len(found) == len(images)
    for image, seen in zip(images, found, strict=True):
        check_annotations(seen, image.shape[:2])
    for first, again in zip(found, auditor.annotate(images), strict=True):
        assert first.masks.tobytes() == again.masks.tobytes(), "masks must repeat"
        assert first.predicted_iou == again.predicted_iou
        assert first.points_xy == again.points_xy
    assert auditor.annotate([]) == []
    json.dumps(auditor.identity, allow_nan=False)
    return found


def check_annotations(annotations: Annotations, size: tuple[int, ...]) -> None:
    """Boolean masks of the image's size, with as many scores, points and labels."""
    num = len(annotations)
    assert annotations.masks.dtype == np.bool_
    assert annotations.masks.shape == (num, *size)
    assert annotations.masks.any((1, 2)).all(), "an empty mask says nothing"
    for values in (annotations.predicted_iou, annotations.stability_score):
        assert len(values) == num
        assert np.isfinite(values).all()
    assert len(annotations.points_xy) == len(annotations.labels) == num


def check_auditor_identity(
    load: Callable[[AuditorConfig], Auditor], settings: AuditorConfig, name: str, value: float
) -> None:
    """The identity is that of the settings, and changes with a parameter of the generator."""
    changed = settings.model_copy(update={"generator": {**settings.generator, name: value}})
    assert load(settings).identity == load(settings).identity
    assert load(changed).identity != load(settings).identity, f"{name} must be in the identity"
