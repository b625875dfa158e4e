"""What is kept of one run of a pipeline: head outputs, attention maps, texts and images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from synthgen.diffusion.heatmaps import class_heatmaps, prompt_tokens
from synthgen.diffusion.probabilities import (
    Attribution,
    attention_probabilities,
    group_means,
    pooled_self_map,
    split_heads,
)
from synthgen.diffusion.selection import Groups, Layer
from synthgen.types import HeadFeatures, Heatmaps, SelfMap


@dataclass(frozen=True, slots=True)
class Run:
    """What was inferred from the first UNet call of a run.

    Args:
        shape: Of the UNet's input: rows, channels, latent height and width.
        guided: Rows are [negative, positive]: classifier-free guidance.
        num_calls: UNet calls it will make; None where nothing says so.
        heads: Layers whose head outputs are kept, by name.
        maps: Layers whose attention to the words is kept.
        selves: Layers whose self-attention is averaged.
        head_calls: UNet calls of the head outputs; None: the last, whichever that will be.
        map_calls: The same of the maps.
        self_grid: Grid of the self-attention map, where one is kept.
    """

    shape: tuple[int, ...]
    guided: bool
    num_calls: int | None
    heads: Mapping[str, Layer]
    maps: Mapping[str, Layer]
    selves: Mapping[str, Layer]
    head_calls: Groups | None
    map_calls: Groups | None
    self_grid: tuple[int, int] | None

    @property
    def batch_size(self) -> int:
        """Images."""
        return self.shape[0] // 2 if self.guided else self.shape[0]

    @property
    def num_map_groups(self) -> int:
        """Groups of calls that the maps are averaged over."""
        return 1 if self.map_calls is None else len(self.map_calls)

    def num_bytes(self, dtype: torch.dtype, num_tokens: int) -> int:
        """Bytes that a recording will hold; means over several calls are kept in float32."""
        values = sum(x.heads * x.dim * math.prod(x.grid) for x in self.heads.values())
        sizes = [4 if len(group) > 1 else dtype.itemsize for group in self.head_calls or ((0,),)]
        maps = sum(math.prod(x.grid) for x in self.maps.values()) * num_tokens
        pooled = 0 if self.self_grid is None else math.prod(self.self_grid) ** 2
        return self.batch_size * (values * sum(sizes) + 4 * (maps + pooled))


@dataclass(slots=True)
class Recording:
    """What `record` kept of one run of a pipeline; complete once the run is over.

    ``len(recording)`` is the number of images; its methods give one result per image.

    Args:
        pipe: The pipeline.
        dtype: Of the kept head outputs.
        device: Where captures are kept; None: where the model is.
        plan: Infers the run from the arguments of its first UNet call.
        attribution: Tokens whose maps are kept; None: all of the prompt.
        run: What was inferred.
        num_calls: UNet calls seen.
        texts: What each image was drawn from; empty where that was not seen.
        size: Height and width of the images in pixels; None without a VAE.
        images: The images as the VAE decoded them; empty if it did not, or in pieces (tiling).
        tiled: Features of one given image with those of its tiles, where it was seen in tiles.
    """

    pipe: Any
    dtype: torch.dtype
    device: torch.device | None
    plan: Callable[..., Run] = field(repr=False)
    attribution: Attribution | None = None
    run: Run | None = None
    num_calls: int = 0
    texts: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    images: tuple[UInt8[np.ndarray, "height width 3"], ...] = ()
    tiled: HeadFeatures | None = None
    _heads: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _maps: dict[str, Tensor] = field(default_factory=dict)
    _pooled: list[Tensor] = field(default_factory=list)
    _decoded: list[Tensor] = field(default_factory=list)
    _encoded: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _time: float = math.inf

    def __len__(self) -> int:
        return 0 if self.run is None else self.run.batch_size

    def __repr__(self) -> str:
        if self.run is None:
            return "Recording of nothing yet"
        run = self.run
        sides = sorted({layer.grid for layer in run.heads.values()})
        groups = [(self.num_calls - 1,)] if run.head_calls is None else run.head_calls
        calls = ", ".join("+".join(map(str, group)) for group in groups)
        return (
            f"Recording of {len(self)} image(s): {sum(x.heads for x in run.heads.values())} heads "
            f"in {len(run.heads)} layers on grids {', '.join(f'{h}x{w}' for h, w in sides)}; "
            f"call {calls} of {run.num_calls or self.num_calls}"
            + ("; guided" if run.guided else "")
        )

    def features(self) -> tuple[HeadFeatures, ...]:
        """Head outputs per image; layers carry their module names, followed by ``@call`` where
        several calls were kept.

        Raises:
            RuntimeError: If the run was shorter than announced, or a layer was not reached (an
                attention processor passes ``to_out`` by).
        """
        if self.tiled is not None:
            return (self.tiled,)
        run = self._complete()
        groups = run.head_calls or ((0,),)
        values, grids = {}, {}
        for index, group in enumerate(groups):
            for layer in run.heads.values():
                key = f"{layer.name}@{group[-1]}" if len(groups) > 1 else layer.name
                values[key] = self._heads[layer.name, index].to(self.dtype)
                grids[key] = layer.grid
        return tuple(
            HeadFeatures({key: value[image] for key, value in values.items()}, grids)
            for image in range(len(self))
        )

    def token_maps(self) -> dict[str, Float[Tensor, "batch _pos group"]]:
        """Per layer the probability of each token, or of each group of the attribution: mean over
        heads and calls, of the rows of the prompt."""
        return dict(self._maps)

    def heatmaps(
        self, class_names: Sequence[str], prompts: Sequence[str] | None = None
    ) -> tuple[Heatmaps, ...]:
        """Cross-attention to classes that the prompts name, per image.

        Args:
            class_names: Looked for in the prompts' tokens.
            prompts: One per image; None: what the pipeline's text encoder read.

        Raises:
            ValueError: For a class that a prompt does not name, or where the prompts are not
                known.
        """
        names = tuple(class_names)
        texts = self.texts if prompts is None else tuple(prompts)
        if len(texts) != len(self) or not self._maps or self.attribution is not None:
            raise ValueError(
                "classes need the prompt of each image and maps of its tokens. Got "
                f"{len(texts)} prompts for {len(self)} images and maps of {len(self._maps)} "
                "layers; give prompts=[...], or record with map_layers='all'."
            )
        groups = prompt_tokens(self.pipe.tokenizer, texts, names)
        means = group_means(groups, next(iter(self._maps.values())).shape[-1])
        maps = {layer: value @ means.to(value) for layer, value in self._maps.items()}
        found = class_heatmaps(maps, self.map_grids, [names] * len(self))
        return tuple(one for one in found if one is not None)

    @property
    def map_grids(self) -> dict[str, tuple[int, int]]:
        """Grid of each layer of the maps."""
        return {name: layer.grid for name, layer in self._complete().maps.items()}

    def self_maps(self) -> tuple[SelfMap, ...]:
        """Per image the self-attention of layers, on one grid; empty if not asked for."""
        if not self._pooled or self.run is None or self.run.self_grid is None:
            return ()
        return tuple(SelfMap(values, self.run.self_grid) for values in self._pooled[0])

    def on_call(self, sample: Tensor, timestep: Any, states: Tensor) -> None:
        """Infer what the run is from its first UNet call; check that each later one fits."""
        if self.run is None:
            self.run = self.plan(sample, timestep, states)
            self.texts = _texts(self.pipe, self._encoded, states[-len(self) :])
            self._encoded.clear()
            factor = getattr(self.pipe, "vae_scale_factor", None)
            if isinstance(factor, int):
                self.size = (sample.shape[-2] * factor, sample.shape[-1] * factor)
        run, time = self.run, math.inf
        if run.num_calls is None:
            time = float(torch.as_tensor(timestep).flatten()[0])
        if self.num_calls == run.num_calls or time > self._time:
            raise RuntimeError(
                "one run of the pipeline must be made while recording. Got one more UNet call "
                f"than the {run.num_calls or self.num_calls} that it makes; what was kept is not "
                "of the calls asked for. Record each run on its own, or give num_calls."
            )
        if tuple(sample.shape) != run.shape:
            raise RuntimeError(
                f"all UNet calls of a run must be of one shape. Got {tuple(sample.shape)} after "
                f"{run.shape}; record each run on its own."
            )
        self._time, self.num_calls = time, self.num_calls + 1

    def finish(self) -> None:
        """Make images of what was decoded, if it is one whole picture for each."""
        rows = [row for part in self._decoded for row in part]
        self._decoded.clear()
        if len(rows) == len(self) and all(row.shape[1:] == self.size for row in rows):
            self.images = tuple(pixels8(row) for row in rows)

    def keep_heads(self, name: str, states: Float[Tensor, "row pos feature"]) -> None:
        """Keep a layer's concatenated head outputs if the present call is wanted."""
        layer = self._run.heads.get(name)
        for index, size in [] if layer is None else self._wanted(self._run.head_calls):
            assert layer is not None
            heads = split_heads(self.cond(states), layer.heads)
            expected = (len(self), layer.heads, math.prod(layer.grid))
            assert tuple(heads.shape[:3]) == expected, (name, heads.shape, expected)
            dtype = torch.float32 if size > 1 else self.dtype
            self._add(self._heads, (name, index), heads, size, dtype)

    def keep_token_maps(self, layer: Layer, attn: Any, query: Tensor, key: Tensor) -> None:
        """Keep a layer's cross-attention if the present call is wanted; computed only then."""
        for _, size in self._wanted(self._run.map_calls):
            q, k = self.cond(query), self.cond(key)
            means = None
            if self.attribution is not None:
                means = group_means(self.attribution.token_groups, k.shape[1]).to(q.device)
            maps = attention_probabilities(q, k, attn.heads, attn.scale, means)
            weight = size * self._run.num_map_groups
            self._add(self._maps, layer.name, maps, weight, torch.float32)

    def keep_self_map(self, layer: Layer, attn: Any, query: Tensor, key: Tensor) -> None:
        """Add a layer's map to the mean over layers, weighted by its grid's side (LS)."""
        run = self._run
        assert run.self_grid is not None
        total = sum(min(each.grid) for each in run.selves.values())
        for _, size in self._wanted(run.map_calls):
            if run.map_calls is None and layer.name == next(iter(run.selves)):
                self._pooled.clear()  # of the call before
            q, k = self.cond(query), self.cond(key)
            value = pooled_self_map(q, k, attn.heads, attn.scale, layer.grid, run.self_grid)
            value = value.to(self.device or value.device)
            if not self._pooled:
                self._pooled.append(torch.zeros_like(value))
            weight = total * size * run.num_map_groups
            self._pooled[0].add_(value, alpha=min(layer.grid) / weight)

    def cond(self, states: Float[Tensor, "row ..."]) -> Float[Tensor, "batch ..."]:
        """The conditional rows: diffusers stacks [negative, positive], under guidance only."""
        return states.detach()[-len(self) :]

    @property
    def _run(self) -> Run:
        assert self.run is not None
        return self.run

    def _wanted(self, groups: Groups | None) -> list[tuple[int, int]]:
        """Groups that the present UNet call belongs to, each with its size."""
        if groups is None:
            return [(0, 1)]
        call = self.num_calls - 1
        return [(i, len(group)) for i, group in enumerate(groups) if call in group]

    def _add(
        self, store: dict[Any, Tensor], key: Any, value: Tensor, size: int, dtype: torch.dtype
    ) -> None:
        """Copy a value (once, with its cast), or add its share to a mean over ``size`` calls."""
        device = self.device or value.device
        if size == 1:
            store[key] = torch.empty(value.shape, dtype=dtype, device=device).copy_(value)
            return
        mean = store.setdefault(key, torch.zeros(value.shape, dtype=dtype, device=device))
        mean.add_(value.to(device), alpha=1 / size)

    def _complete(self) -> Run:
        run = self.run
        if run is None:
            raise RuntimeError(
                "a recording must have a run. Got none; call the pipeline inside the with block."
            )
        groups = 1 if run.head_calls is None else len(run.head_calls)
        wanted = {(name, i) for name in run.heads for i in range(groups)}
        missing = sorted({name for name, _ in wanted - set(self._heads)})
        if missing or self.num_calls < (run.num_calls or 0):
            raise RuntimeError(
                f"all selected layers must be reached in {run.num_calls} UNet calls. Got "
                f"{self.num_calls} calls and nothing from {', '.join(missing) or 'later calls'}; "
                "check the attention processors and the number of steps, or give num_calls."
            )
        return run


def pixels8(decoded: Float[Tensor, "3 height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """What a VAE decodes, in [-1, 1], as diffusers makes an image of it."""
    image01 = (decoded.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
    found: np.ndarray = (image01 * 255).round().to(torch.uint8).cpu().numpy()
    return found


def _texts(
    pipe: Any, encoded: Sequence[tuple[Tensor, Tensor]], states: Float[Tensor, "batch token _"]
) -> tuple[str, ...]:
    """The text of each image: that whose encoding the UNet is handed; none if one is missing."""
    rows = [pair for part in encoded for pair in zip(*part, strict=True)]
    found = []
    for own in states:
        same = (i for i, row in rows if row.shape == own.shape and torch.equal(row.to(own), own))
        if (ids := next(same, None)) is None:
            return ()
        text = pipe.tokenizer.decode(ids, skip_special_tokens=True)
        again = pipe.tokenizer(text, padding="max_length", truncation=True).input_ids
        if again != ids.tolist():  # not the text, or its tokens would stand elsewhere
            return ()
        found.append(str(text))
    return tuple(found)
