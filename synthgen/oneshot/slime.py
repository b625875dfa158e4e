"""SLiMe's equations 3 to 8: from attention to class maps, and the loss of text embeddings.

    A_ca    = mean over layers of resize(S_ca)                                            (eq. 3)
    L_CE    = cross entropy of the first K maps of A_ca against the mask M'               (eq. 4)
    A_sa    = mean over layers of S_sa                                                    (eq. 5)
    S_WAS^k = sum over places p of R_ca^k[p] A_sa[p],  R_ca^k = A_ca^k on the grid of A_sa (eq. 6)
    L_MSE   = sum over classes k of |resize(S_WAS^k) - M'_k|^2                            (eq. 7)
    L       = L_CE + alpha L_MSE + beta L_LDM                                             (eq. 8)

S are softmax probabilities, averaged over heads. Eq. 6 is linear in A_sa, so each layer adds its
own sum and no map of places against places outlives a chunk of queries; under gradients a chunk
is computed again on the way back.

Where the paper leaves a choice: A_ca are probabilities, so eq. 4 takes their logarithms; the norm
of eq. 7 is a mean over places, as its name says. Undecided places (255) count in neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from synthgen.diffusion.probabilities import attention_probabilities, split_heads
from synthgen.types import IGNORE

_CHUNK = 2**23
"""Self-attention probabilities held at once (32 MB in float32)."""


@dataclass(frozen=True, slots=True)
class Projected:
    """What an attention layer makes its probabilities from in one UNet call.

    Args:
        query: Outputs of ``to_q``, heads concatenated.
        key: Outputs of ``to_k``.
        heads: Number of heads.
        scale: ``1 / sqrt(head dimension)``.
        grid: Height and width of its positions.
    """

    query: Float[Tensor, "batch pos feature"]
    key: Float[Tensor, "batch key feature"]
    heads: int
    scale: float
    grid: tuple[int, int]


def cross_maps(
    layers: Sequence[Projected], num_classes: int, size: tuple[int, int]
) -> Float[Tensor, "batch cls height width"]:
    """A_ca of the first tokens, eq. 3; differentiable.

    Args:
        layers: Cross-attention layers.
        num_classes: K, background included: class k is token k.
        size: H'' and W'', height and width of the maps.
    """
    resized = []
    for layer in layers:
        found = attention_probabilities(layer.query, layer.key, layer.heads, layer.scale)
        maps = found[..., :num_classes].mT.reshape(len(found), num_classes, *layer.grid)
        resized.append(F.interpolate(maps, size=size, mode="bilinear", align_corners=False))
    return torch.stack(resized).mean(0)


def was_maps(
    cross: Float[Tensor, "batch cls height width"], layers: Sequence[Projected]
) -> Float[Tensor, "batch cls grid_height grid_width"]:
    """S_WAS, eq. 5 and 6, on the grid of the self-attention layers; differentiable.

    Args:
        cross: A_ca.
        layers: Self-attention layers, all of one grid.

    Raises:
        ValueError: If their grids differ.
    """
    grids = sorted({layer.grid for layer in layers})
    if len(grids) != 1:
        raise ValueError(f"self-attention layers must have one grid. Got {grids}.")
    resized = F.interpolate(cross, size=grids[0], mode="bilinear", align_corners=False).flatten(2)
    total = torch.stack([_accumulate(layer, resized) for layer in layers]).mean(0)
    return total.reshape(*cross.shape[:2], *grids[0])


def _accumulate(
    layer: Projected, weights: Float[Tensor, "batch cls pos"]
) -> Float[Tensor, "batch cls pos"]:
    """Sum over places p of ``weights[p] S_sa[p]``, a chunk of places at a time."""
    query = split_heads(layer.query.float(), layer.heads)
    key = split_heads(layer.key.float(), layer.heads)
    rows = max(1, _CHUNK // (query.shape[0] * layer.heads * key.shape[2]))

    def add(some: Tensor, keys: Tensor, own: Tensor) -> Tensor:
        maps = (some @ keys.mT * layer.scale).softmax(dim=-1).mean(dim=1)
        return own @ maps

    total = torch.zeros_like(weights)
    for some, own in zip(torch.split(query, rows, 2), torch.split(weights, rows, 2), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(add, some, key, own, use_reentrant=False)
        else:
            total += add(some, key, own)
    return total


def slime_losses(
    cross: Float[Tensor, "batch cls height width"],
    was: Float[Tensor, "batch cls grid_height grid_width"],
    mask: Int[Tensor, "batch height width"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """L_CE, with the weights of appendix B, and L_MSE (eq. 4 and 7).

    Args:
        cross: A_ca.
        was: S_WAS.
        mask: M', the class of each place; 255 is undecided.
    """
    weights = class_weights(mask, cross.shape[1]).to(cross)
    logs = cross.clamp(min=1e-8).log()
    entropy = F.nll_loss(logs, mask, weights, ignore_index=IGNORE)
    known = mask != IGNORE
    truth = class_planes(mask, cross.shape[1])
    resized = F.interpolate(was, size=mask.shape[1:], mode="bilinear", align_corners=False)
    squares = (resized - truth).square().sum(1)
    return entropy, (squares * known).sum() / known.sum().clamp(min=1)


def class_weights(
    mask: Int[Tensor, "batch height width"], num_classes: int
) -> Float[Tensor, " cls"]:
    """Places per place of each class (appendix B); 0 for a class without any.

    >>> class_weights(torch.tensor([[[0, 0, 0, 1, 255]]]), 3).tolist()
    [1.3333333730697632, 4.0, 0.0]
    """
    counts = class_planes(mask, num_classes).sum((0, 2, 3))
    return torch.where(counts > 0, counts.sum() / counts.clamp(min=1), 0.0)


def class_planes(
    mask: Int[Tensor, "batch height width"], num_classes: int
) -> Float[Tensor, "batch cls height width"]:
    """M'_k: 1 where a place is of a class, 0 elsewhere and where it is undecided.

    >>> class_planes(torch.tensor([[[0, 1, 255]]]), 2).tolist()
    [[[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]]
    """
    classes = torch.arange(num_classes, device=mask.device)[:, None, None]
    return (mask[:, None] == classes).float()


def drop_faint(
    cross: Float[Tensor, "cls height width"],
    was: Float[Tensor, "cls grid_height grid_width"],
    least: float,
) -> Float[Tensor, "cls grid_height grid_width"]:
    """S_WAS with zeros for classes whose A_ca never exceeds ``least`` (.2, appendix B).

    >>> cross, was = torch.tensor([[[0.9]], [[0.1]]]), torch.ones(2, 1, 1)
    >>> drop_faint(cross, was, 0.2).flatten().tolist()
    [1.0, 0.0]
    """
    strong = cross.flatten(1).amax(1) > least
    return was * strong[:, None, None]


def mask_on_grid(
    mask: Int[Tensor, "height width"], num_classes: int, size: tuple[int, int]
) -> Int[Tensor, "grid_height grid_width"]:
    """M': the class that most of each cell has; none of the mask's classes is lost.

    A class that wins nowhere, such as a part of one pixel, gets the cell of which it has most.

    >>> mask = torch.tensor([[0, 0, 1, 1], [0, 2, 1, 255]])
    >>> mask_on_grid(mask, 3, (1, 2)).tolist()
    [[2, 1]]
    """
    rows = torch.where(mask == IGNORE, num_classes, mask)
    planes = F.one_hot(rows, num_classes + 1).movedim(2, 0).float()
    share = F.adaptive_avg_pool2d(planes, size)
    found = share.argmax(0)
    for cls in torch.unique(rows).tolist():
        if cls < num_classes and not (found == cls).any():
            found.view(-1)[share[cls].argmax()] = cls
    return torch.where(found == num_classes, IGNORE, found)
