"""One frozen tree of settings; every default cites the table or the section it comes from.

The tree is also the parameter schema of the Prefect flows. ``digest`` covers what determines
the bytes of a dataset and nothing else: not paths, workers, progress, nor the number of samples.
BL is the paper "Beyond Labels" (Stillger et al., VISAPP 2025).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from synthgen.registry import AUDITORS, LABELERS, REFINERS, SEGMENTERS, check_name, near_miss
from synthgen.untrusted import MAX_QUOTE, one_line, quote

ALGORITHM_VERSION = 1
"""Raised whenever a change of ours changes the bytes of a dataset."""

LABELING_VERSION = 3
"""Raised whenever a change of ours changes labels, but not what they are labels of."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
TopN = Literal[1, 3, 5, 10, 15]

TOPS: tuple[int, ...] = get_args(TopN)
"""The n of BL's tables 2, 6, 7 and 8."""


NEED_SELF_MAP = ("propagate", "dataset-diffusion")

MAX_BYTES = 2**20
"""Largest configuration that is read; a complete one has 3 KB."""

MAX_DEPTH = 16
"""Nesting of a configuration in YAML; the settings have 4 levels."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        """Integers of 64 bits: larger ones can neither be written nor used."""
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number.bit_length() > 63:
                raise ValueError("must be an integer below 2^63. Got a larger one.")
        return value


def _row_of(field: str, table: Mapping[str, str]) -> Any:
    """A validator: the field names a row of a table or a plug-in, which is not imported yet."""

    def known(name: str) -> str:
        check_name(name, table)
        return name

    return field_validator(field)(known)


class ModelConfig(_Section):
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


class GenerationConfig(_Section):
    """How one image is denoised. None means: what the card says."""

    height: int | None = Field(None, ge=8, description="Pixels; multiple of the VAE factor * 8.")
    width: int | None = Field(None, ge=8)
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0.0, le=100.0)
    scheduler: Literal["ddim", "pndm", "dpm++", "euler"] | None = None
    negative_prompt: str = ""
    batch_size: int = Field(4, ge=1, le=256, description="Images per UNet call; shapes the plan.")
    append_classes: bool = Field(
        False, description="Draw from 'caption; class, class' as Dataset Diffusion and BL do."
    )


class CaptureConfig(_Section):
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
    rows: Literal["cond", "uncond", "both"] = "cond"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: Literal["model", "cpu"] = Field("model", description="Where captures are kept.")
    heatmaps: Literal["none", "classes", "prompt"] = Field(
        "none",
        description="Cross-attention per class: through a text of the class names that leaves "
        "generation untouched, or through the class tokens of the prompt itself.",
    )
    memory_budget_mb: float = Field(2048.0, gt=0, description="Bound for the captures of a batch.")


class FeatureConfig(_Section):
    """From head outputs to clustering features (BL section 4.1)."""

    components: int = Field(8, ge=1, le=64, description="PCs per head; 8 is good (BL table 6).")
    reweight: bool = Field(False, description="BL eq. 5; off is better (BL table 2).")
    normalization: Literal["none", "minmax", "std"] = "none"
    xy: float = Field(0.0, ge=0.0, description="Weight of the pixel position; 0 leaves it out.")
    interpolation: Literal["bilinear", "nearest"] = "bilinear"


class ClusterConfig(_Section):
    """Multi-k clustering (BL section 4.1: k in {2, 5, 6, 10, 20})."""

    ks: tuple[int, ...] = (2, 5, 6, 10, 20)
    resolution: int | Literal["image"] = Field(
        "image", description="Longer side of the label maps in pixels; image: that of the image."
    )
    solver: Literal["knot", "implicit", "sklearn"] = Field(
        "knot", description="knot and implicit: ours, exact; sklearn: on explicit features."
    )
    restarts: int = Field(1, ge=1, le=100)
    max_iterations: int = Field(50, ge=1, le=10_000)
    tolerance: float = Field(1e-4, ge=0.0, description="Relative centroid shift that stops Lloyd.")
    seed: int = Field(0, ge=0, lt=2**63, description="BL clusters with one fixed seed.")

    @field_validator("ks")
    @classmethod
    def _increasing(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not ks or ks[0] < 2 or any(b <= a for a, b in pairwise(ks)):
            raise ValueError(f"must be increasing integers >= 2. Got {ks}.")
        if sum(ks) > 254:
            raise ValueError(f"must sum to at most 254 (ids of an 8-bit map). Got {sum(ks)}.")
        return ks


class MaskConfig(_Section):
    """From clusters to a hierarchy of masks (BL section 4.1, 'merge masks with a high IoU')."""

    merge_iou: Fraction = 0.9
    min_area: Fraction = Field(0.0005, description="Smaller masks are dropped (share of image).")
    split_components: bool = False
    fill_holes: bool = False
    containment: float = Field(0.95, gt=0.5, le=1.0, description="Share inside its parent.")


class SegmentationConfig(_Section):
    """The paper's pipeline from features to masks."""

    method: str = Field("per-head", description="Row of SEGMENTERS or 'module:attribute'.")
    features: FeatureConfig = FeatureConfig()
    clusters: ClusterConfig = ClusterConfig()
    masks: MaskConfig = MaskConfig()

    _known_method = _row_of("method", SEGMENTERS)


