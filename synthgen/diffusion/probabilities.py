"""Attention probabilities ``softmax(q k^T * scale)`` from projected queries and keys.

In float32, a chunk of queries at a time, averaged over heads at once and over groups of tokens
where only those are wanted: a full map of 64 x 64 positions is never held for several heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_CHUNK = 2**24
"""Probabilities held at once (64 MB in float32)."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Whose cross-attention is kept: groups of tokens, of the prompt or of another text.

    Args:
        token_groups: Per image, groups of token positions (a class with all its tokens); a
            group's map is the mean of its tokens' maps, zero for an empty group.
        text_states: The text encoder's states of the attribution text; None reads the prompt's.
    """

    token_groups: Sequence[Sequence[Sequence[int]]]
    text_states: Float[Tensor, "batch token feature"] | None = None

    @property
    def num_groups(self) -> int:
        """Groups of the image that has most."""
        return max((len(groups) for groups in self.token_groups), default=0)

    def group_means(self, num_tokens: int) -> Float[Tensor, "batch token group"]:
        """Averaging of token maps into group maps, as a matrix."""
        means = torch.zeros(len(self.token_groups), num_tokens, self.num_groups)
        for image, groups in enumerate(self.token_groups):
            for index, tokens in enumerate(groups):
                means[image, list(tokens), index] = 1 / max(1, len(tokens))
        return means


def attention_probabilities(
    query: Float[Tensor, "batch pos feature"],
    key: Float[Tensor, "batch token feature"],
    heads: int,
    scale: float,
    key_means: Float[Tensor, "batch token group"] | None = None,
) -> Float[Tensor, "batch pos group"]:
    """Mean over heads of ``softmax(q k^T * scale)``, in float32, a chunk of queries at a time.

    Args:
        query: Outputs of ``to_q``, heads concatenated.
        key: Outputs of ``to_k``.
        heads: Number of heads.
        scale: ``1 / sqrt(head dimension)``.
        key_means: Averages keys into groups; None keeps every key.
    """
    q = split_heads(query.float(), heads)
    k = split_heads(key.float(), heads).transpose(2, 3)
    chunk = max(1, _CHUNK // (q.shape[0] * heads * k.shape[-1]))
    parts = []
    for rows in torch.split(q, chunk, dim=2):
        probabilities = (rows @ k * scale).softmax(dim=-1).mean(dim=1)
        parts.append(probabilities if key_means is None else probabilities @ key_means)
    return torch.cat(parts, dim=1)


def split_heads(
    states: Float[Tensor, "batch pos feature"], heads: int
) -> Float[Tensor, "batch head pos dim"]:
    """Undo the concatenation of the heads; a view."""
    batch, pos, feature = states.shape
    return states.view(batch, pos, heads, feature // heads).transpose(1, 2)
