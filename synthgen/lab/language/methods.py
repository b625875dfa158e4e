"""Classes at pixels from attention of patches to words, alone or with what belongs together.

Le, *Language-based segmentation* (LS), section 3.4. CA is a class's score at each place: of GEM
(`attention_to`), or of a diffusion model's cross-attention to a prompt that names the classes.

    method 1   class of j = argmax over c of CA[j, c]                                    (eq. 1)
    method 2   the same of AGG = SA^T CA                                                 (eq. 2)
    method 3   the same for a cluster K of the mean over its pixels of CA[j, c]          (eq. 3)

`METHODS` has the paper's names; with a W behind it a method chooses among the classes that the
image shows. The background is one more row of CA: for GEM what is left, for a diffusion model the
start-of-text token's, by LS as it is, or as this package weighs it against its own extremes
(`labeling.scores`). Any segmenter of `registry.SEGMENTERS` makes clusters: ``clusters:ward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from synthgen.labeling.clusters import cluster_means
from synthgen.labeling.decide import decision_scores
from synthgen.labeling.propagation import propagate
from synthgen.labeling.scores import geometric_midpoint, score_classes, upsample
from synthgen.prompts.mentions import spoken
from synthgen.prompts.tokens import truncated_words
from synthgen.registry import SEGMENTERS, check_name, near_miss
from synthgen.types import Heatmaps, SelfMap

Rows = Float[np.ndarray, "row grid_height grid_width"]
"""Scores of places: row 0 the background's where there is one, then those of the classes."""

REST = 0.8
"""What the background's score lacks of all that no class has (LS section 4.1)."""

TRUTH = "truth"
CLUSTERS = "clusters:"


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table.

    Args:
        scores: ``gem``, or ``sd``: whose CA.
        joined: "" (method 1), ``self`` (2), the row of SEGMENTERS, or ``truth``, whose clusters
            are named (3).
        known: The image's classes are known.
    """

    scores: str
    joined: str
    known: bool


METHODS: dict[str, tuple[str, str]] = {
    "GEM": ("gem", ""),
    "AggGEM": ("gem", "self"),
    "DiffSegClust": ("gem", "diffseg"),
    "SpecClust": ("gem", "spectral"),
    "HeadClust": ("gem", "per-head"),
    "GTClust": ("gem", TRUTH),
    "AggSD": ("sd", "self"),
}
"""Names of the paper, and HeadClust for this package's own clusters, to score and clusters."""


def read_method(name: str) -> Method:
    """What a name means.

    Raises:
        ValueError: In one line, for a name of nothing.

    >>> read_method("AggGEMW")
    Method(scores='gem', joined='self', known=True)
    >>> read_method("clusters:ward").joined
    'ward'
    """
    if name.startswith(CLUSTERS):
        row = name.removeprefix(CLUSTERS)
        known = row.endswith("W") and row[:-1] in SEGMENTERS
        check_name(row[:-1] if known else row, SEGMENTERS)
        return Method("gem", row[:-1] if known else row, known)
    bare = name if name in METHODS else name.removesuffix("W")
    if bare not in METHODS:
        raise ValueError(
            f"methods must be of {', '.join(METHODS)}, with a W behind it where an image's "
            f"classes are known, or '{CLUSTERS}NAME' of a segmenter. Got {name!r:.60}."
            f"{near_miss(name, [*METHODS])}"
        )
    scores, joined = METHODS[bare]
    return Method(scores, joined, bare != name or scores == "sd")


def attention_to(
    similarity: Float[Tensor, "cls rows columns"],
    temperature: float,
    background: bool,
    lacking: float = REST,
    places: Float[Tensor, "text rows columns"] | None = None,
) -> Rows:
    """CA of GEM: softmax over the classes of cosines / temperature.

    The background, row 0, is what no class has: 1 - max over the classes - .8, not below 0 (LS).
    Where texts stand for it (``places``, cosines), they take part in the softmax, and it is the
    largest of their scores.

    >>> same = torch.zeros(2, 1, 1)
    >>> attention_to(same, 0.1, True).ravel().tolist()
    [0.0, 0.5, 0.5]
    >>> attention_to(same, 0.1, True, places=same).ravel().tolist()
    [0.25, 0.25, 0.25]
    """
    num = len(similarity)
    given = similarity if places is None else torch.cat([similarity, places])
    scores = (given / temperature).softmax(0).numpy()
    classes = scores[:num]
    if not background:
        return classes
    if places is not None:
        return np.concatenate([scores[num:].max(0, keepdims=True), classes])
    rest = np.maximum(1 - classes.max(0, keepdims=True) - lacking, 0).astype(classes.dtype)
    return np.concatenate([rest, classes])


