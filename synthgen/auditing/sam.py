"""SAM as auditor: the segment-anything package, its weights checked before they are read.

`load_sam` runs the published ViT-H/L/B, `load_scenes_sam` the embedded model of
`synthgen.embedded.sam`; both through `SamAutomaticMaskGenerator` with every parameter open
and recorded. A `.pth` is a pickle: it is read with ``weights_only=True``, and only when its
sha256 is the configured or a published one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field
from safetensors.torch import load_file
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.amg import MaskData
from torch import Tensor

from synthgen.auditing.parameters import PromptGrid, Share, read_parameters
from synthgen.config import AuditorConfig
from synthgen.devices import pick_device
from synthgen.diffusion.cards import file_sha256
from synthgen.embedded.card import read_card
from synthgen.embedded.sam import (
    AUTOMATIC_DEFAULTS,
    ENCODER_DIM,
    SHIPPED_SAM,
    WEIGHTS_NAME,
    build_scenes_sam,
    load_folder,
)
from synthgen.types import Annotations

PUBLISHED: Mapping[str, str] = {
    "sam_vit_h_4b8939.pth": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    "sam_vit_l_0b3195.pth": "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    "sam_vit_b_01ec64.pth": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
}
"""sha256 of the checkpoints that Meta published (the six digits in their names are of the md5)."""

WIDTHS: Mapping[int, str] = {768: "vit_b", 1024: "vit_l", 1280: "vit_h", ENCODER_DIM: "scenes"}
"""Width of the image encoder -> model type."""

BUILDERS: Mapping[str, Callable[[], Sam]] = {
    "vit_b": sam_model_registry["vit_b"],
    "vit_l": sam_model_registry["vit_l"],
    "vit_h": sam_model_registry["vit_h"],
    "scenes": build_scenes_sam,
}

_POSITION = "image_encoder.pos_embed"
_PACKAGES = ("segment-anything", "torch", "torchvision")


class SamParameters(PromptGrid):
    """All parameters of `SamAutomaticMaskGenerator` but the form of its output and its grids."""

    box_nms_thresh: Share = Field(
        0.7, description="IoU of two boxes above which the mask of lower predicted IoU goes."
    )
    min_mask_region_area: int = Field(
        0, ge=0, description="Pixels below which holes are filled and islands dropped; OpenCV."
    )


class _Generator(SamAutomaticMaskGenerator):  # type: ignore[misc]
    """The package's generator, which fails where crops are used and none of them has a mask."""

    def _process_crop(self, *args: Any) -> MaskData:
        data = super()._process_crop(*args)
        data["crop_boxes"] = data["crop_boxes"].reshape(-1, 4)
        return data


@dataclass(frozen=True, slots=True)
class SamAuditor:
    """A SAM model with the parameters of its automatic mode.

    Args:
        generator: Runs the model on one image.
        identity: See `synthgen.auditing.auditor.Auditor`.
    """

    generator: SamAutomaticMaskGenerator
    identity: Mapping[str, Any]

    def annotate(
        self, images: Sequence[UInt8[np.ndarray, "_height _width 3"]]
    ) -> list[Annotations]:
        """Masks of each image in the generator's order; it takes one image at a time."""
        return [
            _annotations(self.generator.generate(np.ascontiguousarray(image)), image.shape[:2])
            for image in images
        ]


def _annotations(records: Sequence[Mapping[str, Any]], size: tuple[int, ...]) -> Annotations:
    """Records of the generator as annotations; masks without a pixel are left out."""
    kept = [record for record in records if record["area"] > 0]
    masks = np.zeros((len(kept), *size), dtype=bool)
    for mask, record in zip(masks, kept, strict=True):
        mask[:] = record["segmentation"]
    return Annotations(
        masks=masks,
        predicted_iou=tuple(float(record["predicted_iou"]) for record in kept),
        stability_score=tuple(float(record["stability_score"]) for record in kept),
        points_xy=tuple((float(x), float(y)) for ((x, y),) in (r["point_coords"] for r in kept)),
        labels=("",) * len(kept),
    )


def load_scenes_sam(settings: AuditorConfig) -> SamAuditor:
    """The embedded SAM, or one of its kind in the folder that `checkpoint` names.

    Raises:
        FileNotFoundError: If there are no weights.
        ValueError: In one line, for other weights than expected or a bad parameter.
    """
    generator = read_parameters(SamParameters, settings.generator, AUTOMATIC_DEFAULTS)
    folder = Path(settings.checkpoint).expanduser() if settings.checkpoint else SHIPPED_SAM
    sam = load_folder(folder)
    digest: str = read_card(folder)["sha256"][WEIGHTS_NAME]
    if settings.sha256 not in (None, digest):
        raise ValueError(
            f"{folder / WEIGHTS_NAME} must have sha256 {settings.sha256}. Got {digest}."
        )
    return _auditor(sam, "scenes-sam", "scenes", digest, generator, settings.device)


