"""Whether a dataset's classes can be labeled: checked before anything is drawn.

Labels are ids of an 8-bit map, so there are at most 254 classes; each has one name, for two names
of one class would share its pixels between two ids; and some token must stand for each class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from synthgen.config import Config, LabelConfig
from synthgen.dataset.records import MAX_ID
from synthgen.diffusion.backbones import load_backbone
from synthgen.diffusion.generate import drawn_text
from synthgen.diffusion.heatmaps import check_class_tokens
from synthgen.prompts.mentions import ALIASES, plurals, spoken
from synthgen.registry import LABELERS, REFINERS, resolve
from synthgen.types import Prompt


def check_labeling(config: Config, prompts: Sequence[Prompt]) -> None:
    """Refuse to label what cannot be labeled; nothing is checked where labeling is off.

    Raises:
        ValueError: In one line: unknown method or refiner, no classes, too many, two names for
            one class, or a class that no token stands for.
    """
    settings = config.labeling
    if settings.method == "none":
        return
    check_methods(settings)
    check_names(name for prompt in prompts for name in prompt.class_names)
    check_tokens(config, prompts)


def check_methods(settings: LabelConfig) -> None:
    """Refuse unknown labelers and refiners.

    Raises:
        ValueError: With near misses.
    """
    resolve(settings.method, LABELERS, "labeling.method")
    resolve(settings.refiner, REFINERS, "labeling.refiner")


def check_names(names: Iterable[str]) -> None:
    """Refuse class names that no 8-bit map can tell apart.

    Raises:
        ValueError: For none, more than 254, or two names of one class.

    >>> check_names(["sofa", "couch"])
    Traceback (most recent call last):
    ValueError: Every class must have one name. Got 'couch' and 'sofa'; use one of them in ...
    """
    found = sorted(set(names))
    if not found:
        raise ValueError(
            "Labels must have classes to choose from. Got none in any prompt; name them under "
            "'classes' in the prompt file, or set labeling.method=none for masks only."
        )
    if len(found) > MAX_ID:
        raise ValueError(
            f"Labels must be of at most {MAX_ID} classes (ids of an 8-bit map). Got "
            f"{len(found)}; split the prompt file, or merge classes."
        )
    first: dict[str, str] = {}
    for name in found:
        for form in _forms(name):
            other = first.setdefault(form, name)
            if other != name:
                raise ValueError(
                    f"Every class must have one name. Got {other!r} and {name!r}; use one of "
                    f"them in all prompts."
                )


def check_tokens(config: Config, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts with a class that no token stands for.

    Raises:
        ValueError: With the first such prompt and class.
    """
    tokenizer: Any = load_backbone(config.model).pipeline.tokenizer
    texts = [drawn_text(prompt, config.generation.append_classes) for prompt in prompts]
    check_class_tokens(tokenizer, prompts, texts, config.labeling)


def _forms(name: str) -> set[str]:
    """Spellings under which a name is the same class as another: joined, plural, alias."""
    words = spoken(name).lower()
    joined = _join(words)
    row = next((row for row in ALIASES if joined in map(_join, row)), (words,))
    *front, last = words.split()
    return {_join(form) for form in (*row, *(" ".join([*front, p]) for p in plurals(last)))}


def _join(words: str) -> str:
    return "".join(words.replace("-", " ").lower().split())
