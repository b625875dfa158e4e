"""Cards: what is known of a diffusion backbone before it is loaded.

A card says where the weights are (packaged, a local folder, a hub id), which hashes they must
have, and how one samples from them. ``cards.yaml`` holds the known ones; a local folder may bring
a ``card.json`` with the sampling settings and ``sha256`` of its own. Dead hub ids lead to the
live copy with a note. Hashing happens here, loading in `backbones`.

Masks come from the attention of a UNet that denoises latents and is told the timestep and a text:
Stable Diffusion 1 and 2, and models trained from them. Folders of other pipelines load in part or
crash at the first call; `check_kind` says so by their configurations, before a weight is read.
"""

from __future__ import annotations

import functools
import hashlib
import re
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from synthgen.registry import is_plug_in, near_miss
from synthgen.storage.untrusted import MAX_QUOTE, one_line, parse_json, quote

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
"""Subfolders of a pipeline that are read."""

PIPELINES = frozenset(
    {
        *("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
        *("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
    }
)
"""Pipelines of diffusers that are made of the same parts as Stable Diffusion's."""

_MORE_INPUTS = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim_type",
)

_ENDINGS = {"json", "txt", "safetensors", "safetensors.index.json"}
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")]


class Card(BaseModel):
    """A backbone's description.

    Args:
        name: Row of ``cards.yaml``, a hub id, or ``local``.
        hub_id: Repository on the hub; None for packaged and local weights.
        revision: Pinned hub commit; None follows the main branch.
        package_folder: Folder inside the package ``synthgen``.
        aliases: Dead hub ids of the same weights, with ``alias_note``: why they are dead.
        license: Of the weights.
        height: Pixels, native size; None is what the UNet's configuration says.
        width: Pixels.
        num_inference_steps: Default number of denoising steps.
        guidance_scale: Default classifier-free guidance.
        scheduler: Default scheduler; None is the one stored with the weights.
        capture_layers: Layers whose heads are clustered unless the configuration names others, as
            in ``capture.layers``.
        parts: Settings of parts (`synthgen.learn_parts`) that are not the paper's.
        sha256: Weight file, relative to the folder, to the first digits of its hash.
        vocabulary: Classes that it can draw; empty where nobody can list them.
        captions: BLIP that describes photographs for it: a hub id, or scenes-blip.
        note: For people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    hub_id: str | None = None
    revision: str | None = None
    package_folder: str | None = None
    aliases: tuple[str, ...] = ()
    alias_note: str = ""
    license: str = "unknown"
    height: int | None = Field(default=None, ge=8)
    width: int | None = Field(default=None, ge=8)
    num_inference_steps: int = Field(default=50, ge=1, le=1000)
    guidance_scale: float = Field(default=7.5, ge=0.0, le=100.0)
    scheduler: Literal["ddim", "pndm", "dpm++", "euler"] | None = None
    capture_layers: Literal["up", "down", "both", "all", "mid"] | tuple[str, ...] = "up"
    parts: Mapping[str, Any] = Field(default_factory=dict)
    sha256: Mapping[str, _Digest] = Field(default_factory=dict)
    vocabulary: tuple[str, ...] = ()
    captions: str = "Salesforce/blip-image-captioning-base"
    note: str = ""

    @field_validator("scheduler", mode="before")
    @classmethod
    def _lower_case(cls, name: Any) -> Any:
        return name.lower() if isinstance(name, str) else name


@functools.cache
def load_cards() -> Mapping[str, Card]:
    """The cards of ``cards.yaml`` by name."""
    text = resources.files(__package__).joinpath("cards.yaml").read_text(encoding="utf-8")
    return {name: Card(name=name, **row) for name, row in yaml.safe_load(text).items()}


def find_card(name: str) -> tuple[Card, Path | None]:
    """The card that ``model.card`` names and, unless the weights are on the hub, their folder.

    A name is a row of ``cards.yaml``, a folder in diffusers' layout, a hub id, or the
    ``module:attribute`` of a function that makes the backbone.

    Raises:
        ValueError: If it is none of these, or the folder holds no pipeline.
    """
    cards = load_cards()
    if name in cards:
        card = cards[name]
        if card.package_folder is None:
            return card, None
        return _local_card(card, _package_folder(card.package_folder))
    if Path(name).is_dir() or name.startswith(("/", "./", "../", "~")):
        return _local_card(Card(name="local"), Path(name).expanduser())
    if is_plug_in(name):
        return Card(name=name), None
    if not _HUB_ID.fullmatch(name):
        raise ValueError(
            f"model.card must be one of {', '.join(cards)}, a diffusers folder or a hub id "
            f"'owner/name'. Got {name!r}.{near_miss(name, cards)}"
        )
    for card in cards.values():
        if name in card.aliases:
            _warn_once(f"{name} is gone ({card.alias_note}): using {card.hub_id} instead.")
        if name in (card.hub_id, *card.aliases):
            return card, None
    return Card(name=name, hub_id=name), None


def verify_sha256(folder: Path, expected: Mapping[str, str]) -> None:
    """Check files, by relative path, against the first digits of their hashes.

    Raises:
        ValueError: For a path that leaves the folder, a missing file or another hash.
    """
    for name, digits in expected.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"hashed files must lie inside the model folder. Got {name!r}.")
        if not (folder / path).is_file():
            raise ValueError(
                f"the model folder must hold {name}. Got none in {folder}; fetch it again."
            )
        found = file_sha256(folder / path)
        if not found.startswith(digits):
            raise ValueError(
                f"sha256 of {name} must start with {digits}. Got {found[: max(12, len(digits))]}"
                f" in {folder}; fetch the file again or give the folder as model.card."
            )


def model_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file that a pipeline reads, by relative path: weights, settings, words.

    Variants (``model.fp16.safetensors``) beside plain weights, weights of other formats and
    components that are not used are not read and not listed.
    """
    found = [folder / "model_index.json"]
    endings = set(_ENDINGS)
    if (variant := only_variant(folder)) is not None:
        endings |= {f"{variant}.safetensors", f"safetensors.index.{variant}.json"}
    for component in COMPONENTS:
        files = sorted(path for path in (folder / component).glob("*") if path.is_file())
        found += [
            path
            for path in files
            if re.sub(r"-\d+-of-\d+", "", path.name).partition(".")[2] in endings
        ]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in found}


