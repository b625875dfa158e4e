"""What auditors that run a model have in common: checked parameters, and the right weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from huggingface_hub import constants, snapshot_download
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from synthgen.config import digest
from synthgen.diffusion.cards import file_sha256
from synthgen.registry import near_miss

Share = Annotated[float, Field(ge=0.0, le=1.0)]
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Parameters(BaseModel):
    """Parameters of an auditor, by the names of ``auditor.generator``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PromptGrid(Parameters):
    """What every SAM takes: the grid of points, the filters, the crops.

    Defaults are those of `SamAutomaticMaskGenerator` in segment-anything 1.0.
    """

    points_per_side: int = Field(32, ge=1, le=256)
    points_per_batch: int = Field(64, ge=1, le=65536)
    pred_iou_thresh: Share = 0.88
    stability_score_thresh: Share = 0.95
    stability_score_offset: float = Field(1.0, ge=0.0)
    crop_n_layers: int = Field(0, ge=0, le=4)
    crop_nms_thresh: Share = 0.7
    crop_overlap_ratio: float = Field(512 / 1500, ge=0.0, lt=1.0)
    crop_n_points_downscale_factor: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _a_point_in_each_crop(self) -> PromptGrid:
        smallest = self.points_per_side // self.crop_n_points_downscale_factor**self.crop_n_layers
        if smallest < 1:
            raise ValueError(
                "points_per_side must leave a point in the smallest crops: at least "
                "crop_n_points_downscale_factor ** crop_n_layers"
            )
        return self


Chosen = TypeVar("Chosen", bound=Parameters)


def read_parameters(
    kind: type[Chosen], given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Chosen:
    """The parameters of an auditor: those that are given over its defaults.

    Raises:
        ValueError: In one line, for an unknown parameter (with near misses) or a bad value.

    >>> read_parameters(PromptGrid, {"crop_n_layers": 1}).crop_n_layers
    1
    """
    known = list(kind.model_fields)
    for name in given:
        if name not in known:
            hint = near_miss(name, known) or f" Known: {', '.join(known) or 'none'}."
            raise ValueError(
                f"auditor.generator.{name} must be a parameter of the auditor. Got an unknown "
                f"one.{hint}"
            )
    try:
        return kind.model_validate({**(defaults or {}), **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["auditor.generator", *(str(part) for part in first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(
            f"{where} is not valid: {message}. Got {first['input']!r:.200}."
        ) from None


def hub_folder(name: str, revision: str | None) -> Path:
    """Snapshot of a model in the local hub cache; fetched only if a commit is pinned.

    Raises:
        ValueError: In one line, if it is not in reach.
    """
    if revision is not None and not _COMMIT.fullmatch(revision):
        raise ValueError(
            f"auditor.revision must be a commit hash of 40 hex digits. Got {revision!r}."
        )
    local = revision is None or constants.HF_HUB_OFFLINE
    patterns = ["*.json", "*.safetensors"]
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, local_files_only=local
            )
        )
    except (OSError, ValueError) as error:
        reason = "not in the cache" if local else str(error).strip().splitlines()[0]
        raise ValueError(
            f"auditor {name} must be in the local hub cache, or reachable with a pinned "
            f"auditor.revision. Got: {reason:.150}. Or set auditor.checkpoint to a local folder."
        ) from None


def check_weights(folder: Path, expected: str | None) -> str:
    """The sha256 of a folder's weights; of several files, that of their hashes by name.

    Raises:
        ValueError: If there are none, or the hash is not the expected one.
    """
    stems = sorted(folder.glob("*.safetensors"))
    files = [path for path in stems if "." not in path.stem]  # model.fp16 is a variant, not read
    if not files:
        raise ValueError(
            f"auditor.checkpoint must be a folder with safetensors. Got none in {folder}."
        )
    hashes = {path.name: file_sha256(path) for path in files}
    found = next(iter(hashes.values())) if len(hashes) == 1 else digest(hashes)
    if expected is not None and found != expected.lower():
        raise ValueError(
            f"the auditor's weights must have sha256 {expected}. Got {found} in {folder}; fetch "
            "them again or correct auditor.sha256."
        )
    return found
