"""The settings that make a dataset, and what every part of the tree has in common."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from synthgen.registry import (
    CLUSTER_REFINERS,
    LABELERS,
    REFINERS,
    RENAMED,
    SEGMENTERS,
    check_name,
)

ALGORITHM_VERSION = 4
"""Raised whenever a change of ours changes the bytes of a dataset."""

LABELING_VERSION = 10
"""Raised whenever a change of ours changes labels, but not what they are labels of."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

_RESERVED = {"background": 0, "ignore": 255}

ANNOTATION_STEPS = 40
"""Of the whole schedule, of which a strength of .05 leaves two (BL section 5)."""

NEED_SELF_MAP = ("propagate", "dataset-diffusion")
SEGMENT_SELF_MAP = ("diffseg", "diffseg-k", "spectral", "spectral-symmetric", "iseg")

RETIRED: Mapping[str, Any] = {
    "capture.rows": "cond",
    "capture.heatmaps": "none",
    "segmentation.clusters.solver": "knot",
    "segmentation.clusters.restarts": 1,
    "segmentation.clusters.seed": 0,
}
"""Settings of earlier versions and the only value that anybody used: datasets that have them are
read, and digests are as if they were there."""


class Section(BaseModel):
    """A frozen part of the tree that knows its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        """Integers of 64 bits: larger ones can neither be written nor used."""
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number.bit_length() > 63:
                raise ValueError("must be an integer below 2^63. Got a larger one.")
        return value


def row_of(field: str, table: Mapping[str, str]) -> Any:
    """A validator: the field names a row of a table or a plug-in, which is not imported yet."""

    def known(name: str) -> str:
        check_name(name, table)
        return name

    return field_validator(field)(known)


class ModelConfig(Section):
    """Which diffusion model draws the images, and where it runs."""

    card: str = Field(
        "scenes",
        description="Card name, local diffusers folder, hub id, or 'module:attribute'.",
    )
    revision: str | None = Field(None, description="Pinned hub revision (commit hash).")
    lora: str | None = Field(None, description="Local safetensors file with LoRA weights.")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="auto: float16 on a GPU, float32 on the CPU."
    )
    attention: Literal["default", "sliced", "fused"] = "default"
    vae_tiling: bool = False
    compile: bool = Field(False, description="torch.compile the UNet.")


class GenerationConfig(Section):
    """How one image is denoised. None means: what the card says."""

    height: int | None = Field(None, ge=8, description="Pixels; multiple of the VAE factor * 8.")
    width: int | None = Field(None, ge=8)
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0.0, le=100.0)
    scheduler: Literal["ddim", "pndm", "dpm++", "euler"] | None = None
    negative_prompt: str = ""
    batch_size: int = Field(4, ge=1, le=256, description="Images per UNet call; shapes the plan.")
    workers: int | None = Field(
        None,
        ge=0,
        le=64,
        description="Threads that make masks, labels and files while the next batch is drawn; "
        "0: none, each batch before the next one, where a CPU draws on all of its cores; null: by "
        "the cores that drawing leaves free. Bytes do not depend on it.",
    )
    append_classes: bool = Field(
        False, description="Draw from 'caption; class, class' as Dataset Diffusion and BL do."
    )


class CaptureConfig(Section):
    """Which attention outputs are recorded (BL section 3)."""

    layers: Literal["up", "down", "both", "all", "mid"] | tuple[str, ...] | None = Field(
        None,
        description="up, down, both, mid, all (both + mid), or diffusers module names; null: "
        "what the card says, up where it is silent (BL table 2, best row).",
    )
    grids: tuple[int, ...] | None = Field(
        None, description="Keep only layers whose grid's shorter side is listed; None keeps all."
    )
    calls: Literal["last"] | tuple[Fraction, ...] | Annotated[int, Field(ge=1)] = Field(
        "last", description="UNet calls: last, fractions of the run, or n: mean of the last n."
    )
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: Literal["model", "cpu"] = Field("model", description="Where captures are kept.")
    memory_budget_mb: float = Field(2048.0, gt=0, description="Bound for the captures of a batch.")


class FeatureConfig(Section):
    """From head outputs to clustering features (BL section 4.1)."""

    components: int = Field(8, ge=1, le=64, description="PCs per head; 8 is good (BL table 6).")
    reweight: bool = Field(False, description="BL eq. 5; off is better (BL table 2).")
    normalization: Literal["none", "minmax", "std"] = Field(
        "std", description="Of each component; none: as in BL."
    )
    xy: float = Field(0.0, ge=0.0, description="Weight of the pixel position; 0 leaves it out.")
    interpolation: Literal["bilinear", "nearest"] = "bilinear"


class ClusterConfig(Section):
    """Multi-k clustering (BL section 4.1: k in {2, 5, 6, 10, 20})."""

    ks: tuple[int, ...] = (2, 5, 6, 10, 20)
    resolution: int | Literal["image"] = Field(
        "image", description="Longer side of the label maps in pixels; image: that of the image."
    )
    max_iterations: int = Field(
        300, ge=1, le=10_000, description="Of each k; images that need more are counted."
    )
    tolerance: float = Field(
        2e-5, ge=0.0, description="Gain of an update, share of the variance, that stops Lloyd."
    )

    @field_validator("ks")
    @classmethod
    def _increasing(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not ks or ks[0] < 2 or any(b <= a for a, b in pairwise(ks)):
            raise ValueError(f"must be increasing integers >= 2. Got {ks}.")
        if sum(ks) > 254:
            raise ValueError(f"must sum to at most 254 (ids of an 8-bit map). Got {sum(ks)}.")
        return ks


class MaskConfig(Section):
    """From clusters to a hierarchy of masks (BL section 4.1, 'merge masks with a high IoU')."""

    merge_iou: Fraction = 0.9
    min_area: Fraction = Field(0.0005, description="Smaller masks are dropped (share of image).")
    split_components: bool = False
    fill_holes: bool = False
    containment: float = Field(0.95, gt=0.5, le=1.0, description="Share inside its parent.")


class SegmentationConfig(Section):
    """The paper's pipeline from features to masks."""

    method: str = Field("per-head", description="Row of SEGMENTERS or 'module:attribute'.")
    features: FeatureConfig = FeatureConfig()
    clusters: ClusterConfig = ClusterConfig()
    refiner: str = Field(
        "affinity-guided",
        description="What moves the clusters' borders to the image's edges, for each k: row of "
        "CLUSTER_REFINERS (affinity, guided, affinity-guided, superpixel) or 'module:attribute'; "
        "none: BL's, which are smooth.",
    )
    masks: MaskConfig = MaskConfig()

    _known_method = row_of("method", SEGMENTERS)
    _known_refiner = row_of("refiner", CLUSTER_REFINERS)

    @property
    def needs_self_map(self) -> bool:
        """Whether masks are made of the self-attention map of all layers."""
        return self.method in SEGMENT_SELF_MAP


