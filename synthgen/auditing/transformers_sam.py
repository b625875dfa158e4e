"""Any SAM, SAM-HQ, SAM 2 or SAM 3 tracker of transformers, through its own mask generation.

The `mask-generation` pipeline proposes, filters and merges as `SamAutomaticMaskGenerator` does.
It keeps neither the points nor the stability of the masks it returns, so these are left out here
too; its one suppression of duplicates is `crop_nms_thresh`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForMaskGeneration,
    MaskGenerationPipeline,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES

from synthgen.auditing.annotations import NO_POINT
from synthgen.auditing.parameters import (
    PromptGrid,
    check_weights,
    hub_folder,
    read_parameters,
)
from synthgen.auditing.sam import sam_device
from synthgen.config import AuditorConfig, digest
from synthgen.types import Annotations

NAMES: Mapping[str, str] = {
    "points_per_side": "points_per_crop",
    "crop_n_layers": "crops_n_layers",
    "crop_nms_thresh": "crops_nms_thresh",
}
"""segment-anything's names -> the pipeline's, where they differ."""

_PACKAGES = ("transformers", "torch", "torchvision")


class TransformersGenerator(PromptGrid):
    """Parameters of the pipeline, and the logit above which a pixel belongs to a mask."""

    mask_threshold: float = 0.0


@dataclass(frozen=True, slots=True)
class TransformersSamAuditor:
    """A model of transformers with the parameters of its mask generation.

    Args:
        pipeline: Runs the model on one image.
        parameters: What the pipeline is called with, under its own names.
        identity: See `synthgen.auditing.auditor.Auditor`.
    """

    pipeline: MaskGenerationPipeline
    parameters: Mapping[str, Any]
    identity: Mapping[str, Any]

    @torch.no_grad()
    def annotate(
        self, images: Sequence[UInt8[np.ndarray, "_height _width 3"]]
    ) -> list[Annotations]:
        """Masks of each image in the pipeline's order; it takes one image at a time."""
        return [
            _annotations(self.pipeline(Image.fromarray(image), **self.parameters), image.shape[:2])
            for image in images
        ]


def _annotations(found: Mapping[str, Any], size: tuple[int, ...]) -> Annotations:
    """Output of the pipeline as annotations; masks without a pixel are left out."""
    pairs = [
        (np.asarray(mask, dtype=bool), float(score))
        for mask, score in zip(found["masks"], found["scores"], strict=True)
    ]
    kept = [(mask, score) for mask, score in pairs if mask.any()]
    masks = np.stack([mask for mask, _ in kept]) if kept else np.zeros((0, *size), dtype=bool)
    return Annotations(
        masks=masks,
        predicted_iou=tuple(score for _, score in kept),
        stability_score=(1.0,) * len(kept),
        points_xy=(NO_POINT,) * len(kept),
        labels=("",) * len(kept),
    )


def load_transformers_sam(settings: AuditorConfig) -> TransformersSamAuditor:
    """The model in the local folder, or of the hub id and pinned revision, of the settings.

    Raises:
        ValueError: In one line, for a missing model, one of another kind, or a bad parameter.
    """
    generator = read_parameters(TransformersGenerator, settings.generator)
    folder = _folder(settings)
    found = check_weights(folder, settings.sha256)
    model, processor = _load(folder)
    pipeline = MaskGenerationPipeline(
        model=model, image_processor=processor, device=sam_device(settings.device)
    )
    identity = {
        "name": "transformers-sam",
        "model_type": str(model.config.model_type),
        "sha256": found,
        "generator": generator.model_dump(),
        "image_processor": digest({"settings": processor.to_json_string()}),
        "versions": {package: version(package) for package in _PACKAGES},
    }
    named = {NAMES.get(name, name): value for name, value in generator.model_dump().items()}
    return TransformersSamAuditor(pipeline, named, identity)


def _folder(settings: AuditorConfig) -> Path:
    """The local folder of the model; the hub is asked only for a pinned revision."""
    name = settings.checkpoint
    if name is not None and Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if name is None or settings.revision is None:
        raise ValueError(
            "auditor.checkpoint must be a local folder of a SAM, or a hub id with "
            f"auditor.revision pinned. Got {name or 'none'}."
        )
    return hub_folder(name, settings.revision)


def _load(folder: Path) -> tuple[Any, Any]:
    """Model in fp32 and image processor; safetensors only, no code of the folder is run."""
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = AutoConfig.from_pretrained(folder, **options).model_type
        if kind not in MODEL_FOR_MASK_GENERATION_MAPPING_NAMES:
            raise ValueError(_other_kind(kind))
        model, found = AutoModelForMaskGeneration.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
        if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
            raise ValueError(f"weights without {len(missing)} tensors, such as {missing[0]}")
        return model.eval(), AutoImageProcessor.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{folder} must hold a SAM of transformers. Got: {reason:.300}") from None


def _other_kind(kind: str) -> str:
    if kind.startswith("sam3"):
        return (
            f"a {kind}, which wants a text for its masks; a SAM 3 tracker would do: save "
            f"Sam3TrackerModel and Sam3TrackerProcessor of the same weights to a folder"
        )
    return f"a {kind}; known are {', '.join(sorted(MODEL_FOR_MASK_GENERATION_MAPPING_NAMES))}"