class LabelConfig(_Section):
    """Class labels of pixels and masks, from attention; off by default."""

    method: str = Field(
        "none",
        description="Row of LABELERS (clusters, propagate, dataset-diffusion, pcc, argmax) or "
        "'module:attribute'; none: masks without labels.",
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
        0.25, description="A class is there if its share of the heat is at least this ..."
    )
    presence_area: Fraction = Field(0.002, description="... on at least this share of the image.")
    margin: Fraction = Field(
        0.02, description="Least lead of the best share over the second; nearer ones are 255."
    )
    power: int = Field(4, ge=1, le=16, description="dataset-diffusion: self-attention's power.")
    refiner: str = Field(
        "guided",
        description="Row of REFINERS (none, upsampling-error, upsampling-color, guided, pcc) or "
        "'module:attribute'.",
    )

    _known_method = _row_of("method", {"none": "", **LABELERS})
    _known_refiner = _row_of("refiner", REFINERS)

    @model_validator(mode="after")
    def _recorded(self) -> LabelConfig:
        if self.self_map is False and self.method in NEED_SELF_MAP:
            raise ValueError(f"self_map must be null or true for {self.method}. Got false.")
        return self

    @property
    def needs_self_map(self) -> bool:
        """Whether self-attention maps are recorded."""
        if self.self_map is not None:
            return self.self_map
        return self.method in NEED_SELF_MAP


class DatasetConfig(_Section):
    """How samples are stored."""

    image_format: Literal["jpg", "png", "webp"] = Field(
        "jpg", description="jpg: quality 95, 4:4:4; webp: lossless."
    )
    shard_size: int = Field(64, ge=1, le=10_000, description="Samples planned per shard.")
    preview_every: int = Field(0, ge=0, description="Keep per-k maps of 1 in n samples; 0: none.")


class AuditorConfig(_Section):
    """Which independent segmenter looks at the masks, and how it is run."""

    name: str = Field("scenes-sam", description="Row of AUDITORS or 'module:attribute'.")
    checkpoint: str | None = Field(None, description="Local file or folder of the weights.")
    sha256: str | None = Field(None, description="What the checkpoint's hash must be.")
    revision: str | None = Field(None, description="Pinned hub revision (commit hash).")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    batch_size: int = Field(4, ge=1, le=256, description="Images per call.")
    generator: dict[str, int | float | bool | str] = Field(
        default_factory=dict,
        description="Parameters of the mask generator that differ from the auditor's defaults, "
        "by segment-anything's names (points_per_side, pred_iou_thresh, ...).",
    )

    _known_name = _row_of("name", AUDITORS)