class LabelConfig(Section):
    """Class labels of pixels and masks, from attention; off by default."""

    method: str = Field(
        "none",
        description="Row of LABELERS (clusters, propagate, dataset-diffusion, vote, argmax) or "
        "'module:attribute'; parts: those of labeling.parts; none: masks without labels.",
    )
    parts: str | None = Field(
        None, description="Folder of parts that 'synthgen oneshot fit' has learned on the model."
    )
    text: Literal["caption", "classes", "prompt"] = Field(
        "caption",
        description="Whose tokens stand for the classes: the prompt with the classes that it "
        "does not name behind it, the class names alone, or the prompt as it is. Generation is "
        "left untouched by all of them.",
    )
    layers: Literal["up", "down", "both", "all", "mid"] | tuple[str, ...] = Field(
        "all", description="Layers of the attention maps; LS reads all."
    )
    grids: tuple[int, ...] | None = Field(
        None, description="Grids of the attention maps by shorter side; null: those of 12 to 48."
    )
    calls: Literal["last"] | tuple[Fraction, ...] | Annotated[int, Field(ge=1)] = Field(
        "last", description="UNet calls of the attention maps, averaged; as in capture.calls."
    )
    self_grid: int = Field(
        32, ge=4, le=32, description="Longest shorter side of the self-attention map (DD: 32)."
    )
    self_map: bool | None = Field(
        None, description="Record self-attention; null: where the method needs it."
    )
    background: float = Field(
        1.0,
        ge=0.0,
        description="Weight of the background, which is where the start-of-text token (LS) is "
        "attended to more than half-way between the image's extremes.",
    )
    presence: Fraction = Field(
        0.1, description="A class is there if its share of the attention is at least this ..."
    )
    presence_area: Fraction = Field(0.002, description="... on at least this share of the image.")
    margin: Fraction = Field(
        0.02, description="Of the best share over the second; a lead of no more is undecided, 255."
    )
    power: int = Field(4, ge=1, le=16, description="dataset-diffusion: self-attention's power.")
    refiner: str = Field(
        "none",
        description="Row of REFINERS (none, pamr, color-majority, upsampling-error, "
        "upsampling-color) or 'module:attribute'; none: as the masks' borders are.",
    )

    _known_method = row_of("method", {"none": "", "parts": "", **LABELERS})
    _known_refiner = row_of("refiner", REFINERS)

    @model_validator(mode="after")
    def _recorded(self) -> LabelConfig:
        if self.self_map is False and self.method in NEED_SELF_MAP:
            raise ValueError(f"self_map must be null or true for {self.method}. Got false.")
        if (self.method == "parts") != (self.parts is not None):
            raise ValueError(
                "parts must be a folder where method is parts, and null elsewhere. Got "
                f"{self.parts!r:.60} with method {self.method!r:.40}."
            )
        return self

    def digest_settings(self) -> dict[str, Any]:
        """The settings by the names that rows had when digests were first computed."""
        settings = self.model_dump(mode="json", exclude={"parts"})  # a path; its files are hashed
        for old, new in RENAMED.items():
            key, _, name = old.removeprefix("labeling.").partition("=")
            if settings[key] == new:
                settings[key] = name
        return settings

    @property
    def needs_self_map(self) -> bool:
        """Whether self-attention maps are recorded."""
        if self.self_map is not None:
            return self.self_map
        return self.method in NEED_SELF_MAP


