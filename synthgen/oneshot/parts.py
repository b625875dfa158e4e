"""Parts that were learned: text embeddings, what they belong to, and how images are read by them.

`Parts` called with an image gives its label map: one UNet call at the timestep of the settings,
WAS maps of background and parts (eq. 6), the largest one at each pixel. With ``clusters`` the
maps are averaged over the connected clusters that `segment` finds in the same UNet call, of the k
that are at least half of the largest, so that a part is a union of masks.

A folder of parts holds ``parts.safetensors`` and ``parts.json``. Embeddings mean something to the
model that they were learned on alone: values of its weights are kept, and another is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from synthgen.diffusion.attention import record
from synthgen.diffusion.backbones import origin_of
from synthgen.diffusion.generate import load_model
from synthgen.labeling.clusters import cluster_means
from synthgen.labeling.decide import not_found
from synthgen.labeling.refine import reads_uncertainty, refine
from synthgen.labeling.scores import attention_rows, mask_means, shares, upsample
from synthgen.oneshot.attending import ClassReader, resized
from synthgen.oneshot.settings import FOUND_BY, PartSettings
from synthgen.oneshot.slime import drop_faint
from synthgen.registry import near_miss
from synthgen.segmentation.refine import SPECK, join_specks
from synthgen.segmentation.segment import segment
from synthgen.storage.publish import dump_json, open_storage
from synthgen.storage.untrusted import one_line, parse_object
from synthgen.types import Heatmaps, LabelMap, Sample, Segmentation

FORMAT = 1
"""Of the files in a folder of parts."""

TENSORS, ABOUT = "parts.safetensors", "parts.json"
PATCH = 400 / 512
"""Side of a corner that is looked at by itself, as a share of the image's (appendix B)."""