class VerdictConfig(_Section):
    """When an audited sample is kept; the first threshold that fails names the reason.

    Defaults were set on 32 scenes of the embedded world that are no validation scenes, with the
    embedded model's masks and the true objects and parts as annotations: they keep 91 % of the
    samples and reject 99 % of them once their masks are shuffled. Of 64 generated images that the
    embedded SAM looks at they keep 92 %, none with shuffled masks (``synthgen bench verdicts``).
    """

    top: TopN = Field(
        5, description="The n of the Top-n (BL eq. 4) that thresholds are about; BL shows 1 to 15."
    )
    min_top_n: Fraction = Field(
        0.35, description="Least Top-n; shuffled masks reach 0.33 (median), true ones 0.63."
    )
    min_over_others: float = Field(
        0.1,
        ge=-1.0,
        le=1.0,
        description="Least lead of Top-n over that of other samples' masks on the same image; "
        "shuffled masks have none (median 0.00, true ones 0.30).",
    )
    min_boundary_f: Fraction = Field(
        0.15,
        description="Least boundary F with the auditor's largest masks; shuffled masks reach "
        "0.08 (median), true ones 0.41.",
    )
    min_over_chance: float = Field(
        -0.25,
        ge=-1.0,
        le=1.0,
        description="Least lead of Top-n over the chance baseline (k-means on RGB+XY); negative, "
        "for color alone explains some images (true masks: 5 % below -0.16).",
    )
    min_coverage: Fraction = Field(
        0.5, description="Least share of the image in any mask; clusters cover all of it."
    )
    max_masks: int = Field(
        254, ge=1, description="Most masks of a sample: what an 8-bit id map can name."
    )


class AuditConfig(_Section):
    """An audit: who looks, what is compared, when a sample is kept. Not part of a dataset."""

    auditor: AuditorConfig = AuditorConfig()
    verdict: VerdictConfig = VerdictConfig()
    chance: bool = Field(True, description="Also score k-means on RGB+XY with the same ks.")
    chance_resolution: int = Field(
        128, ge=8, description="Longer side in pixels at which RGB+XY is clustered."
    )
    others: int = Field(
        3, ge=0, le=16, description="Other samples of the shard whose masks are compared."
    )


