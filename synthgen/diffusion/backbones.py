"""Loading a diffusion model: one pipeline per process and configuration, with its identity.

Weights are safetensors only and are checked against the card's hashes before they are read.
What a model is can be said without them: the same pipeline is built with no networks in it, so
that diffusers fills in the scheduler's defaults as it does for a run.
LoRA weights are merged into the model's own, so that fused projections include them and the
hooks of `attention` meet plain layers. ``torch.compile`` is applied to the residual blocks and
feed-forward layers, which hold most of the work and none of the hooked modules: a hook inside a
compiled region would break its graph or, worse, be traced away.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
import string
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import constants as hub
from packaging.version import Version
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig
from transformers.utils import logging as transformers_logging

from synthgen.config import CaptureConfig, ModelConfig
from synthgen.devices import pick_device
from synthgen.diffusion.cards import (
    Card,
    check_kind,
    check_pipeline,
    file_sha256,
    find_card,
    model_files,
    only_variant,
    verify_sha256,
)
from synthgen.registry import is_plug_in, resolve
from synthgen.storage.untrusted import one_line

_NETWORKS = ("text_encoder", "unet", "vae")
_DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded diffusion model.

    Args:
        pipeline: diffusers' text-to-image pipeline; its scheduler is never stepped, runs make
            their own from its configuration. Loaded without weights, it has no networks.
        card: What is known of it.
        identity: ``id``, ``revision``, ``sha256`` of every file that is read and, with LoRA,
            ``lora``.
        device: Where it runs.
        dtype: In which precision.
        draw: Draws samples in place of the pipeline, from prompts, seeds and GenerationConfig;
            None for a diffusers pipeline.
        lock: Held while the model runs: hooks see every call of the UNet, whoever makes it.
        turn: Held by the shard that is drawn: of several in flight in one process the next is
            drawn while the samples of the one before are finished and published.
    """

    pipeline: Any
    card: Card
    identity: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    draw: Callable[..., Any] | None = None
    lock: Any = field(default_factory=threading.RLock, repr=False, compare=False)
    turn: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def native_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the card, or else the UNet, was made for."""
        side = self.pipeline.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        factor = self.pipeline.vae_scale_factor
        return self.card.height or height * factor, self.card.width or width * factor

    @property
    def size_step(self) -> int:
        """Pixels that height and width must be multiples of: VAE factor times UNet factor."""
        blocks = self.pipeline.unet.down_blocks
        halvings = sum(len(getattr(block, "downsamplers", None) or ()) for block in blocks)
        return int(self.pipeline.vae_scale_factor * 2**halvings)

    def resolve_capture(self, capture: CaptureConfig) -> CaptureConfig:
        """The capture with the card's layers where it names none."""
        layers = capture.layers or self.card.capture_layers
        return CaptureConfig(**{**dict(capture), "layers": layers})

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the latents of an image.

        Raises:
            ValueError: If the size does not go through VAE and UNet without remainder.
        """
        for name, size in (("height", height), ("width", width)):
            if size % self.size_step or size <= 0:
                near = max(self.size_step, round(size / self.size_step) * self.size_step)
                raise ValueError(
                    f"generation.{name} must be a multiple of {self.size_step} for "
                    f"{self.card.name}. Got {size}; try {near}."
                )
        factor = self.pipeline.vae_scale_factor
        return height // factor, width // factor


_LOADING = threading.Lock()
_ORIGINS: weakref.WeakKeyDictionary[Any, Origin] = weakref.WeakKeyDictionary()


class Origin(NamedTuple):
    """Where a model that was loaded here came from."""

    card: Card
    identity: Mapping[str, Any]


def origin_of(pipe: Any) -> Origin | None:
    """The origin of a pipeline's UNet, None for one that was not loaded here."""
    unet = getattr(pipe, "unet", None)
    return None if unet is None else _ORIGINS.get(unet)


