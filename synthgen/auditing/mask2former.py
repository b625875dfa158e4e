"""Mask2Former as an auditor: the masks of a semantic map, each with its class.

BL (section 4, figure 7) compares with the class-specific masks of a semantic segmentation: one
mask per class, however many pieces it has, background classes included; hence its Top-3. That is
the default. `split_components` makes each connected piece a mask, `overlap` gives each class all
pixels that reach `threshold` instead of those it wins, `min_area` drops small masks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field, model_validator

from synthgen.auditing.parameters import (
    Parameters,
    Share,
    check_weights,
    hub_folder,
    read_parameters,
)
from synthgen.config import AuditorConfig
from synthgen.devices import pick_device
from synthgen.diffusion.cards import file_sha256
from synthgen.embedded.mask2former import SHIPPED_M2F, load_m2f, m2f_weights_dir, predict_scores
from synthgen.registry import near_miss
from synthgen.segmentation.masks import connected_masks
from synthgen.types import Annotations

DEFAULT_CHECKPOINT = "mask2former-swin-large-ade"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class SemanticOptions(Parameters):
    """How class scores become masks."""

    split_components: bool = Field(
        False, description="Each 8-connected piece of a class is a mask of its own."
    )
    overlap: bool = Field(
        False,
        description="A class has all pixels whose score reaches `threshold`: masks overlap.",
    )
    threshold: Share = Field(
        0.0, description="Least score of a pixel; 0 gives every pixel to its best class."
    )
    min_area: int = Field(0, ge=0, description="Smaller masks are dropped, pixels.")

    @model_validator(mode="after")
    def _some_pixels(self) -> SemanticOptions:
        if self.overlap and self.threshold == 0.0:
            raise ValueError("overlap needs a threshold above 0; set threshold, say 0.5")
        return self


def semantic_masks(
    scores: Float[np.ndarray, "cls height width"], options: SemanticOptions
) -> tuple[Bool[np.ndarray, "mask height width"], Int[np.ndarray, " mask"]]:
    """Masks of class scores and the class of each, largest first, no empty ones.

    >>> scores = np.array([[[0.9, 0.2, 0.6]], [[0.1, 0.7, 0.1]]])
    >>> masks, classes = semantic_masks(scores, SemanticOptions(threshold=0.5))
    >>> masks.tolist(), classes.tolist()
    ([[[True, False, True]], [[False, True, False]]], [0, 1])
    """
    reached = scores >= options.threshold
    numbers = np.arange(len(scores))
    if not options.overlap:
        reached &= scores.argmax(0) == numbers[:, None, None]
    present = reached.any((1, 2))
    masks, classes = reached[present], numbers[present]
    if options.split_components:
        masks, owners = connected_masks(masks, tuple(((int(c), 0),) for c in classes))
        classes = np.array([owner[0][0] for owner in owners], dtype=classes.dtype)
    areas = masks.sum((1, 2))
    order = np.argsort(-areas, kind="stable")
    order = order[areas[order] >= options.min_area]
    return masks[order], classes[order]


def annotate_scores(
    scores: Float[np.ndarray, "cls height width"],
    names: Sequence[str],
    options: SemanticOptions,
) -> Annotations:
    """Annotations of class scores; `predicted_iou` is the class's mean score in its mask.

    Args:
        scores: Of one image, as `class_scores` gives them.
        names: What the classes are called.
        options: How scores become masks.
    """
    masks, classes = semantic_masks(scores, options)
    means = [float(scores[c][mask].mean()) for c, mask in zip(classes, masks, strict=True)]
    return Annotations(
        masks=masks,
        predicted_iou=tuple(min(1.0, max(0.0, mean)) for mean in means),
        stability_score=(1.0,) * len(masks),
        points_xy=((-1.0, -1.0),) * len(masks),
        labels=tuple(names[c] for c in classes),
    )


class Mask2FormerAuditor:
    """A Mask2Former folder as an auditor.

    Args:
        name: What the auditor is called.
        folder: Weights, configuration and image processor in transformers' layout.
        settings: Options, expected hash, device and batch size.
        revision: Hub commit of the folder, if it came from there.
    """

    def __init__(self, name: str, folder: Path, settings: AuditorConfig, revision: str = ""):
        self._options = read_parameters(SemanticOptions, settings.generator)
        sha256 = check_weights(folder, settings.sha256)
        device = pick_device(settings.device, "auditor.device")
        self._model, self._processor = load_m2f(folder)
        self._model.to(device)
        known = self._model.config.id2label
        self._names = [str(known.get(i, i)) for i in range(self._model.config.num_labels)]
        self._batch_size = settings.batch_size
        self._identity = {
            "name": name,
            "sha256": sha256,
            "configuration": {
                path.name: file_sha256(path) for path in sorted(folder.glob("*config.json"))
            },
            "revision": revision,
            "generator": self._options.model_dump(),
            "batch_size": settings.batch_size,  # rounding depends on it
            "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
        }

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, hashes of weights and configuration, options, versions."""
        return self._identity

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes that it knows."""
        return tuple(self._names)

    def annotate(
        self, images: Sequence[UInt8[np.ndarray, "_height _width 3"]]
    ) -> list[Annotations]:
        """Annotations of each image; images of one size share a call of the model."""
        found: dict[int, Annotations] = {}
        for rows in _batches([image.shape[:2] for image in images], self._batch_size):
            scores = predict_scores(self._model, self._processor, [images[row] for row in rows])
            for row, score in zip(rows, scores, strict=True):
                found[row] = annotate_scores(score.numpy(), self._names, self._options)
        return [found[row] for row in range(len(images))]


def load_scenes_mask2former(settings: AuditorConfig) -> Mask2FormerAuditor:
    """The embedded Mask2Former of drawn scenes (`scenes-m2f`).

    Args:
        settings: `checkpoint` may name another folder that `export-m2f` wrote.

    Raises:
        ValueError: If the weights are missing or not those of their card, or an option is wrong.
    """
    folder = Path(settings.checkpoint).expanduser() if settings.checkpoint else SHIPPED_M2F
    return Mask2FormerAuditor("scenes-m2f", m2f_weights_dir(folder), settings)


def load_mask2former(settings: AuditorConfig) -> Mask2FormerAuditor:
    """A Mask2Former of transformers, by default BL's: Swin-L trained on ADE20K.

    Args:
        settings: `checkpoint` is a row of `auditors.yaml`, a folder or a hub id.

    Raises:
        ValueError: If it is none of these or not in reach, or an option is wrong.
    """
    read_parameters(SemanticOptions, settings.generator)  # before anything is fetched
    name = settings.checkpoint or DEFAULT_CHECKPOINT
    if Path(name).is_dir() or name.startswith(("/", "./", "../", "~")):
        return Mask2FormerAuditor("mask2former", Path(name).expanduser(), settings)
    hub_id = _hub_id(name)
    folder = hub_folder(hub_id, settings.revision)
    return Mask2FormerAuditor(hub_id, folder, settings, folder.name)


@cache
def _hub_rows() -> Mapping[str, Mapping[str, str]]:
    text = resources.files(__package__).joinpath("auditors.yaml").read_text(encoding="utf-8")
    rows: Mapping[str, Mapping[str, str]] = yaml.safe_load(text)
    return rows


def _hub_id(name: str) -> str:
    rows = _hub_rows()
    if name in rows:
        return rows[name]["hub_id"]
    if not _HUB_ID.fullmatch(name):
        raise ValueError(
            f"auditor.checkpoint must be one of {', '.join(rows)}, a folder or a hub id "
            f"'owner/name'. Got {name!r}.{near_miss(name, rows)}"
        )
    return name


def _batches(sizes: Sequence[tuple[int, ...]], batch_size: int) -> list[list[int]]:
    """Positions of equal size, at most `batch_size` together, in order.

    >>> _batches([(8, 8), (4, 8), (8, 8), (8, 8)], 2)
    [[0, 2], [3], [1]]
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, size in enumerate(sizes):
        groups.setdefault(size, []).append(row)
    return [
        rows[first : first + batch_size]
        for rows in groups.values()
        for first in range(0, len(rows), batch_size)
    ]