_TOLERANCE = 0.01
"""Difference of weights, as a share of their size, up to which models are one: half precision
makes .004."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Parts:
    """Parts that were learned from examples (`learn_parts`); call it with an image.

    Args:
        pipe: The pipeline that they were learned on.
        names: Of the parts; part i is ``names[i - 1]``, 0 is background.
        embeddings: Text embedding of each part.
        settings: How they were learned, and are found.
        losses: Per epoch the mean loss, its terms and, where it was asked for, the validation.
    """

    pipe: Any
    names: tuple[str, ...]
    embeddings: Float[Tensor, "part feature"]
    settings: PartSettings
    losses: tuple[Mapping[str, float], ...] = ()

    def __repr__(self) -> str:
        return f"Parts {', '.join(self.names)} after {len(self.losses)} epochs"

    @property
    def digest(self) -> str:
        """A hash of the embeddings."""
        return hashlib.sha256(self.embeddings.cpu().numpy().tobytes()).hexdigest()

    def __call__(
        self,
        image: Any,
        *,
        masks: Segmentation | None = None,
        **changes: Any,
    ) -> LabelMap:
        """Label map of an image: 0 background, i the i-th part, and how sure that is.

        Args:
            image: RGB array of 8 bits, or an image of PIL, of any size.
            masks: What `segment` made of it, for ``clusters``; None: it is segmented.
            changes: Of `FOUND_BY`: timestep, was, presence, noises, patches, clusters, refiner, ….

        Raises:
            ValueError: For another setting, or an image that is none.
        """
        settings = self.settings_for(changes)
        pixels = rgb(image)
        recorded = None
        if settings.clusters and masks is None:
            origin = origin_of(self.pipe)
            layers = None if origin is None else origin.card.capture_layers
            with record(
                self.pipe.unet, layers, map_layers=None, num_calls=1, guided=False
            ) as recorded:
                maps = self._read(pixels, settings)
        else:
            maps = self._read(pixels, settings)
        if recorded is not None:
            masks = segment(recorded.features()[0], image=pixels)
        return self._decide(pixels, upsample(maps, pixels.shape[:2]), masks, settings)

    def maps(self, image: Any, **changes: Any) -> Float[np.ndarray, "cls height width"]:
        """The class maps that a label map is the argmax of, background first."""
        pixels = rgb(image)
        return upsample(self._read(pixels, self.settings_for(changes)), pixels.shape[:2])

    def attend(self, sample: Sample) -> Sample:
        """A sample of a dataset with the class maps of its image as heatmaps."""
        maps = torch.from_numpy(self._read(sample.image, self.settings))
        return replace(sample, heatmaps=Heatmaps(self.names, maps[1:], maps[0]))

    def label(self, sample: Sample, masks: Segmentation) -> LabelMap:
        """The label map of a sample that has such heatmaps; the model is not needed any more."""
        assert sample.heatmaps is not None
        maps = upsample(attention_rows(sample.heatmaps), sample.image.shape[:2])
        return self._decide(sample.image, maps, masks, self.settings)

    def settings_for(self, changes: Mapping[str, Any]) -> PartSettings:
        """The settings with changes to how parts are found.

        Raises:
            ValueError: For one of those that they were learned with.
        """
        for name in changes:
            if name not in FOUND_BY:
                raise ValueError(
                    f"what is changed must be one of {', '.join(FOUND_BY)}. Got {name!r:.40}."
                    + near_miss(name, list(FOUND_BY))
                )
        return self.settings.changed(**changes)

    @torch.no_grad()
    def _read(
        self, pixels: UInt8[np.ndarray, "height width 3"], settings: PartSettings
    ) -> Float[np.ndarray, "cls grid_height grid_width"]:
        """Class maps on a grid, averaged over noises and patches."""
        reader = ClassReader(self.pipe, self.settings)
        states = class_states(reader, self.settings, self.names, self.embeddings)
        size = reader.working_size((pixels.shape[0], pixels.shape[1]))
        image01 = resized(pixels, size)
        if not settings.patches:
            return self._read_view(reader, states, image01, settings).numpy()
        total: Tensor | None = None
        count = torch.zeros(1)
        for window in corner_windows(size):
            view = F.interpolate(image01[:, *window][None], size=size, mode="bilinear")[0]
            found = self._read_view(reader, states, view, settings)
            grid = found.shape[1:]
            if total is None:
                total, count = torch.zeros_like(found), torch.zeros(grid)
            place = tuple(
                slice(round(part.start * cells / side), round(part.stop * cells / side))
                for part, cells, side in zip(window, grid, size, strict=True)
            )
            inner = (place[0].stop - place[0].start, place[1].stop - place[1].start)
            total[:, *place] += F.interpolate(found[None], size=inner, mode="area")[0]
            count[place] += 1
        assert total is not None
        return (total / count).numpy()

    def _read_view(
        self,
        reader: ClassReader,
        states: Float[Tensor, "1 token feature"],
        image01: Float[Tensor, "3 height width"],
        settings: PartSettings,
    ) -> Float[Tensor, "cls grid_height grid_width"]:
        """Class maps of one view: the mean over timesteps and noises, and the rule of .2."""
        latents = reader.encode(image01).expand(settings.noises, -1, -1, -1)
        seeds = [settings.seed + noise for noise in range(settings.noises)]
        found = [
            reader(latents, timestep, seeds, states, len(self.names) + 1)
            for timestep in (settings.timestep, *settings.more_timesteps)
        ]
        cross = torch.cat([one.cross for one in found]).mean(0)
        was = torch.cat([one.was for one in found]).mean(0)
        if settings.rescale:
            low, high = was.amin((1, 2), True), was.amax((1, 2), True)
            first, last = cross.amin((1, 2), True), cross.amax((1, 2), True)
            was = first + (was - low) / (high - low) * (last - first)
        return drop_faint(cross, was if settings.was else cross, settings.presence).float().cpu()

    def _decide(
        self,
        pixels: UInt8[np.ndarray, "height width 3"],
        maps: Float[np.ndarray, "cls height width"],
        masks: Segmentation | None,
        settings: PartSettings,
    ) -> LabelMap:
        """The largest map at each pixel, its share as the score; then borders."""
        if settings.clusters and masks is not None:
            fine = [2 * k >= max(masks.ks) for k in masks.ks]  # coarse ones join parts
            ks = [k for k, kept in zip(masks.ks, fine, strict=True) if kept]
            maps = cluster_means(maps, masks.labels[fine], ks).astype(np.float32)
        share = shares(maps)
        semantic = share.argmax(0).astype(np.uint8)
        if settings.refiner != "none":
            if reads_uncertainty(settings.refiner):
                raise ValueError(
                    "refiner must be one that needs no upsampling error here: none, pamr or "
                    f"color-majority. Got {settings.refiner!r}."
                )
            planes = dict(enumerate(share))
            semantic = refine(settings.refiner, semantic, pixels, planes)
            semantic = join_specks(semantic, SPECK * semantic.size)
        own = np.take_along_axis(share, semantic[None].astype(np.int64), 0)[0]
        of_masks = (
            np.zeros((0, len(share))) if masks is None else shares(mask_means(maps, masks).T).T
        )
        return LabelMap(
            class_names=self.names,
            semantic=semantic,
            scores=own.astype(np.float32),
            mask_labels=of_masks.argmax(1).astype(np.uint8),
            mask_scores=of_masks.max(1).astype(np.float32)
            if len(of_masks)
            else np.zeros(0, np.float32),
            not_found=not_found(self.names, semantic),
        )

    def save(self, folder: str | Path) -> None:
        """Write ``parts.safetensors`` and ``parts.json``; each is whole or not there."""
        reader = ClassReader(self.pipe, self.settings)
        tensors = {"embeddings": self.embeddings.cpu(), "model": fingerprint(reader)}
        about = {
            "format": FORMAT,
            "names": list(self.names),
            "model": model_identity(self.pipe),
            "cross_layers": list(reader.cross_names),
            "self_layers": list(reader.self_names),
            "settings": self.settings.model_dump(mode="json"),
            "losses": [dict(row) for row in self.losses],
        }
        storage = open_storage(folder)
        storage.publish_bytes(save({k: v.contiguous() for k, v in tensors.items()}), TENSORS)
        storage.publish_bytes(dump_json(about), ABOUT)


def part_names(folder: str | Path) -> tuple[str, ...]:
    """Names of the parts in a folder; reads no weights.

    Raises:
        ValueError: In one line, if there are none.
    """
    about = open_storage(folder).read(ABOUT)
    try:
        return tuple(str(name) for name in parse_object(about or b"")["names"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{one_line(folder, 80)} must hold {ABOUT} with names. Got none; make it by synthgen "
            "oneshot fit, or Parts.save."
        ) from None


def load_parts(folder: str | Path, pipe: Any = None) -> Parts:
    """Parts that were saved in a folder.

    Args:
        folder: Written by `Parts.save` or ``synthgen oneshot fit``.
        pipe: The pipeline that they were learned on; None: it is loaded by its name.

    Raises:
        ValueError: In one line, if there are none, or of another model.
    """
    storage = open_storage(folder)
    tensors, about = storage.read(TENSORS), storage.read(ABOUT)
    where = one_line(folder, 80)
    if tensors is None or about is None:
        raise ValueError(
            f"{where} must hold {TENSORS} and {ABOUT}. Got no such files; make them by "
            "synthgen oneshot fit, or Parts.save."
        )
    try:
        known = parse_object(about)
        stored = load(tensors)
        if known["format"] != FORMAT:
            raise ValueError(f"format {known['format']!r:.20}; this version reads {FORMAT}")
        names = tuple(str(name) for name in known["names"])
        layers = {key: tuple(known[key]) for key in ("cross_layers", "self_layers")}
        settings = PartSettings.model_validate(known["settings"]).changed(**layers)
        losses = tuple(known["losses"])
        embeddings, model = stored["embeddings"], stored["model"]
        identity = dict(known["model"])
        if embeddings.ndim != 2 or len(embeddings) != len(names):
            raise ValueError(f"{len(embeddings)} embeddings of {len(names)} parts")
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"{where} must hold parts that synthgen saved. Got: {one_line(error)}."
        ) from None
    found = load_model(identity["id"]) if pipe is None else pipe
    reader = ClassReader(found, settings) if _has_layers(found, settings) else None
    if reader is None or not _same_model(model, fingerprint(reader)):
        raise ValueError(
            f"parts in {where} must be found by the model that they were learned on, "
            f"{model_name(identity)}. Got {model_name(model_identity(found))}, whose weights are "
            "others; load that model, or learn the parts again."
        )
    return Parts(found, names, embeddings.float(), settings, losses)


def class_states(
    reader: ClassReader,
    settings: PartSettings,
    names: Sequence[str],
    embeddings: Float[Tensor, "part feature"] | None = None,
) -> Float[Tensor, "1 token feature"]:
    """Text embeddings in which token 0 is the background and token i the i-th part.

    Args:
        reader: Of the model.
        settings: The text that all other tokens come from.
        names: Of the parts.
        embeddings: Of the parts; None: those of the text.
    """
    words = names if settings.text == "names" else [settings.text] * (len(names) + 1)
    states = reader.text_states(" ".join(words))
    if embeddings is None:
        return states
    return place_parts(states, embeddings)


def place_parts(
    states: Float[Tensor, "1 token feature"], embeddings: Float[Tensor, "part feature"]
) -> Float[Tensor, "1 token feature"]:
    """The text's states with those of the parts behind the first."""
    own = embeddings[None].to(states)
    return torch.cat([states[:, :1], own, states[:, 1 + own.shape[1] :]], dim=1)


