"""Segmentation datasets from text prompts, with masks nobody drew.

with synthgen.record(pipe) as recording:          # any diffusers pipeline
    image = pipe("a red car").images[0]
masks = synthgen.segment(recording)
labels = synthgen.label(recording, masks, classes=["car"])
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthgen.dataset.loader import open_dataset
    from synthgen.diffusion.attention import record
    from synthgen.diffusion.generate import load_model
    from synthgen.diffusion.invert import record_image
    from synthgen.jobs.from_prompts import annotate, generate
    from synthgen.labeling.label import label
    from synthgen.oneshot.learn import learn_parts
    from synthgen.oneshot.parts import Parts, load_parts
    from synthgen.segmentation.segment import segment
    from synthgen.types import LabelMap, MaskSet, Prompt

__all__ = [
    "LabelMap",
    "MaskSet",
    "Parts",
    "Prompt",
    "__version__",
    "annotate",
    "generate",
    "label",
    "learn_parts",
    "load_model",
    "load_parts",
    "open_dataset",
    "record",
    "record_image",
    "segment",
]

_HOMES = {
    "LabelMap": "types",
    "MaskSet": "types",
    "Parts": "oneshot.parts",
    "Prompt": "types",
    "annotate": "jobs.from_prompts",
    "generate": "jobs.from_prompts",
    "label": "labeling.label",
    "learn_parts": "oneshot.learn",
    "load_model": "diffusion.generate",
    "load_parts": "oneshot.parts",
    "open_dataset": "dataset.loader",
    "record": "diffusion.attention",
    "record_image": "diffusion.invert",
    "segment": "segmentation.segment",
}
"""Where each name lives; imported when it is asked for: ``import synthgen`` stays light."""

try:
    __version__ = version("synthgen")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