class Config(_Section):
    """Everything that decides what a dataset contains."""

    prompts: str = Field("scenes", description="Packaged name (scenes, voc) or a prompt file.")
    num: int = Field(64, ge=1, description="Samples planned; failed ones count.")
    extended: int = Field(
        0, ge=0, description="Whole shards behind the first num; 'synthgen extend' raises it."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Run seed; see run.sample_seed.")
    model: ModelConfig = ModelConfig()
    generation: GenerationConfig = GenerationConfig()
    capture: CaptureConfig = CaptureConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    labeling: LabelConfig = LabelConfig()
    dataset: DatasetConfig = DatasetConfig()

    @property
    def planned(self) -> int:
        """Samples planned in all: the first ``num``, and those of later extensions."""
        return self.num + self.extended * self.dataset.shard_size

    def digest_settings(self) -> dict[str, Any]:
        """The settings that determine the bytes: all but paths, sizes and where things run.

        The device that was used is recorded beside the digest (`synthgen.run.identity`).
        """
        settings = self.model_dump(mode="json", exclude={"num", "extended", "prompts"})
        del settings["model"]["card"], settings["model"]["revision"], settings["model"]["lora"]
        del settings["model"]["device"], settings["capture"]["device"]
        del settings["capture"]["memory_budget_mb"]
        if self.labeling.method == "none":  # masks alone: the digest that they always had
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


def load(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML or JSON file, changed by ``section.key=value`` overrides.

    Args:
        path: File to read; None starts from the defaults.
        overrides: Assignments such as ``segmentation.clusters.ks=[2,5]``; values are YAML.

    Raises:
        ValueError: In one line, for an unreadable file, an unknown key or a bad value.
    """
    tree = _read(Path(path)) if path is not None else {}
    for assignment in overrides:
        _assign(tree, assignment)
    return _validate(tree)


def parse(content: bytes) -> Config:
    """The configuration in the bytes of a YAML or JSON document, such as a dataset's.

    Raises:
        ValueError: In one line, as `load` does.
    """
    return _validate(_parse(content))


def _validate(tree: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError(describe(error)) from None


def load_audit(overrides: Sequence[str] = ()) -> AuditConfig:
    """The settings of an audit: the defaults changed by ``section.key=value`` overrides.

    Raises:
        ValueError: In one line, for an unknown key or a bad value.
    """
    tree: dict[str, Any] = {}
    for assignment in overrides:
        _assign(tree, assignment)
    try:
        return AuditConfig.model_validate(tree)
    except ValidationError as error:
        raise ValueError(describe(error, AuditConfig)) from None


def dump(config: Config) -> str:
    """The resolved configuration as YAML; ``load`` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def describe(error: ValidationError, section: type[BaseModel] | None = None) -> str:
    """The first setting that a validation error is about, as one line that says what to do.

    Args:
        error: What pydantic found.
        section: The tree that was validated; None: a dataset's configuration.
    """
    known = _known_keys(section or Config)
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        key = one_line(".".join(str(part) for part in first["loc"]), MAX_QUOTE)
        show = _SHOW if section is None else "synthgen audit --help"
        hint = near_miss(key, sorted(known)) or f" See '{show}'."
        return f"{key} must be a known setting. Got an unknown key.{hint}"
    key = _setting(first["loc"], known)
    about = [item for item in error.errors() if _setting(item["loc"], known) == key]
    wants = [item["msg"].removeprefix("Value error, ").rstrip(".") for item in about]
    message = " or ".join(dict.fromkeys(want[0].lower() + want[1:] for want in wants))
    got = "" if "Got" in message else f". Got {quote(first['input'])}"
    end = "" if message.endswith("?") else "."
    return f"{one_line(key, MAX_QUOTE)} is not valid: {one_line(message)}{got}{end}"


def _setting(loc: tuple[int | str, ...], known: set[str]) -> str:
    """The longest prefix of an error's location that is a setting; union branches follow it."""
    parts = [str(part) for part in loc]
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in known), ".".join(parts))


_SHOW = "synthgen config show"


def _known_keys(section: type[BaseModel], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, info in section.model_fields.items():
        keys.add(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys |= _known_keys(info.annotation, f"{prefix}{name}.")
    return keys


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            return _parse(stream.read(MAX_BYTES + 1))
    except OSError as error:
        raise ValueError(f"The configuration must be a readable file. Got {error}.") from None


def _parse(content: bytes) -> dict[str, Any]:
    """The mapping that an untrusted YAML document is."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"The configuration must have at most {MAX_BYTES:,} bytes. Got more.")
    try:
        tree = _parse_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"The configuration must be a readable file. Got {error}.") from None
    except ValueError as error:
        raise ValueError(f"The configuration must be valid YAML. Got {error}.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"The configuration must be a mapping. Got {type(tree).__name__}.")
    return tree


def _parse_yaml(text: str) -> Any:
    """A value from YAML without aliases, of bounded depth.

    An alias can stand for a tree of gigabytes (with ``<<`` PyYAML writes it out), and its loader
    recurses; the events before it do neither.

    Raises:
        ValueError: In one line.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} levels")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"an alias (*{one_line(event.anchor, 40)}); write it out")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from None
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # PyYAML's own, for "!!bool x", "!!timestamp x" and the like
        raise ValueError(f"a value that is not of its tag ({one_line(repr(error), 60)})") from None


def _assign(tree: dict[str, Any], assignment: str) -> None:
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set must have the form key=value. Got {quote(assignment)}.")
    *sections, leaf = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            key, section = one_line(key, MAX_QUOTE), one_line(section, 40)
            raise ValueError(f"--set {key}: {section} must be a section. Got a value.")
    try:
        tree[leaf] = _parse_yaml(value)
    except ValueError:
        key = one_line(key, MAX_QUOTE)
        raise ValueError(f"--set {key}: the value must be YAML. Got {quote(value)}.") from None
