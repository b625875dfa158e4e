"""Where an image shows what a text says: GEM on the vision tower of a CLIP.

Bousselham et al., *Grounding Everything*, CVPR 2024, section 3. A second stream G starts from the
tokens X before the last blocks; every block adds to it what self-self attention makes of the
block's own, unchanged tokens, and no MLP. For a block with input X, x = LN1(X), and each s of q, k
and v, per head, with norm(s) = s / ||s||:

    beta = mean over places of ||x|| / sqrt(d_h)                   adaptive temperature  (eq. 6)
    s <- norm(softmax(beta norm(s) norm(s)^T) norm(s))             `iterations` times    (eq. 4)
    O_s = softmax(beta s s^T) v                                                          (eq. 5)
    G <- G + W_O (O_q + O_k + O_v) / 3,     X <- block(X)                                (eq. 7)
    z = norm(W_P LN_post(G)),   similarity = z y^T,             y = the texts' embeddings

The class token takes part in attention and is left out of what is returned. Le (section 3.3) makes
scores of similarities: CA = softmax over the classes of z y^T / s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import CLIPModel

from synthgen.embedded.clip import Clip

TEMPLATE = "a photo of a {}"
"""What stands around a class name (GEM; Le section 3.4)."""


@torch.no_grad()
def gem_features(
    model: CLIPModel,
    pixels: Float[Tensor, "image 3 height width"],
    *,
    blocks: int | None = None,
    iterations: int = 1,
    temperature: float | None = None,
) -> Float[Tensor, "image rows columns dim"]:
    """What each patch shows, in the space of texts, of norm 1.

    Args:
        model: A CLIP of transformers.
        pixels: Images as the model sees them; sides are multiples of its patch.
        blocks: So many of the tower's blocks, the last ones, are looked at; None: half of them
            (6 of the 12 of a ViT-B).
        iterations: Of eq. 4.
        temperature: beta of eq. 6; None: adaptive.

    Raises:
        ValueError: For sides that patches do not fill, or more blocks than there are.
    """
    vision = model.vision_model
    patch, layers = vision.embeddings.patch_size, vision.encoder.layers
    rows, columns = (side // patch for side in pixels.shape[2:])
    if (rows * patch, columns * patch) != tuple(pixels.shape[2:]):
        raise ValueError(
            f"sides must be multiples of the patch, {patch}. Got {tuple(pixels.shape[2:])}."
        )
    used = len(layers) // 2 if blocks is None else blocks
    if not 1 <= used <= len(layers):
        raise ValueError(f"blocks must be from 1 to {len(layers)}. Got {used}.")
    tokens = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))
    for layer in layers[:-used]:
        tokens = layer(tokens, None)
    stream = tokens
    for layer in layers[-used:]:
        seen = layer.layer_norm1(tokens)
        stream = stream + self_self_attention(layer.self_attn, seen, iterations, temperature)
        tokens = layer(tokens, None)
    dense = model.visual_projection(vision.post_layernorm(stream[:, 1:]))
    found: Tensor = F.normalize(dense, dim=-1).view(len(pixels), rows, columns, -1)
    return found


def self_self_attention(
    attention: Any,
    tokens: Float[Tensor, "image token dim"],
    iterations: int = 1,
    temperature: float | None = None,
) -> Float[Tensor, "image token dim"]:
    """Eq. 4 to 6 and the mean of eq. 7, with the weights of an attention layer of a CLIP."""
    heads, width = attention.num_heads, attention.head_dim
    projected = [
        layer(tokens).unflatten(2, (heads, width)).transpose(1, 2)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    values = projected[2]
    beta: Tensor | float = 0.0 if temperature is None else temperature
    if temperature is None:
        beta = tokens.norm(dim=-1).mean(1)[:, None, None, None] * width**-0.5  # eq. 6
    total = torch.zeros_like(values)
    for own in projected:
        for _ in range(iterations):
            own = F.normalize(own, dim=-1)
            own = (beta * own @ own.mT).softmax(-1) @ own  # eq. 4
        own = F.normalize(own, dim=-1)
        total += (beta * own @ own.mT).softmax(-1) @ values / 3  # eq. 5, 7
    joined: Tensor = attention.out_proj(total.transpose(1, 2).flatten(2))
    return joined


def gem(
    clip: Clip,
    image: UInt8[np.ndarray, "height width 3"],
    texts: Sequence[str] | Float[Tensor, "cls dim"],
    *,
    side: int | None = None,
    blocks: int | None = None,
    iterations: int = 1,
) -> Float[Tensor, "cls rows columns"]:
    """Cosine of each patch of an image to each text.

    Args:
        clip: `Clip` of a local folder.
        image: RGB; seen as a square, as Le resizes.
        texts: What may be in it, a class as `TEMPLATE` has it; or their embeddings.
        side: Pixels that the model sees it at, in whole patches; None: twice what it was trained
            at (448 of a CLIP of 224).
        blocks: See `gem_features`.
        iterations: See `gem_features`.
    """
    vision = clip.model.config.vision_config
    patch = vision.patch_size
    whole = max(1, round((side or 2 * vision.image_size) / patch)) * patch
    pixels = clip.pixels([torch.from_numpy(image)], (whole, whole))
    dense = gem_features(clip.model, pixels, blocks=blocks, iterations=iterations)[0]
    embedded = texts if isinstance(texts, Tensor) else clip.texts(texts)
    similarity: Tensor = torch.einsum("hwd,cd->chw", dense, embedded)
    return similarity.cpu()
