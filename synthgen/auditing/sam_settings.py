"""Parameters of SAM's automatic mask generator, under segment-anything's names, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from synthgen.registry import near_miss

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class PromptGrid(BaseModel):
    """What every generator takes: the grid of points, the filters, the crops.

    Defaults are those of `SamAutomaticMaskGenerator` in segment-anything 1.0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class GeneratorSettings(PromptGrid):
    """All parameters of `SamAutomaticMaskGenerator` but the form of its output and its grids.

    Args:
        box_nms_thresh: IoU of two masks' boxes above which the one of lower predicted IoU goes.
        min_mask_region_area: Pixels below which holes are filled and islands dropped; above 0 it
            needs OpenCV.
    """

    box_nms_thresh: Share = 0.7
    min_mask_region_area: int = Field(0, ge=0)


Settings = TypeVar("Settings", bound=PromptGrid)


def read_generator(
    kind: type[Settings], given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Settings:
    """Settings of a generator: the given parameters over the auditor's defaults.

    Raises:
        ValueError: In one line, for an unknown parameter (with near misses) or a bad value.

    >>> read_generator(GeneratorSettings, {"crop_n_layers": 1}, {}).crop_n_layers
    1
    """
    known = list(kind.model_fields)
    for name in given:
        if name not in known:
            hint = near_miss(name, known) or f" Known: {', '.join(known)}."
            raise ValueError(
                f"auditor.generator.{name} must be a parameter of the mask generator. Got an "
                f"unknown one.{hint}"
            )
    try:
        return kind.model_validate({**defaults, **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["auditor.generator", *(str(part) for part in first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(
            f"{where} is not valid: {message}. Got {first['input']!r:.200}."
        ) from None