def load_sam(settings: AuditorConfig) -> SamAuditor:
    """SAM from the checkpoint that the settings name: `.pth`, or `.safetensors` of its state.

    Which SAM it is (vit_b, vit_l, vit_h) is read from the weights.

    Raises:
        ValueError: In one line, for a missing or wrong checkpoint or a bad parameter.
    """
    generator = read_parameters(SamParameters, settings.generator)
    path, digest = checked_file(settings.checkpoint, settings.sha256)
    state = read_state(path)
    kind = model_type(state)
    sam = BUILDERS[kind]()
    try:
        sam.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except RuntimeError as error:
        reason = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"{path} must hold the weights of a {kind}. Got: {reason:.200}") from None
    return _auditor(sam.eval(), "sam", kind, digest, generator, settings.device)


def checked_file(checkpoint: str | None, sha256: str | None) -> tuple[Path, str]:
    """Path and sha256 of a checkpoint that is the one it should be; nothing is unpickled.

    Raises:
        ValueError: If it is missing, or its sha256 is neither the given nor, where none is
            given, a published one. A safetensors file needs no sha256.
    """
    path = Path(checkpoint or "").expanduser()
    expected = sha256 or PUBLISHED.get(path.name, "")
    if not path.is_file():
        wish = f" with sha256 {expected}" if expected else ""
        raise ValueError(
            f"auditor.checkpoint must be a file of SAM's weights{wish}, such as "
            f"{next(iter(PUBLISHED))}. Got {checkpoint or 'none'}, which is no file."
        )
    digest = file_sha256(path)
    free = path.suffix == ".safetensors" and sha256 is None
    if free or digest == expected or (not expected and digest in PUBLISHED.values()):
        return path, digest
    if not expected:
        raise ValueError(
            f"auditor.sha256 must be given for {path}, which is none of the published "
            f"checkpoints. Got a file with sha256 {digest}; set it if you trust its source."
        )
    raise ValueError(f"{path} must have sha256 {expected}. Got {digest}; download it again.")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checked checkpoint; a pickle may hold nothing that runs.

    Trainers keep them beside epoch and optimizer (under ``model``, ``state_dict``, …) and with
    prefixes (``module.``, ``sam.``, …): both are taken off.

    Raises:
        ValueError: If the file is damaged or holds no mapping of names to tensors.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file fails in any way it likes
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} must be readable as plain weights. Got: {reason:.200}") from None
    found = _unwrap(state)
    if found is not None:
        return found
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} must map names to tensors. Got {type(state).__name__}.")
    return state


def _unwrap(state: Any, depth: int = 3) -> dict[str, Tensor] | None:
    """SAM's tensors under their own names, wherever a checkpoint holds them; None if nowhere."""
    if not isinstance(state, dict) or not depth:
        return None
    for name, value in state.items():
        if isinstance(value, Tensor) and str(name).endswith(_POSITION):
            prefix = str(name).removesuffix(_POSITION)
            return {
                str(other).removeprefix(prefix): tensor
                for other, tensor in state.items()
                if isinstance(tensor, Tensor) and str(other).startswith(prefix)
            }
    return next(filter(None, (_unwrap(value, depth - 1) for value in state.values())), None)


def model_type(state: Mapping[str, Tensor]) -> str:
    """Which SAM the weights are of, by the width of their image encoder.

    Raises:
        ValueError: If they are of none.

    >>> model_type({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)})
    'vit_b'
    """
    position = state.get(_POSITION)
    found = WIDTHS.get(position.shape[-1]) if position is not None else None
    if found is None:
        widths = ", ".join(str(width) for width in WIDTHS)
        raise ValueError(
            f"the checkpoint must hold image_encoder.pos_embed of width {widths}. Got "
            f"{'none' if position is None else position.shape[-1]}."
        )
    return found


def _auditor(
    sam: Sam, name: str, kind: str, digest: str, generator: SamParameters, device: str
) -> SamAuditor:
    if generator.min_mask_region_area > 0 and importlib.util.find_spec("cv2") is None:
        raise ValueError(
            "auditor.generator.min_mask_region_area > 0 needs OpenCV. Got no cv2; run "
            "`pip install 'synthgen[opencv]'` or leave it at 0."
        )
    identity = {
        "name": name,
        "model_type": kind,
        "sha256": digest,
        "mask_threshold": float(sam.mask_threshold),
        "generator": generator.model_dump(),
        "versions": {package: version(package) for package in _PACKAGES},
    }
    return SamAuditor(_Generator(sam.to(sam_device(device)), **generator.model_dump()), identity)


def sam_device(device: str) -> torch.device:
    """Where SAM runs: `auto` is CUDA where there is one.

    Raises:
        ValueError: For a device that is not there, and for `mps`, which lacks the doubles that
            the package's points are.
    """
    if device == "mps":
        raise ValueError("auditor.device must be auto, cpu or cuda for SAM. Got mps: no float64.")
    return pick_device(device, "auditor.device", gpus=("cuda",))
