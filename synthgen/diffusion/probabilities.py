"""Attention probabilities ``softmax(q k^T * scale)`` from projected queries and keys.

In float32, a chunk of queries at a time, averaged over heads at once and over groups of tokens
where only those are wanted: a full map of 64 x 64 positions is never held for several heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_CHUNK = 2**24
"""Probabilities held at once (64 MB in float32)."""

TokenGroups = Sequence[Sequence[Sequence[int]]]
"""Per image, groups of token positions: a class with all its tokens."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Whose cross-attention is kept: groups of tokens, of the prompt or of another text.

    Args:
        token_groups: A group's map is the mean of its tokens' maps, zero for an empty group.
        text_states: The text encoder's states of the attribution text; None reads the prompt's.
    """

    token_groups: TokenGroups
    text_states: Float[Tensor, "batch token feature"] | None = None


def group_means(groups: TokenGroups, num_tokens: int) -> Float[Tensor, "batch token group"]:
    """Averaging of token maps into group maps, as a matrix."""
    means = torch.zeros(len(groups), num_tokens, max(map(len, groups)))
    for image, own in enumerate(groups):
        for index, tokens in enumerate(own):
            means[image, list(tokens), index] = 1 / max(1, len(tokens))
    return means


def attention_probabilities(
    query: Float[Tensor, "batch pos feature"],
    key: Float[Tensor, "batch token feature"],
    heads: int,
    scale: float,
    key_means: Float[Tensor, "batch token group"] | None = None,
) -> Float[Tensor, "batch pos group"]:
    """Mean over heads of ``softmax(q k^T * scale)``, in float32.

    Args:
        query: Outputs of ``to_q``, heads concatenated.
        key: Outputs of ``to_k``.
        heads: Number of heads.
        scale: ``1 / sqrt(head dimension)``.
        key_means: Averages keys into groups; None keeps every key.
    """
    if key_means is None:
        return _chunked(query, key, heads, scale, lambda rows: rows)
    return _chunked(query, key, heads, scale, lambda rows: rows @ key_means)


def pooled_self_map(
    query: Float[Tensor, "batch pos feature"],
    key: Float[Tensor, "batch pos feature"],
    heads: int,
    scale: float,
    grid: tuple[int, int],
    target: tuple[int, int],
) -> Float[Tensor, "batch query key"]:
    """Self-attention of one layer, mean over heads, on another grid; rows sum to 1 (LS).

    A finer layer is averaged over the queries of each target cell and summed over its keys; of a
    coarser one the keys are upsampled bilinearly and the queries repeated. Arguments as in
    `attention_probabilities`; grids are (height, width).
    """

    def onto_target(rows: Tensor) -> Tensor:
        resized = _resize(rows.reshape(*rows.shape[:-1], *grid), target).flatten(-2)
        return resized / resized.sum(dim=-1, keepdim=True)

    by_key = _chunked(query, key, heads, scale, onto_target).transpose(1, 2)
    by_key = by_key.reshape(*by_key.shape[:-1], *grid)
    return _resize(by_key, target, repeat=True).flatten(-2).transpose(1, 2).contiguous()


def _resize(maps: Tensor, target: tuple[int, int], repeat: bool = False) -> Tensor:
    """Areas are averaged when shrinking; when growing, interpolated or repeated."""
    if tuple(maps.shape[-2:]) == target:
        return maps
    if maps.shape[-2] > target[0]:
        return F.adaptive_avg_pool2d(maps, target)
    if repeat:
        return F.interpolate(maps, size=target, mode="nearest")
    return F.interpolate(maps, size=target, mode="bilinear", align_corners=False)


def _chunked(
    query: Tensor, key: Tensor, heads: int, scale: float, reduce: Callable[[Tensor], Tensor]
) -> Tensor:
    """Mean over heads of a chunk of queries at a time, reduced over keys before the next."""
    q = split_heads(query.float(), heads)
    k = split_heads(key.float(), heads).transpose(2, 3)
    chunk = max(1, _CHUNK // (q.shape[0] * heads * k.shape[-1]))
    parts = [
        reduce((rows @ k * scale).softmax(dim=-1).mean(dim=1))
        for rows in torch.split(q, chunk, dim=2)
    ]
    return torch.cat(parts, dim=1)


def split_heads(
    states: Float[Tensor, "batch pos feature"], heads: int
) -> Float[Tensor, "batch head pos dim"]:
    """Undo the concatenation of the heads; a view."""
    batch, pos, feature = states.shape
    return states.view(batch, pos, heads, feature // heads).transpose(1, 2)