def only_variant(folder: Path) -> str | None:
    """The variant (``fp16``) of the UNet's weights where there are no plain ones.

    Raises:
        ValueError: If there are several to choose from.
    """
    names = [path.name.split(".") for path in (folder / "unet").glob("*.safetensors")]
    variants = {parts[1].partition("-")[0] if len(parts) > 2 else "" for parts in names}
    if len(variants) > 1 and "" not in variants:
        raise ValueError(
            f"{folder / 'unet'} must hold plain weights or one variant. Got "
            f"{', '.join(sorted(variants))}; keep one of them."
        )
    return min(variants, default="") or None


def file_sha256(path: Path) -> str:
    """The sha256 of a file; computed once per process while size and time stay the same."""
    stat = path.stat()
    return _file_sha256(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _file_sha256(path: str, size: int, mtime_ns: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _package_folder(relative: str) -> Path:
    return Path(str(resources.files("synthgen").joinpath(relative)))


def _local_card(card: Card, folder: Path) -> tuple[Card, Path]:
    """A card with what the folder's own ``card.json`` adds: settings and hashes."""
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"the folder of model {card.name!r} must hold a diffusers pipeline "
            f"(model_index.json). Got {folder}."
        )
    check_kind(folder)
    own = folder / "card.json"
    if not own.is_file():
        return card, folder
    stored = read_json(own)
    known = set(Card.model_fields) - {"name", "hub_id", "package_folder", "aliases"}
    settings = card.model_dump() | {k: v for k, v in stored.items() if k in known}
    try:
        return Card.model_validate(settings), folder
    except ValidationError as error:
        first = error.errors()[0]
        where = one_line(".".join(map(str, first["loc"])), MAX_QUOTE)
        raise ValueError(f"{own}: {where} is not valid: {one_line(first['msg'])}.") from None


@functools.cache
def _warn_once(note: str) -> None:
    warnings.warn(note, stacklevel=4)


def check_kind(folder: Path) -> None:
    """Refuse a folder of another kind of model, by its configurations.

    Raises:
        ValueError: In one line, with what it is.
    """
    index = read_json(folder / "model_index.json")
    check_pipeline(index, folder)
    unet = read_json(folder / "unet" / "config.json")
    vae = read_json(folder / "vae" / "config.json")
    text = read_json(folder / "text_encoder" / "config.json")
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latents:  # inpainting 9, instructions (pix2pix) 8, upscaling 7, depth 5
        raise _other(f"a UNet of {quote(channels)} input channels for {quote(latents)}", folder)
    for name in _MORE_INPUTS:
        if unet.get(name) is not None:
            raise _other(f"a UNet with {name}={quote(unet[name])}", folder)
    reads, written = unet.get("cross_attention_dim", 1280), text.get("hidden_size", 512)
    if isinstance(reads, int) and reads != written:
        raise _other(f"a UNet that reads {reads} features from a text of {quote(written)}", folder)


def check_pipeline(index: Mapping[str, Any], where: Path | str) -> None:
    """Refuse another kind of pipeline.

    Raises:
        ValueError: In one line, with its class.
    """
    if index.get("_class_name") not in PIPELINES:
        raise _other(quote(index.get("_class_name")).strip("'"), where)
    denoiser = index.get("unet")
    if not isinstance(denoiser, list) or denoiser[-1:] != ["UNet2DConditionModel"]:
        raise _other(f"the denoiser {quote(denoiser)}", where)


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file of a model folder.

    Raises:
        ValueError: In one line, if there is none.
    """
    try:
        stored = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be readable JSON. Got {error}.") from None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} must hold a JSON object. Got {type(stored).__name__}.")
    return stored


def _other(what: str, where: Path | str) -> ValueError:
    return ValueError(
        f"model.card must be a text-to-image model like Stable Diffusion 1 or 2. Got {what} in "
        f"{where}; supported are scenes, sd15, sd21-base, sd21 and models trained from them."
    )
