"""Auditors by name, loaded once per process; threads take turns at one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.auditing.auditor import Auditor
from synthgen.config import AuditorConfig
from synthgen.registry import AUDITORS, resolve
from synthgen.types import Annotations

_loading = threading.Lock()


def load_auditor(settings: AuditorConfig) -> Auditor:
    """The auditor that the settings name: a row of AUDITORS or ``module:attribute``.

    Raises:
        ValueError: For an unknown name (near misses are named), or what the auditor refuses.
    """
    with _loading:
        return _load(settings.model_dump_json())


def annotate(
    auditor: Auditor,
    keys: Sequence[str],
    images: Sequence[UInt8[np.ndarray, "_height _width 3"]],
) -> list[Annotations]:
    """What an auditor sees in each image, checked: one answer per image, of the image's size.

    Raises:
        ValueError: If it answers otherwise; the sample is named.
    """
    found = auditor.annotate(images)
    if not isinstance(found, Sequence) or len(found) != len(images):
        got = len(found) if isinstance(found, Sequence) else type(found).__name__
        raise ValueError(
            f"An auditor must return one Annotations per image. Got {got} for {len(images)} "
            f"images from {keys[0]} on."
        )
    return [
        _sized(seen, key, (image.shape[0], image.shape[1]))
        for seen, key, image in zip(found, keys, images, strict=True)
    ]


class _Turns:
    """An auditor that one thread uses at a time: models keep the image they look at."""

    def __init__(self, auditor: Auditor) -> None:
        self._auditor = auditor
        self._turn = threading.Lock()

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._auditor.identity

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes that it knows; none of an auditor that names nothing."""
        return tuple(getattr(self._auditor, "class_names", ()))

    def annotate(
        self, images: Sequence[UInt8[np.ndarray, "_height _width 3"]]
    ) -> list[Annotations]:
        with self._turn:
            return self._auditor.annotate(images)


@lru_cache(maxsize=2)
def _load(settings: str) -> Auditor:
    parsed = AuditorConfig.model_validate_json(settings)
    return _Turns(resolve(parsed.name, AUDITORS, "auditor")(parsed))


def _sized(seen: Annotations, key: str, size: tuple[int, int]) -> Annotations:
    height, width = size
    if not isinstance(seen, Annotations):
        raise ValueError(
            f"An auditor must return Annotations. Got {type(seen).__name__} for {key}."
        )
    if not len(seen):
        return Annotations(np.zeros((0, height, width), dtype=bool), (), (), (), ())
    if seen.masks.shape[1:] != size:
        got = " x ".join(str(side) for side in seen.masks.shape[1:])
        raise ValueError(
            f"An auditor's masks must have the size of the image, {height} x {width}. "
            f"Got {got} for sample {key}."
        )
    return seen