class AnnotationConfig(Section):
    """Photographs that are given: they are annotated, and nothing is drawn (BL section 5).

    ``generation`` says the rest: ``num_inference_steps`` (null: 40, of which a strength of .05
    leaves two), ``guidance_scale`` (null: none), ``height`` and ``width`` of the area at which
    the model sees them (null: its own).
    """

    images: tuple[str, ...] = Field(
        (), description="Files, folders, patterns, URLs, tars, COCO files; none: images are drawn."
    )
    captions: str | None = Field(
        None, description="File with a caption per image: a table, JSON lines, or COCO captions."
    )
    strength: float = Field(
        0.05, gt=0.0, le=1.0, description="Share of the schedule that is noised and denoised."
    )
    timestep: int | None = Field(
        None, ge=0, le=999, description="Noise to this timestep (LS: 100) and look once instead."
    )
    noises: int = Field(
        1, ge=1, le=100, description="At a timestep: looks with different noise, averaged."
    )
    tiles: int = Field(
        1,
        ge=1,
        le=8,
        description="An image larger than the model's is also seen in overlapping tiles of that "
        "size, at most so many along a side; 1: as a whole alone.",
    )


class DatasetConfig(Section):
    """How samples are stored."""

    image_format: Literal["jpg", "png", "webp"] = Field(
        "jpg", description="jpg: quality 95, 4:4:4; webp: lossless."
    )
    shard_size: int = Field(64, ge=1, le=10_000, description="Samples planned per shard.")
    preview_every: int = Field(0, ge=0, description="Keep per-k maps of 1 in n samples; 0: none.")