def load_backbone(config: ModelConfig, weights: bool = True) -> Backbone:
    """The model a configuration names; loaded once per process.

    A card ``module:attribute`` names a function that makes the `Backbone` from the configuration.

    Args:
        config: Names the model, device and precision.
        weights: False leaves the networks out: enough for what the model is, its scheduler and
            its tokenizer. The weights' files are hashed and their headers read.

    Raises:
        ValueError: In one line: an unknown card, weights that are not there (offline), a hash
            that differs, LoRA weights that do not fit.
    """
    with _LOADING:
        return _load(config) if weights or is_plug_in(config.card) else _outline(config)


@functools.lru_cache(maxsize=2)
def _load(config: ModelConfig) -> Backbone:
    if is_plug_in(config.card):
        made: Backbone = resolve(config.card, {}, "model.card")(config)
        return made
    return _make(config, weights=True)


@functools.lru_cache(maxsize=2)
def _outline(config: ModelConfig) -> Backbone:
    return _make(config, weights=False)


def _make(config: ModelConfig, weights: bool) -> Backbone:
    card, folder = find_card(config.card)
    folder = folder or _hub_folder(card, config.revision)
    check_kind(folder)
    verify_sha256(folder, card.sha256)
    device = pick_device(config.device, "model.device")
    dtype = _pick_dtype(config.dtype, device)
    pipeline = _load_pipeline(folder, dtype, weights)
    identity = {
        "id": card.hub_id or card.name,
        "revision": folder.name if card.hub_id else card.revision,
        "sha256": model_files(folder),
    }
    if config.lora is not None:
        identity["lora"] = _check_lora(Path(config.lora))
    if weights:
        if config.lora is not None:
            _merge_lora(pipeline, Path(config.lora))
        pipeline.to(device)
        _apply_settings(pipeline, config)
        _ORIGINS[pipeline.unet] = Origin(card, identity)
    return Backbone(pipeline, card, identity, device, dtype)


def _hub_folder(card: Card, revision: str | None) -> Path:
    """Snapshot of a hub repository in the local cache, fetched unless offline."""
    revision = revision or card.revision
    place = {"revision": revision, "local_files_only": hub.HF_HUB_OFFLINE}
    with _reachable(card, revision):
        index = StableDiffusionPipeline.load_config(card.hub_id, **place)
    check_pipeline(index, str(card.hub_id))  # before gigabytes are fetched
    with _reachable(card, revision):
        folder = StableDiffusionPipeline.download(
            card.hub_id,
            use_safetensors=True,
            safety_checker=None,
            trust_remote_code=False,
            **place,
        )
    return Path(folder)


