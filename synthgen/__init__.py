"""Segmentation datasets from text prompts, with masks nobody drew."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthgen.dataset.loader import open_dataset

__all__ = ["__version__", "open_dataset"]

try:
    __version__ = version("synthgen")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    """``open_dataset``, imported when it is asked for: ``import synthgen`` stays light."""
    if name == "open_dataset":
        from synthgen.dataset.loader import open_dataset

        return open_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
