"""The nouns of synthgen: what travels from one station to the next.

Frozen slotted dataclasses; axes stand in the annotations and are checked in the tests by
jaxtyping and beartype. Tensors until clustering, numpy after; nothing is mutated. Head features
live for one sample and reach no disk and no task boundary.

Axis words: batch, head, pos (row-major grid position), dim (head dimension), comp (principal
component), cls (class), mask, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor
else:  # both take seconds to import; axes and dtypes are checked all the same
    Figure = Tensor = Any

Status = Literal["ok", "failed"]

BACKGROUND, IGNORE = 0, 255
"""Ids of id maps that stand for no class and no mask: none of them, and undecided."""


@runtime_checkable
class ByteStream(AbstractContextManager["ByteStream"], Protocol):
    """A file that is read: open() on a disk, or what a remote file system gives."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Photo:
    """An image that is given, not drawn.

    Args:
        name: Where it is, relative to the folder or file that was named. Untrusted.
        sha256: Of its file; empty where that could not be read.
    """

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of a prompt file: what to draw, and which classes it is meant to show.

    Args:
        id: Stable identifier; part of the seed of every image of this prompt.
        text: Caption given to the text encoder; may be empty where there is a photo. Untrusted.
        class_names: Classes to look for in the image; may be absent from ``text``.
        photo: The image that it is about, which is then annotated; None: it is drawn.
    """

    id: str
    text: str
    class_names: tuple[str, ...] = ()
    photo: Photo | None = None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class HeadFeatures:
    """Per-head self-attention outputs ``softmax(QK^T / sqrt(d)) V`` of one image.

    Args:
        values: Layer name to outputs, before concatenation of the heads and ``to_out``.
        grids: Layer name to (height, width) of its grid; ``pos = height * width``, row-major.
    """

    values: Mapping[str, Float[Tensor, "head pos dim"]]
    grids: Mapping[str, tuple[int, int]]

    @property
    def num_heads(self) -> int:
        """Number of heads over all layers (195 for all of SD 2.1, 105 for its up layers)."""
        return sum(value.shape[0] for value in self.values.values())

    @property
    def num_bytes(self) -> int:
        """Bytes the captured tensors hold."""
        return sum(value.nbytes for value in self.values.values())


@dataclass(frozen=True, slots=True)
class Heatmaps:
    """Cross-attention of the image to the classes: one map per class, summed to no fixed value.

    Args:
        class_names: Names in the order of the first axis.
        values: Mean softmax probability of the class's tokens over heads and layers, each
            layer resized to the largest captured grid with a weight proportional to 1 / grid
            side.
        background: The same for the start-of-text token, which gathers what no word names (LS).
    """

    class_names: tuple[str, ...]
    values: Float[Tensor, "cls height width"]
    background: Float[Tensor, "height width"] | None = None


@dataclass(frozen=True, slots=True)
class SelfMap:
    """How much each place of an image looks at every other: self-attention, averaged."""

    # mean softmax probability over heads, layers and calls; rows (queries) sum to 1
    values: Float[Tensor, "query key"]
    # (height, width) of both axes; ``query = key = height * width``, row-major
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated (or inverted) image with what was recorded while it was denoised."""

    prompt: Prompt
    seed: int
    image: UInt8[np.ndarray, "height width 3"]
    features: HeadFeatures
    heatmaps: Heatmaps | None = None
    self_map: SelfMap | None = None


