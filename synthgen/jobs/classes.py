"""Whether a dataset's classes can be labeled: checked before anything is drawn.

Labels are ids of an 8-bit map, so there are at most 254 classes; each has one name, for two names
of one class would share its pixels between two ids; and some token must stand for each class.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from synthgen.config import LABELING_VERSION, Config, LabelConfig
from synthgen.dataset.records import MAX_ID
from synthgen.diffusion.cards import find_card
from synthgen.prompts import PromptList
from synthgen.prompts.mentions import ALIASES, plurals, spoken
from synthgen.registry import LABELERS, REFINERS, near_miss, resolve
from synthgen.types import Prompt


def check_labeling(config: Config, prompts: PromptList) -> None:
    """Refuse to label what cannot be labeled; nothing is checked where labeling is off.

    Raises:
        ValueError: In one line: unknown method or refiner, no classes, too many, two names for
            one class, or a class that no token stands for.
    """
    settings = config.labeling
    if settings.method == "none":
        return
    if settings.parts is not None:
        check_parts(config)
        return
    from synthgen.diffusion.backbones import load_backbone

    check_methods(settings)
    check_names(config.classes or prompts.class_names)
    warn_of_classes(config, prompts.class_names)
    planned = min(config.planned, len(prompts))
    tokenized = [settings.text, config.generation.append_classes, LABELING_VERSION, planned]
    model = load_backbone(config.model, weights=False)
    check = json.dumps([tokenized, model.identity], default=str)
    if not prompts.passed(check):  # a minute for each 100,000
        check_tokens(config, prompts[:planned])
        prompts.remember(check)


def check_parts(config: Config) -> None:
    """Refuse parts whose names are not the dataset's classes, in their order.

    Raises:
        ValueError: If there are none, or others.
    """
    from synthgen.oneshot.parts import part_names

    names = part_names(str(config.labeling.parts))
    expected = {name: number for number, name in enumerate(names, start=1)}
    if config.classes != expected:
        raise ValueError(
            f"classes must be the names of labeling.parts, {', '.join(names):.80}. Got "
            f"{', '.join(config.classes or ()) or 'none'!s:.80}; give --parts "
            f"{config.labeling.parts}, or these."
        )


def warn_of_classes(config: Config, names: Sequence[str]) -> None:
    """Warn of classes that the model cannot draw, and of names that may be slips of others.

    Nothing is said of masks without labels: they show what is there. What a model that was
    trained on captions of everything can draw, nobody can list.
    """
    if config.labeling.method == "none":
        return
    known = find_card(config.model.card)[0].vocabulary
    foreign = [name for name in names if known and not {*map(spoken, known)} & {spoken(name)}]
    if foreign:
        hints = {name: near_miss(name, list(known)) for name in foreign}
        first = max(foreign, key=lambda name: bool(hints[name]))
        warnings.warn(
            f"{len(foreign)} class(es) are none that model {config.model.card!r} can draw, first "
            f"{first!r:.80}.{hints[first]} Their labels would stand on something else; it draws "
            f"{', '.join(known)}.",
            stacklevel=3,
        )
    long = [name for name in names if len(name) >= 5 and name not in foreign]
    for i, name in enumerate(long[:1000]):
        others = long[i + 1 : 1000]
        twins = [other for other in others if sorted(other) == sorted(name)]  # letters swapped
        twins += difflib.get_close_matches(name, others, n=1, cutoff=0.85)
        if twins:
            warnings.warn(
                f"Classes {name!r:.80} and {twins[0]!r:.80} are two ids. If one is a slip of the "
                f"other, correct it in the prompts.",
                stacklevel=3,
            )


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
            "'classes' in the prompt file or with --classes, or set labeling.method=none for "
            "masks only."
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
    from synthgen.diffusion.backbones import load_backbone
    from synthgen.diffusion.generate import drawn_text
    from synthgen.diffusion.heatmaps import check_class_tokens

    tokenizer: Any = load_backbone(config.model, weights=False).pipeline.tokenizer
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
