"""Class heatmaps: cross-attention of the image to the tokens of each class.

A class of several tokens takes the mean of its tokens' maps (LS). In datasets the keys come from
a text that names all classes, since published captions name fewer than half of theirs; queries
are those of the real pass, so the image does not change. Layers are resized to the largest grid
with weights inversely proportional to their grids (LS, cross-attention maps).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from synthgen.config import LabelConfig
from synthgen.diffusion.probabilities import Attribution
from synthgen.prompts import attribution_text, class_token_spans
from synthgen.prompts.mentions import mentioned_classes
from synthgen.types import Heatmaps, Prompt

Source = Literal["classes", "prompt", "caption"]
START = 0
"""Position of the start-of-text token."""


def class_attribution(
    pipeline: Any, prompts: Sequence[Prompt], texts: Sequence[str], source: Source
) -> Attribution | None:
    """The tokens whose cross-attention makes the heatmaps of a batch; None without classes."""
    if not any(prompt.class_names for prompt in prompts):
        return None
    read = [attributed_text(p, t, source) for p, t in zip(prompts, texts, strict=True)]
    pairs = zip(read, (prompt.class_names for prompt in prompts), strict=True)
    groups = [class_tokens(pipeline.tokenizer, text, names) for text, names in pairs]
    if source == "prompt":
        return Attribution(groups)
    states, _ = pipeline.encode_prompt(
        read, pipeline._execution_device, 1, do_classifier_free_guidance=False
    )
    return Attribution(groups, states)


def class_tokens(tokenizer: Any, text: str, names: Sequence[str]) -> list[tuple[int, ...]]:
    """Token positions of each class and, behind them, of the start of the text.

    No position for a word that the text encoder does not know: its map would be any word's.
    """
    spans = class_token_spans(tokenizer, text, names, unknown=False)
    return [*(spans[name] for name in names), (START,)]


def prompt_tokens(
    tokenizer: Any, texts: Sequence[str], names: Sequence[str]
) -> list[list[tuple[int, ...]]]:
    """`class_tokens` of the same classes in every prompt.

    Raises:
        ValueError: In one line, for a class that a prompt does not name.
    """
    groups = [class_tokens(tokenizer, text, names) for text in texts]
    for text, own in zip(texts, groups, strict=True):
        missing = [name for name, tokens in zip(names, own, strict=False) if not tokens]
        if missing:
            raise ValueError(
                f"classes must be named in the prompt. Got {missing[0]!r}, which {text!r:.120} "
                "does not name in words that the model knows; leave it out, or draw a prompt "
                "that names it."
            )
    return groups


def attributed_text(prompt: Prompt, text: str, source: Source) -> str:
    """The text whose tokens stand for the classes; the image is drawn from ``text`` all the same.

    Args:
        prompt: Its class names are looked for.
        text: What the image is drawn from.
        source: ``prompt``: that text; a class that it does not name has a map of zeros.
            ``caption``: that text and, behind it, the classes that it does not name (as Dataset
            Diffusion draws). ``classes``: the class names alone.

    >>> attributed_text(Prompt("0", "a busy street", ("car",)), "a busy street", "caption")
    'a busy street; car'
    """
    if source == "classes" or not text:
        return attribution_text(prompt.class_names)
    unnamed = set(prompt.class_names) - set(mentioned_classes(text, prompt.class_names))
    if source == "prompt" or not unnamed:
        return text
    return f"{text}; {attribution_text([c for c in prompt.class_names if c in unnamed])}"


def check_class_tokens(
    tokenizer: Any, prompts: Sequence[Prompt], texts: Sequence[str], labeling: LabelConfig
) -> None:
    """Refuse to label prompts with classes that no token stands for.

    Raises:
        ValueError: In one line, with the first such prompt and class.
    """
    for prompt, drawn in zip(prompts, texts, strict=True):
        text = attributed_text(prompt, drawn, labeling.text)
        spans = class_token_spans(tokenizer, text, prompt.class_names)
        missing = [name for name in prompt.class_names if not spans[name]]
        if missing:
            raise ValueError(
                f"labeling.text={labeling.text} must name every class of a prompt within "
                f"{tokenizer.model_max_length} tokens. Got no token for {missing[0]!r} in "
                f"{_where(prompt)}; " + _REMEDY[labeling.text]
            )


def _where(prompt: Prompt) -> str:
    return f"prompt {prompt.id}" if prompt.photo is None else f"{prompt.photo.name!r:.80}"


_REMEDY: Mapping[str, str] = {
    "prompt": "name it there, or set labeling.text=caption.",
    "caption": "shorten it, or set labeling.text=classes.",
    "classes": "give it fewer classes.",
}


def class_heatmaps(
    maps: Mapping[str, Float[Tensor, "batch _pos group"]],
    grids: Mapping[str, tuple[int, int]],
    names: Sequence[tuple[str, ...]],
) -> list[Heatmaps | None]:
    """Heatmaps of each image, from maps of its classes and, behind them, of the text's start."""
    if not maps:
        return [None] * len(names)
    merged = merge_layers({name: value.mT for name, value in maps.items()}, grids)
    return [
        Heatmaps(own, merged[image, : len(own)], merged[image, len(own)]) if own else None
        for image, own in enumerate(names)
    ]


def merge_layers(
    maps: Mapping[str, Float[Tensor, "batch group _pos"]],
    grids: Mapping[str, tuple[int, int]],
) -> Float[Tensor, "batch group height width"]:
    """Weighted mean over layers on the largest grid, weights proportional to 1 / grid side.

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
