"""Images with a class per pixel: from a labeled dataset of ours, or rendered with exact truth.

Everything a downstream network sees goes through `LabeledImages`, whose ids belong to its own
list of names; `with_names` brings a dataset's ids to another list by name. Images are held in
memory, 1 MB for 512 x 512; rendered ones are memory-mapped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from synthgen.dataset.labels import class_names
from synthgen.dataset.loader import open_dataset
from synthgen.embedded.vocabulary import CLASSES
from synthgen.lab.world.corpus import truth_corpus
from synthgen.types import IGNORE

SCENE_CLASSES = ("background", *CLASSES)
"""Names by id of rendered truth."""


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """Images and their semantic maps, of one size or of several.

    Args:
        images: sRGB, 0-255.
        semantics: Class id of each pixel, an index into the names; 255 is ignored.
        class_names: Names by id; id 0 is the background.
    """

    images: tuple[UInt8[np.ndarray, "_height _width 3"], ...]
    semantics: tuple[UInt8[np.ndarray, "_height _width"], ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def first(self, num: int) -> LabeledImages:
        """The first images.

        Raises:
            ValueError: If there are fewer.
        """
        if num > len(self):
            raise ValueError(
                f"num must be at most the number of labeled images. Got {num} of {len(self)}."
            )
        return LabeledImages(self.images[:num], self.semantics[:num], self.class_names)

    def fingerprint(self) -> str:
        """Hash of every pixel, label and name."""
        digest = hashlib.blake2b("\n".join(self.class_names).encode(), digest_size=16)
        for image, semantic in zip(self.images, self.semantics, strict=True):
            digest.update(repr(image.shape).encode() + image.tobytes() + semantic.tobytes())
        return digest.hexdigest()


def rendered_images(folder: Path, num: int, first_seed: int, workers: int = 2) -> LabeledImages:
    """Scenes rendered with their truth, kept in a folder.

    Args:
        folder: Where they are kept, see `truth_corpus`.
        num: Scenes.
        first_seed: Seed of the first; the others follow.
        workers: Processes that render, 30 ms a scene and core; 0 renders in this one.
    """
    corpus = truth_corpus(folder, num, workers, first_seed)
    return LabeledImages(tuple(corpus.image), tuple(corpus.semantic), SCENE_CLASSES)


def with_names(data: LabeledImages, class_names: Sequence[str]) -> LabeledImages:
    """The same images with the ids of another list of names.

    Raises:
        ValueError: For a name that is not in it, or an id without a name.

    >>> semantic = np.array([[0, 1, 255]], np.uint8)
    >>> data = LabeledImages((np.zeros((1, 3, 3), np.uint8),), (semantic,), ("background", "cat"))
    >>> with_names(data, ("background", "dog", "cat")).semantics[0].tolist()
    [[0, 2, 255]]
    """
    known = {name: index for index, name in enumerate(class_names)}
    unknown = [name for name in data.class_names if name not in known]
    if unknown:
        raise ValueError(
            f"Training and validation data must have the same classes. Got {unknown[:3]}, which "
            f"are not among {', '.join(class_names[:8])}{', …' if len(class_names) > 8 else ''}."
        )
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[: len(data.class_names)] = [known[name] for name in data.class_names]
    semantics = tuple(table[semantic] for semantic in data.semantics)
    return LabeledImages(data.images, semantics, tuple(class_names))


def dataset_images(
    url: str | Path,
    labels: str | None = None,
    num: int | None = None,
    audited: str | None = None,
    found_only: bool = False,
) -> LabeledImages:
    """The first samples of a labeled dataset of ours, with the names of its classes.json.

    Args:
        url: A finished dataset's folder.
        labels: Id of labels that were made later; None takes those in its tars.
        num: Samples; None takes all.
        audited: Id of an audit; samples that it rejects are left out.
        found_only: Leave out samples in which a prompted class was not found.

    Raises:
        ValueError: If there is no such dataset, no labels in it, or fewer samples.
    """
    images, semantics = [], []
    for sample in open_dataset(url, masks=False, labels=labels, audited=audited):
        if "semantic" not in sample:
            raise ValueError(
                f"{url} must carry labels. Got none in sample {sample['key']}; run "
                f"'synthgen label', and name its labels."
            )
        if found_only and sample["json"].get("not_found"):
            continue
        images.append(sample["image"])
        semantics.append(sample["semantic"])
        if len(images) == num:
            break
    names = names_by_id(class_names(url))
    data = LabeledImages(tuple(images), tuple(semantics), names)
    return data if num is None else data.first(num)


def names_by_id(classes: Mapping[int, str]) -> tuple[str, ...]:
    """Names by id from a dataset's table of classes, without 255.

    Raises:
        ValueError: Unless ids count from 0 without a gap.

    >>> names_by_id({0: "background", 1: "cat", 255: "ignore"})
    ('background', 'cat')
    """
    table = {index: name for index, name in classes.items() if index != IGNORE}
    if not table or sorted(table) != list(range(len(table))):
        raise ValueError(f"Ids of classes.json must count from 0. Got {sorted(table)[:9]}.")
    return tuple(table[index] for index in range(len(table)))