class Config(Section):
    """Everything that decides what a dataset contains."""

    prompts: str = Field(
        "scenes", description="Packaged name (demo, scenes, voc) or a prompt file."
    )
    classes: dict[str, int] | None = Field(
        None,
        description="Ids by name, or names in the order of their ids: all classes there are, "
        "looked for in prompts whose list names none. null: those of the list, by alphabet.",
    )
    num: int = Field(64, ge=1, description="Samples planned; failed ones count.")
    extended: int = Field(
        0, ge=0, description="Whole shards behind the first num; 'synthgen extend' raises it."
    )
    balance: dict[int, dict[str, Annotated[float, Field(gt=0.0, le=1.0)]]] = Field(
        {},
        description="From an extended shard on, how often each class is drawn; "
        "'synthgen extend --balance-by' adds to it.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Run seed; see run.sample_seed.")
    model: ModelConfig = ModelConfig()
    generation: GenerationConfig = GenerationConfig()
    capture: CaptureConfig = CaptureConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    labeling: LabelConfig = LabelConfig()
    annotation: AnnotationConfig = AnnotationConfig()
    dataset: DatasetConfig = DatasetConfig()

    @field_validator("classes", mode="before")
    @classmethod
    def _numbered(cls, classes: Any) -> Any:
        """Names without ids get 1, 2, …; a first one that is the background has id 0."""
        if not isinstance(classes, list | tuple):
            return classes
        if not all(isinstance(name, str) for name in classes):
            raise ValueError(f"must be names. Got {classes[:4]!r:.80}.")
        repeated = next((name for name in classes if classes.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"must name each class once. Got {repeated!r:.80} again.")
        start = 0 if classes and classes[0].lower() in _RESERVED else 1
        return {name: start + i for i, name in enumerate(classes)}

    @field_validator("classes")
    @classmethod
    def _identified(cls, classes: dict[str, int] | None) -> dict[str, int] | None:
        """Ids of an 8-bit map, each once, without those that every dataset has."""
        if classes is None:
            return None
        kept: dict[str, int] = {}
        for raw, number in sorted(classes.items(), key=lambda item: item[1]):
            name = raw.strip()
            if not name or len(name) > 200 or not name.isprintable():
                raise ValueError(f"must have names of 1 to 200 characters. Got {raw!r:.80}.")
            if _RESERVED.get(name.lower(), number) != number:
                raise ValueError(
                    f"must give {name!r} the id {_RESERVED[name.lower()]}, or leave it out. "
                    f"Got {number}."
                )
            if name.lower() in _RESERVED:
                continue
            if not 1 <= number <= 254 or number in kept.values():
                raise ValueError(
                    f"must have ids of 1 to 254 (an 8-bit map's), each once. Got {name!r:.80} as "
                    f"{number}."
                )
            kept[name] = number
        if not kept:
            raise ValueError("must name at least one class. Got none.")
        return kept

    @model_validator(mode="after")
    def _annotates(self) -> Config:
        """What BL calls effective steps: at least one."""
        asked, steps = self.annotation, self.generation.num_inference_steps or ANNOTATION_STEPS
        if asked.images and asked.timestep is None and int(steps * asked.strength) < 1:
            raise ValueError(
                f"annotation.strength must leave at least one of {steps} steps. Got "
                f"{asked.strength}; raise it, or generation.num_inference_steps."
            )
        if asked.noises > 1 and asked.timestep is None:
            raise ValueError(
                f"annotation.noises must be 1 without annotation.timestep. Got {asked.noises}."
            )
        return self

    @property
    def planned(self) -> int:
        """Samples planned in all: the first ``num``, and those of later extensions."""
        return self.num + self.extended * self.dataset.shard_size

    def digest_settings(self) -> dict[str, Any]:
        """The settings that determine the bytes: all but paths, sizes and where things run.

        The device that was used is recorded beside the digest (`synthgen.jobs.identity`).
        """
        settings = self.model_dump(mode="json", exclude={"num", "extended", "balance", "prompts"})
        del settings["model"]["card"], settings["model"]["revision"], settings["model"]["lora"]
        del settings["model"]["device"], settings["capture"]["device"]
        del settings["capture"]["memory_budget_mb"], settings["generation"]["workers"]
        for key, value in RETIRED.items():
            *sections, leaf = key.split(".")
            functools.reduce(operator.getitem, sections, settings)[leaf] = value
        settings["labeling"] = self.labeling.digest_settings()
        if self.classes is None:  # the digest that it always had
            del settings["classes"]
        if self.annotation.images:
            del settings["annotation"]["images"], settings["annotation"]["captions"]
            if self.annotation.tiles == 1:  # the digest that it had without them
                del settings["annotation"]["tiles"]
        else:
            del settings["annotation"]
        if self.labeling.method == "none":  # likewise
            del settings["labeling"]
        else:
            settings["labeling"]["version"] = LABELING_VERSION
        return {**settings, "algorithm_version": ALGORITHM_VERSION}


def digest(content: Mapping[str, Any]) -> str:
    """The sha256 of a JSON document in canonical form.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
