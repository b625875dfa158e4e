"""What an auditor is: a segmenter that never saw how our masks were made.

A row of `synthgen.registry.AUDITORS` names a function
``load(settings: AuditorConfig) -> Auditor``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from synthgen.types import Annotations


@runtime_checkable
class Auditor(Protocol):
    """A loaded segmenter.

    Attributes:
        class_names: Optional: all names that its annotations' labels may have; then a dataset's
            labels are judged, too.
        identity: All that its annotations depend on, JSON: name, sha256 of the weights, every
            parameter of its mask generator, versions of the packages it runs on.
    """

    @property
    def identity(self) -> Mapping[str, Any]:
        """See the class."""

    def annotate(
        self, images: Sequence[UInt8[np.ndarray, "_height _width 3"]]
    ) -> list[Annotations]:
        """Annotations of each image; sizes may differ. An image may get none."""