@contextmanager
def _reachable(card: Card, revision: str | None) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = "offline" if hub.HF_HUB_OFFLINE else str(error).splitlines()[0]
        at = f" at revision {revision}" if revision else ""
        raise ValueError(
            f"model {card.name!r} must be in the local hub cache or reachable ({card.hub_id}"
            f"{at}). Got: {reason}. Download it once where there is a network, or set "
            "model.card to the path of a local diffusers folder."
        ) from None


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Silence the loading bars of both libraries, and only those that were on."""
    noisy = [x for x in (diffusers_logging, transformers_logging) if x.is_progress_bar_enabled()]
    for library in noisy:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in noisy:
            library.enable_progress_bar()


@_without_progress_bars()
def _load_pipeline(folder: Path, dtype: torch.dtype, weights: bool) -> Any:
    """The pipeline in a folder, in evaluation mode, without safety checker or progress bars."""
    try:
        text_encoder = CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder")
        if not weights:
            _read_headers(folder)
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            **({} if weights else dict.fromkeys(_NETWORKS)),
            **{_DTYPE: dtype},
            variant=only_variant(folder),
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ValueError(
            f"the model folder must load as a Stable Diffusion pipeline from safetensors. Got "
            f"{folder}: {one_line(error)}"
        ) from None
    _check_tokenizer(pipeline.tokenizer, text_encoder, folder)
    pipeline.set_progress_bar_config(disable=True)
    for name in _NETWORKS if weights else ():
        getattr(pipeline, name).eval().requires_grad_(False)
    return pipeline


def _read_headers(folder: Path) -> None:
    """Find out whether there are weights to load, by the headers of their files.

    Raises:
        OSError: If a network has no safetensors file.
        SafetensorError: If one is cut off or no such file.
    """
    for name in _NETWORKS:
        files = sorted((folder / name).glob("*.safetensors"))
        if not files:
            raise OSError(f"no safetensors file in {folder / name}")
        for path in files:
            with safe_open(path, "pt"):
                pass


def _check_tokenizer(tokenizer: Any, encoder: CLIPTextConfig, folder: Path) -> None:
    """Refuse a tokenizer that does not tell words apart; without files transformers makes one.

    Raises:
        ValueError: If two letters have the same tokens, or texts may be too long for the model.
    """
    seen: dict[tuple[int, ...], str] = {}
    for letter in string.ascii_lowercase:
        ids = tuple(tokenizer(letter, add_special_tokens=False).input_ids)
        other = seen.setdefault(ids, letter)
        if other != letter or not ids:
            raise ValueError(
                f"the tokenizer of the model folder must tell words apart. Got the same tokens "
                f"for {other!r} and {letter!r} in {folder / 'tokenizer'}; fetch its files again."
            )
    for name, has, most in (
        ("tokens", max(tokenizer.get_vocab().values()) + 1, encoder.vocab_size),
        ("positions", tokenizer.model_max_length, encoder.max_position_embeddings),
    ):
        if has > most:
            raise ValueError(
                f"the tokenizer of the model folder must fit its text encoder of {most} {name}. "
                f"Got {has} in {folder / 'tokenizer'}; fetch its files again."
            )


_LORA_LAYER = re.compile(r"lora(_A|_down|\.down|_linear_layer\.down)\b")


def _check_lora(path: Path) -> str:
    """The sha256 of a file of LoRA weights that this installation can merge."""
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"model.lora must be an existing .safetensors file. Got {str(path)!r}.")
    if importlib.util.find_spec("peft") is None:
        raise ValueError(
            "model.lora needs the package peft. Got none: pip install 'synthgen[lora]'."
        )
    return file_sha256(path)


def _merge_lora(pipeline: Any, path: Path) -> None:
    """Merge LoRA weights into the pipeline."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL)  # it prints a line per layer
    try:
        options = {"weight_name": path.name, "use_safetensors": True, "local_files_only": True}
        tensors = pipeline.lora_state_dict(path.parent, **options)[0]
        pipeline.load_lora_weights(path.parent, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        *_, reason = str(error).strip().splitlines()[:2]  # the first layer, below a heading
        raise ValueError(
            f"model.lora must fit the model. Got {path.name}: {one_line(reason)}"
        ) from None
    finally:
        diffusers_logging.set_verbosity(verbosity)
    named = sum(bool(_LORA_LAYER.search(name)) for name in tensors)
    parts = (pipeline.unet, pipeline.text_encoder)
    found = sum(hasattr(module, "lora_A") for part in parts for module in part.modules())
    if found < max(named, 1):  # those of another model's layers are left out without a word
        raise ValueError(
            f"model.lora must fit the model. Got {path.name}, of whose {named} layers the model "
            f"has {found}; it was trained on another model."
        )
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def _apply_settings(pipeline: Any, config: ModelConfig) -> None:
    if config.attention == "sliced":
        pipeline.enable_attention_slicing("max")  # "auto" divides by 0 where a layer has 1 head
    if config.attention == "fused":
        pipeline.fuse_qkv_projections()
    if config.vae_tiling:
        pipeline.vae.enable_tiling()
    if config.compile:
        for module in pipeline.unet.modules():
            if isinstance(module, ResnetBlock2D | FeedForward):
                module.compile()


def _pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of that name; auto is float16 on a GPU and float32 on the CPU."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "float16"
    return getattr(torch, name)  # type: ignore[no-any-return]
