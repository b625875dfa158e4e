"""From a semantic map with coarse edges to one whose edges follow the image: one table, one call.

A refiner is any callable ``(semantic, image, scores, uncertainty) -> semantic``; `refine` finds
it by name in ``registry.REFINERS`` or as ``module:attribute``. It may move a class, or undecide a
pixel (255); it never invents a class that the map it was given does not hold, and equal inputs
give equal bytes. Refiners know no class names: labels come from elsewhere in this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from synthgen.registry import REFINERS, resolve
from synthgen.types import IGNORE

Semantic = UInt8[np.ndarray, "height width"]
Picture = UInt8[np.ndarray, "height width 3"]
ErrorMap = Float[np.ndarray, "height width"] | None
Scores = Mapping[int, Float[np.ndarray, "_height _width"]]
"""Class id to the score of that class at each pixel; larger is likelier, never negative."""

_IMAGE_ALONE = ("none", "pamr", "color-majority")
"""Rows of REFINERS that have no use for the upsampling error."""


@runtime_checkable
class Refiner(Protocol):
    """What a row of REFINERS must be."""

    def __call__(
        self,
        semantic: Semantic,
        image: Picture,
        scores: Scores | None = None,
        uncertainty: ErrorMap = None,
    ) -> Semantic:
        """Refine one semantic map at the resolution of its image."""
        ...


def refine(
    method: str,
    semantic: Semantic,
    image: Picture,
    scores: Scores | None = None,
    uncertainty: ErrorMap = None,
) -> Semantic:
    """Refine a semantic map by the method of a given name.

    Args:
        method: Row of REFINERS or ``module:attribute``.
        semantic: Class id of each pixel; 255 is undecided.
        image: The image that it describes.
        scores: Score of each class at each pixel, where the labeler has it; ids that the map does
            not hold are left out.
        uncertainty: Upsampling error (BL eq. 6) at each pixel, of any scale.

    Raises:
        ValueError: For an unknown method, or without the uncertainty that the method needs.

    >>> image = np.zeros((1, 2, 3), np.uint8)
    >>> refine("none", np.array([[0, 255]], np.uint8), image).tolist()
    [[0, 255]]
    """
    refiner: Refiner = resolve(method, REFINERS, "refiner")
    held = set(np.unique(semantic).tolist())
    kept = None if scores is None else {i: plane for i, plane in scores.items() if i in held}
    refined = refiner(semantic, image, kept or None, uncertainty)
    invented = set(np.unique(refined).tolist()) - held - {IGNORE}
    if invented:
        raise ValueError(
            f"refiner {method!r} must return only classes of the map it was given, or 255. Got "
            f"{sorted(invented)[:5]} beside {sorted(held)[:5]}."
        )
    return refined


def reads_uncertainty(method: str) -> bool:
    """Whether a refiner reads the upsampling error, which takes a PCA; a plug-in may.

    >>> reads_uncertainty("pamr"), reads_uncertainty("upsampling-color")
    (False, True)
    """
    return method not in _IMAGE_ALONE


def keep(
    semantic: Semantic, image: Picture, scores: Scores | None = None, uncertainty: ErrorMap = None
) -> Semantic:
    """The map as it is: what every other refiner is measured against."""
    return semantic.copy()