@runtime_checkable
class Recorded(Protocol):
    """What is read of a recording (`synthgen.record`): one result per image that was drawn."""

    size: tuple[int, int] | None
    images: tuple[UInt8[np.ndarray, "_height _width 3"], ...]

    def features(self) -> tuple[HeadFeatures, ...]:
        """Head outputs of each image."""
        ...

    def heatmaps(
        self, class_names: Sequence[str], prompts: Sequence[str] | None = None
    ) -> tuple[Heatmaps, ...]:
        """Cross-attention to classes that the prompts name."""
        ...

    def self_maps(self) -> tuple[SelfMap, ...]:
        """Self-attention of each image, where it was kept."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class MaskSet:
    """Overlapping masks of one image, largest first: a hierarchy from foreground to eye.

    Args:
        masks: Boolean masks at image resolution.
        members: Per mask the ``(k, cluster)`` pairs that were merged into it.
        parent: Index of the smallest mask that contains it, -1 at the top.
    """

    masks: Bool[np.ndarray, "mask height width"]
    members: tuple[tuple[tuple[int, int], ...], ...]
    parent: Int[np.ndarray, " mask"]

    def __len__(self) -> int:
        return int(self.masks.shape[0])

    def __repr__(self) -> str:
        num, height, width = self.masks.shape
        return f"{type(self).__name__} of {num} masks of {height} x {width} pixels"

    def show(self, image: Any | None = None) -> Figure:
        """A matplotlib figure of the hierarchy, over the image (an RGB array or of PIL) if given.

        Raises:
            ValueError: If the image has another size.
        """
        from synthgen.drawing import show_masks

        return show_masks(self.masks, self.parent, image)

    def _repr_png_(self) -> bytes:
        from synthgen.drawing import png

        return png(self.show())


@dataclass(frozen=True, slots=True, repr=False)
class LabelMap:
    """Classes of one image's pixels and masks: 0 background, i class i, 255 undecided.

    Args:
        class_names: The classes that were looked for; class i is ``class_names[i - 1]``.
        semantic: Class of each pixel.
        scores: How sure the class of each pixel is, 0 to 1.
        mask_labels: Class of each mask of the image's MaskSet.
        mask_scores: How sure that is, 0 to 1.
        not_found: Classes that were looked for and that no pixel has.
    """

    class_names: tuple[str, ...]
    semantic: UInt8[np.ndarray, "height width"]
    scores: Float[np.ndarray, "height width"]
    mask_labels: UInt8[np.ndarray, " mask"]
    mask_scores: Float[np.ndarray, " mask"]
    not_found: tuple[str, ...]

    def __repr__(self) -> str:
        lost = f"; not found: {', '.join(self.not_found)}" if self.not_found else ""
        return f"LabelMap of {', '.join(self.class_names) or 'no classes'}{lost}"

    def show(self, image: Any | None = None) -> Figure:
        """A matplotlib figure of the classes, over the image (an RGB array or of PIL) if given.

        Raises:
            ValueError: If the image has another size.
        """
        from synthgen.drawing import show_labels

        return show_labels(self.semantic, self.class_names, image)

    def _repr_png_(self) -> bytes:
        from synthgen.drawing import png

        return png(self.show())


@dataclass(frozen=True, slots=True)
class Record:
    """One sample as it stands in a shard."""

    key: str  # digits only, ``{shard:06d}{index:04d}``
    # the image as generated (before any lossy encoding)
    image: UInt8[np.ndarray, "height width 3"]
    prompt: Prompt
    mask_set: MaskSet  # masks; ids in ``mask.png`` and in the json are positions in it plus one
    # what is needed to make the sample again (seed, config digest, versions, ...)
    provenance: Mapping[str, Any]
    # classes of its pixels and masks; None in a dataset without labels
    labels: LabelMap | None = None
    # ids of classes.json by name, for the labels
    class_ids: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """What a shard is going to make at one of its keys; a pure function of the configuration."""

    key: str
    prompt: Prompt
    image_index: int
    seed: int


def shard_name(index: int) -> str:
    """File stem of a shard, six digits.

    >>> shard_name(12)
    'train-000012'
    """
    return f"train-{index:06d}"


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """One unit of work, retry and resume: its number and its samples in order."""

    index: int
    samples: tuple[PlannedSample, ...]

    @property
    def name(self) -> str:
        """File stem, six digits: ``train-000000``."""
        return shard_name(self.index)


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of a shard."""

    name: str  # file stem of the shard
    planned: int
    counts: Mapping[str, int]  # samples per status (``ok``, ``failed``)
    num_bytes: int  # size of the tar, 0 where no sample survived
    sha256: str  # hash of the tar, empty where no sample survived
    skipped: bool = False  # no sample survived, so no tar was published
    reused: bool = False  # the shard was already complete; no work was done
    # wall time per stage (``generate``, ``segment``, ``write``)
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """A planned sample that could not be made, and why; failures are rows, never exceptions."""

    prompt: Prompt
    seed: int
    # one of a closed vocabulary: ``nan_latents``, ``black_image`` (or all of any other
    # color), ``bad_photo``, ``out_of_memory``, ``prompt_rejected``, ``error``
    reason: Literal[
        "nan_latents", "black_image", "bad_photo", "out_of_memory", "prompt_rejected", "error"
    ]
    message: str  # one line for people


@dataclass(frozen=True, slots=True, repr=False)
class Segmentation(MaskSet):
    """The masks of one image with the clusters that they were merged from.

    Args:
        ks: Cluster counts, in the order of ``labels``.
        labels: Label map per k at image resolution, values 0..k-1.
        iterations: Updates that k-means made at the slowest k; 0 for methods without.
        converged: Whether it stood still at every k.
    """

    ks: tuple[int, ...]
    labels: UInt8[np.ndarray, "k height width"]
    iterations: int = 0
    converged: bool = True

    @classmethod
    def of(
        cls,
        mask_set: MaskSet,
        ks: tuple[int, ...],
        labels: UInt8[np.ndarray, "k height width"],
        iterations: int = 0,
        converged: bool = True,
    ) -> Segmentation:
        """Masks with the clusters that they were merged from."""
        own = (mask_set.masks, mask_set.members, mask_set.parent)
        return cls(*own, ks, labels, iterations, converged)

    @property
    def mask_set(self) -> MaskSet:
        """The masks alone."""
        return MaskSet(self.masks, self.members, self.parent)


@dataclass(frozen=True, slots=True)
class Annotations:
    """What an auditor sees in one image: its masks, overlaps included, as SA-1B describes them."""

    # boolean masks at image resolution, in the auditor's order
    masks: Bool[np.ndarray, "mask height width"]
    # the auditor's own estimate of each mask's quality, 0..1; 1 without
    predicted_iou: tuple[float, ...]
    stability_score: tuple[float, ...]  # SAM's stability of each mask, 0..1; 1 without
    # the prompt that gave each mask, in pixels; (-1, -1) where there was none
    points_xy: tuple[tuple[float, float], ...]
    # what the auditor calls each mask; empty strings where it does not say
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.masks.shape[0])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit says of one sample."""

    keep: bool  # whether users should train on it
    reason: str  # why not, from the closed vocabulary of `synthgen.auditing.judge`; empty if kept
    metrics: Mapping[str, float]  # name to value; NaN where a metric has no meaning for the sample