def heat_rows(heatmaps: Sequence[Heatmaps], background: bool) -> Rows:
    """CA of a diffusion model: the classes of all its prompts.

    Args:
        heatmaps: Of each prompt.
        background: Put the start-of-text map before them, averaged over prompts.
    """
    classes = torch.cat([heat.values for heat in heatmaps]).float().cpu().numpy()
    starts = [heat.background for heat in heatmaps if heat.background is not None]
    if not background:
        return classes
    start = torch.stack(starts).mean(0).float().cpu().numpy()
    return np.concatenate([start[None], classes])


def mean_self_map(maps: Sequence[SelfMap]) -> SelfMap:
    """The mean of self-attention maps of one image, one per prompt."""
    return SelfMap(torch.stack([one.values for one in maps]).mean(0), maps[0].grid)


def classify(
    rows: Rows,
    size: tuple[int, int],
    *,
    self_map: SelfMap | None = None,
    labels: Integer[np.ndarray, "k height width"] | None = None,
    ks: Sequence[int] = (),
    middle: bool = False,
) -> Integer[np.ndarray, "height width"]:
    """The row of each pixel by method 1, by 2 where there is a self-map, by 3 of clusters.

    Args:
        rows: Scores of places.
        size: Height and width of the result.
        self_map: Self-attention.
        labels: Clusters at that size. Of one clustering, clusters are named as they are; of
            several (k), as `labeling.clusters` does: connected pieces, averaged over all k.
        ks: Their numbers.
        middle: Row 0 is a start-of-text map, weighed against its own extremes.
    """
    if self_map is not None:
        rows = propagate(rows, self_map)
    grown = upsample(rows, size)
    if labels is not None:
        grown = cluster_means(grown, labels, ks) if len(labels) > 1 else means(grown, labels[0])
    if middle:
        grown = decision_scores(score_classes(grown, geometric_midpoint(grown[0]), 1.0))
    best: Integer[np.ndarray, "height width"] = grown.argmax(0)
    return best


def means(
    maps: Float[np.ndarray, "row height width"], clusters: Integer[np.ndarray, "height width"]
) -> Float[np.ndarray, "row height width"]:
    """Eq. 3: every pixel has the mean of its cluster.

    >>> means(np.array([[[0.0, 2.0, 4.0]]]), np.array([[7, 7, 1]])).tolist()
    [[[1.0, 1.0, 4.0]]]
    """
    _, numbers = np.unique(clusters, return_inverse=True)
    flat = numbers.reshape(-1)
    counts = np.bincount(flat)
    every = [np.bincount(flat, weights=row.ravel()) / counts for row in maps]
    found: Float[np.ndarray, "row height width"] = np.stack(
        [mean[flat].reshape(clusters.shape) for mean in every]
    )
    return found


def class_prompts(
    tokenizer: Any, names: Sequence[str], opening: str = "a photo of ", joint: str = ", "
) -> list[tuple[str, tuple[str, ...]]]:
    """Texts that name classes, and the classes of each: as few as the text encoder can read.

    Args:
        tokenizer: The text encoder's, which knows how much that is (77 tokens).
        names: The classes.
        opening: What stands before them.
        joint: What stands between two. LS: commas, which separate better than spaces, and "and".

    Raises:
        ValueError: If a class alone is too long.

    >>> import synthgen
    >>> tokenizer = synthgen.load_model().tokenizer
    >>> class_prompts(tokenizer, ["car", "tree", "star"])
    [('a photo of car, tree, and star', ('car', 'tree', 'star'))]
    """

    def text(own: Sequence[str]) -> str:
        *front, last = map(spoken, own)
        final = ", and " if joint == ", " else joint
        return f"{opening}{joint.join(front)}{final if front else ''}{last}"

    groups: list[list[str]] = []
    for name in names:
        if not groups or truncated_words(tokenizer, text([*groups[-1], name])):
            groups.append([])
        groups[-1].append(name)
        if truncated_words(tokenizer, text(groups[-1])):
            raise ValueError(
                f"A class must be named within {tokenizer.model_max_length} tokens. Got "
                f"{name!r:.80}."
            )
    return [(text(own), tuple(own)) for own in groups]
