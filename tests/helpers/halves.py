"""An auditor that needs no weights, named ``halves:load_halves`` in a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np

from synthgen.config import AuditorConfig
from synthgen.types import Annotations


class HalvesAuditor:
    """Sees the left and the right half of every image."""

    identity = MappingProxyType({"name": "halves"})

    def annotate(self, images: Sequence[np.ndarray]) -> list[Annotations]:
        return [_halves(image.shape[:2]) for image in images]


def load_halves(_settings: AuditorConfig) -> HalvesAuditor:
    """The auditor, as a configuration names it."""
    return HalvesAuditor()


def _halves(size: tuple[int, int]) -> Annotations:
    left = np.zeros(size, dtype=bool)
    left[:, : size[1] // 2] = True
    return Annotations(
        np.stack([left, ~left]), (1.0,) * 2, (1.0,) * 2, ((0.0, 0.0),) * 2, ("",) * 2
    )
