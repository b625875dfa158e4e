"""Mask2Former as an auditor: the masks of a semantic map, each with its class.

BL (section 4, figure 7) compares with the class-specific masks of a semantic segmentation: one
mask per class, however many pieces it has, background classes (sky, sea) included; hence its
Top-3. What a model calls "background" is no class but the rest, sky and sea in one: no mask.
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
from jaxtyping import Float, UInt8

from synthgen.auditing.parameters import (
    Parameters,
    check_weights,
    hub_folder,
    read_parameters,
)
from synthgen.config import AuditorConfig
from synthgen.devices import pick_device
from synthgen.diffusion.cards import file_sha256
from synthgen.embedded.mask2former import SHIPPED_M2F, load_m2f, m2f_weights_dir, predict_scores
from synthgen.registry import near_miss
from synthgen.types import Annotations

DEFAULT_CHECKPOINT = "mask2former-swin-large-ade"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def annotate_scores(
    scores: Float[np.ndarray, "cls height width"], names: Sequence[str]
) -> Annotations:
    """A mask for each class that wins a pixel, largest first, with the class's mean score in it.

    A class called background has none.

    Args:
        scores: Of one image, as `class_scores` gives them.
        names: What the classes are called.

    >>> scores = np.array([[[0.9, 0.2, 0.6]], [[0.1, 0.7, 0.1]]])
    >>> found = annotate_scores(scores, ["sky", "sea"])
    >>> found.masks.tolist(), found.labels
    ([[[True, False, True]], [[False, True, False]]], ('sky', 'sea'))
    """
    best = scores.argmax(0)
    classes, areas = np.unique(best, return_counts=True)
    classes = classes[np.argsort(-areas, kind="stable")]
    classes = classes[[names[c] != "background" for c in classes]]
    masks = best == classes[:, None, None]
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
        settings: Expected hash, device and batch size.
        revision: Hub commit of the folder, if it came from there.
    """

    def __init__(self, name: str, folder: Path, settings: AuditorConfig, revision: str = ""):
        read_parameters(Parameters, settings.generator)  # it has none
        sha256 = check_weights(folder, settings.sha256)
        device = pick_device(settings.device, "auditor.device")
        self._model, self._processor = load_m2f(folder)
        self._model.to(device)
        known = self._model.config.id2label
        self._names = [str(known.get(i, i)) for i in range(self._model.config.num_labels)]
        self._batch_size = settings.batch_size
        self._identity = {
            "name": name,
            "version": 2,  # what a model calls background has no mask
            "sha256": sha256,
            "configuration": {
                path.name: file_sha256(path) for path in sorted(folder.glob("*config.json"))
            },
            "revision": revision,
            "batch_size": settings.batch_size,  # rounding depends on it
            "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
        }

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, hashes of weights and configuration, versions."""
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
                found[row] = annotate_scores(score.numpy(), self._names)
        return [found[row] for row in range(len(images))]


def load_scenes_mask2former(settings: AuditorConfig) -> Mask2FormerAuditor:
    """The embedded Mask2Former of drawn scenes (`scenes-m2f`).

    Args:
        settings: `checkpoint` may name another folder that `export-m2f` wrote.

    Raises:
        ValueError: If the weights are missing or not those of their card.
    """
    folder = Path(settings.checkpoint).expanduser() if settings.checkpoint else SHIPPED_M2F
    return Mask2FormerAuditor("scenes-m2f", m2f_weights_dir(folder), settings)


def load_mask2former(settings: AuditorConfig) -> Mask2FormerAuditor:
    """A Mask2Former of transformers, by default BL's: Swin-L trained on ADE20K.

    Args:
        settings: `checkpoint` is a row of `auditors.yaml`, a folder or a hub id.

    Raises:
        ValueError: If it is none of these or not in reach.
    """
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
