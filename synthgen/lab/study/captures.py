"""Captured images on a scratch disk, one safetensors file each, and their scores; made once.

    identity.json                   what determines all captures of the folder
    KEY.safetensors                 the image and the head outputs of its layers
    KEY.json                        why there is no image, in place of the former
    annotations-<digest>/KEY.json   what the auditor saw, as SA-1B records
    scores-<digest>/KEY.json        row name to metrics; written again after every row

A file counts as a capture if it holds every layer that is asked for; one that is damaged or holds
fewer is made again, with its whole batch, so that its bytes do not depend on where a study was
cut off. Head outputs reach no dataset: the folder may be deleted. A row's name says its whole
setting, so studies that share rows share their scores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from synthgen.config import CaptureConfig
from synthgen.diffusion.selection import Layer
from synthgen.lab.study.images import Batch
from synthgen.lab.study.settings import Setting
from synthgen.progress import Progress, report
from synthgen.storage.publish import Storage, explain_disk_errors
from synthgen.types import Failure, HeadFeatures, PlannedSample, Sample

IMAGE = "image"  # no layer is called so
Make = Callable[[Batch], Sequence[Sample | Failure]]
Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Captures:
    """A folder of captures of one identity.

    Args:
        storage: The local folder.
        layers: Module names of the layers that every capture must hold.
    """

    storage: Storage
    layers: frozenset[str]

    def has(self, key: str) -> bool:
        """Whether an image is captured, or known to fail."""
        if self.failure(key) is not None:
            return True
        try:
            with safe_open(Path(self.storage.path(f"{key}.safetensors")), "pt") as stream:
                stored = {name.split("@")[0] for name in stream.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):  # missing or damaged
            return False
        return self.layers <= stored

    def failure(self, key: str) -> str | None:
        """Why there is no image, None where that is not known."""
        content = self.storage.read(f"{key}.json")
        return None if content is None else str(json.loads(content)["reason"])

    def keep(self, planned: PlannedSample, outcome: Sample | Failure) -> None:
        """Store what became of an image; features that are not finite are a failure."""
        key = planned.key
        reason, message = "nan_latents", "head outputs are not finite"
        if isinstance(outcome, Failure):
            reason, message = outcome.reason, outcome.message
        elif all(bool(value.isfinite().all()) for value in outcome.features.values.values()):
            needed = outcome.features.num_bytes
            with explain_disk_errors(self.storage, needed, f"the capture of {key}"):
                self.storage.publish_bytes(_encode(outcome), f"{key}.safetensors")
            return
        described = json.dumps({"reason": reason, "message": message})
        self.storage.publish_bytes(described.encode(), f"{key}.json")

    def load(self, planned: PlannedSample, device: torch.device | None = None) -> Sample:
        """A captured image with all layers that are stored; on the CPU, or where it is wanted."""
        name = f"{planned.key}.safetensors"
        content = self.storage.read(name)
        if content is None:
            raise FileNotFoundError(f"{self.storage.path(name)} must exist. Run the study again.")
        tensors = load(content)
        image = tensors.pop(IMAGE).numpy()
        with safe_open(self.storage.path(name), "pt") as stream:
            grids = json.loads(stream.metadata()["grids"])
        shapes = {layer: (int(h), int(w)) for layer, (h, w) in grids.items()}
        values = {layer: value.to(device or value.device) for layer, value in tensors.items()}
        return Sample(planned.prompt, planned.seed, image, HeadFeatures(values, shapes))

    def fill(
        self,
        batches: Sequence[Batch],
        wanted: Collection[str],
        make: Make,
        progress: Progress = report,
    ) -> None:
        """Make the images that are wanted and not captured yet, batch by batch.

        Args:
            batches: All images, in their batches.
            wanted: Keys of the images that are needed.
            make: Makes a batch.
            progress: Told about images and batches; may raise, to stop.
        """
        for number, batch in enumerate(batches):
            missing = [x.key for x in batch if x.key in wanted and not self.has(x.key)]
            if missing:
                for planned, outcome in zip(batch, make(batch), strict=True):
                    self.keep(planned, outcome)
                progress("samples", count=len(batch))
            progress("shard", name=f"batch-{number}", planned=len(batch), reused=not missing)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of rows by image.

    Args:
        storage: The local folder.
        folder: Name of the scores' folder in it.
    """

    storage: Storage
    folder: str

    def read(self, key: str) -> dict[str, Metrics]:
        """Row name to metrics of an image; nothing where the file is missing or damaged."""
        try:
            tree = json.loads(self.storage.read(f"{self.folder}/{key}.json") or b"{}")
            return {
                name: {k: math.nan if v is None else float(v) for k, v in metrics.items()}
                for name, metrics in tree.items()
            }
        except (ValueError, AttributeError, TypeError):
            return {}

    def write(self, key: str, rows: Mapping[str, Metrics]) -> None:
        """Store all rows of an image; NaN is null."""
        tree = {
            name: {k: None if math.isnan(v) else v for k, v in metrics.items()}
            for name, metrics in sorted(rows.items())
        }
        self.storage.publish_bytes(json.dumps(tree).encode(), f"{self.folder}/{key}.json")

    def missing(self, key: str, settings: Sequence[Setting]) -> list[Setting]:
        """Settings that are not scored on an image."""
        known = self.read(key)
        return [setting for setting in settings if setting.name not in known]


def local_storage(folder: Path) -> Storage:
    """A folder of this machine."""
    return Storage(fsspec.filesystem("file"), str(folder.absolute()))


def capture_bytes(layers: Sequence[Layer], capture: CaptureConfig) -> int:
    """Bytes of the captures of one image."""
    values = sum(layer.heads * layer.dim * layer.grid[0] * layer.grid[1] for layer in layers)
    calls = len(capture.calls) if isinstance(capture.calls, tuple) else 1
    return int(values * getattr(torch, capture.dtype).itemsize * calls)


def check_scratch(num_bytes: int, num_images: int, budget_gb: float) -> None:
    """Refuse a study whose captures would not fit.

    Raises:
        ValueError: If the images together need more than the budget.

    >>> check_scratch(46_000_000, 50, 1.0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: --scratch-gb must be at least 2.3 for 50 images of 46.0 MB. Got 1; raise it, ...
    """
    needed = num_bytes * num_images / 1e9
    if needed > budget_gb:
        raise ValueError(
            f"--scratch-gb must be at least {math.ceil(10 * needed) / 10} for {num_images} "
            f"images of {num_bytes / 1e6:.1f} MB. Got {budget_gb:g}; raise it, lower --num, or "
            "--set capture.dtype=float16."
        )


def _encode(sample: Sample) -> bytes:
    values = {name: value.cpu().contiguous() for name, value in sample.features.values.items()}
    image = torch.from_numpy(sample.image.copy())
    metadata = {"grids": json.dumps({k: list(v) for k, v in sample.features.grids.items()})}
    encoded: bytes = save({IMAGE: image, **values}, metadata)
    return encoded