def corner_windows(size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Four overlapping corners, `PATCH` of the sides each.

    >>> corner_windows((512, 512))[1]
    (slice(0, 400, None), slice(112, 512, None))
    """
    sides = [(slice(0, round(PATCH * s)), slice(s - round(PATCH * s), s)) for s in size]
    return [(rows, columns) for rows in sides[0] for columns in sides[1]]


def fingerprint(reader: ClassReader) -> Float[Tensor, "layer value"]:
    """A few weights of each cross-attention layer that is read, whatever their precision."""
    rows = []
    for name in reader.cross_names:
        attn = reader.pipe.unet.get_submodule(name.removesuffix("attn1") + "attn2")
        flat = attn.to_k.weight.detach().flatten()
        places = torch.linspace(0, len(flat) - 1, 64, device=flat.device).long()
        rows.append(flat[places].float().cpu())
    return torch.stack(rows)


def _same_model(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().mean() <= _TOLERANCE * one.abs().mean())


def _has_layers(pipe: Any, settings: PartSettings) -> bool:
    try:
        ClassReader(pipe, settings)
    except ValueError:
        return False
    return True


def model_identity(pipe: Any) -> dict[str, str | None]:
    """Id and revision of a pipeline's model, as far as they are known."""
    origin = origin_of(pipe)
    if origin is not None:
        return {name: origin.identity[name] for name in ("id", "revision")}
    name = str(getattr(getattr(pipe, "config", None), "_name_or_path", "") or "")
    return {"id": name if name.count("/") == 1 else type(pipe).__name__, "revision": None}


def model_name(identity: Mapping[str, Any]) -> str:
    """An identity for people."""
    at = f" at {one_line(identity['revision'], 40)}" if identity.get("revision") else ""
    return f"{one_line(identity.get('id'), 80)}{at}"


def rgb(image: Any) -> UInt8[np.ndarray, "height width 3"]:
    """An image as an array.

    Raises:
        ValueError: If it is not RGB of 8 bits.
    """
    found = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or not found.size:
        raise ValueError(
            f"image must be RGB of 8 bits, or of PIL. Got {found.dtype} of shape {found.shape}."
        )
    return found
