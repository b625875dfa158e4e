"""Class heatmaps: cross-attention of the image to the tokens of each class.

A class of several tokens takes the mean of its tokens' maps (LS). By default the keys come from
a text of the class names alone, since published captions name fewer than half of their classes;
queries are those of the real pass, so the image does not change. Layers are resized to the
largest grid with weights inversely proportional to their grids (LS, cross-attention maps).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from synthgen.diffusion.attention import Recording
from synthgen.diffusion.probabilities import Attribution
from synthgen.prompts import attribution_text, class_token_spans
from synthgen.types import Heatmaps, Prompt


def class_attribution(
    pipeline: Any,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    source: Literal["none", "classes", "prompt"],
) -> Attribution | None:
    """The tokens whose cross-attention makes the heatmaps of a batch.

    Args:
        pipeline: diffusers pipeline with its tokenizer and text encoder.
        prompts: Their class names become the groups, in order.
        texts: What the images are drawn from.
        source: ``classes``: read through a text of the class names; ``prompt``: through their
            tokens in the drawn text, a class that it does not name having a map of zeros.
    """
    if source == "none" or not any(prompt.class_names for prompt in prompts):
        return None
    if source == "classes":
        texts = [attribution_text(prompt.class_names) for prompt in prompts]
    groups = []
    for prompt, text in zip(prompts, texts, strict=True):
        spans = class_token_spans(pipeline.tokenizer, text, prompt.class_names)
        groups.append([spans[name] for name in prompt.class_names])
    if source == "prompt":
        return Attribution(groups)
    states, _ = pipeline.encode_prompt(
        list(texts), pipeline._execution_device, 1, do_classifier_free_guidance=False
    )
    return Attribution(groups, states)


def class_heatmaps(recording: Recording, prompts: Sequence[Prompt]) -> list[Heatmaps | None]:
    """Heatmaps of every image of a batch; None for a prompt without classes."""
    maps = recording.token_maps()
    if not maps:
        return [None] * len(prompts)
    grids = {layer.name: layer.grid for layer in recording.plan.layers}
    merged = merge_layers(maps, grids)
    return [
        Heatmaps(prompt.class_names, merged[image, : len(prompt.class_names)])
        if prompt.class_names
        else None
        for image, prompt in enumerate(prompts)
    ]


def merge_layers(
    maps: Mapping[str, Float[Tensor, "batch group pos"]],
    grids: Mapping[str, tuple[int, int]],
) -> Float[Tensor, "batch group height width"]:
    """Weighted mean over layers on the largest grid, weights proportional to 1 / grid side.

    Args:
        maps: Layer name to maps.
        grids: Layer name to (height, width); the shorter side is the grid's side.

    >>> maps = {"fine": torch.zeros(1, 1, 4), "coarse": torch.ones(1, 1, 1)}
    >>> merged = merge_layers(maps, {"fine": (2, 2), "coarse": (1, 1)})
    >>> tuple(merged.shape), f"{merged[0, 0, 1, 1].item():.3f}"
    ((1, 1, 2, 2), '0.667')
    """
    largest = max((grids[name] for name in maps), key=lambda grid: grid[0] * grid[1])
    weights = {name: 1 / min(grids[name]) for name in maps}
    total = sum(weights.values())
    first = next(iter(maps.values()))
    merged = torch.zeros(*first.shape[:2], *largest, device=first.device)
    for name, value in maps.items():
        grid = value.reshape(*value.shape[:2], *grids[name])
        resized = F.interpolate(grid, size=largest, mode="bilinear", align_corners=False)
        merged += resized * (weights[name] / total)
    return merged
