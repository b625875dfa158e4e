"""Token positions of class names, by the tokenizer's character offsets.

A word's index says nothing about its tokens: CLIP's vocabulary splits "aeroplane" into "aerop"
and "lane", so every later word is one position further. Positions count from the start-of-text
token and are those of the padded sequence that the text encoder and cross-attention see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synthgen.prompts.mentions import Mention, find_mentions, spoken

_MAX_LENGTH = 4096
"""Above this, ``model_max_length`` is transformers' stand-in for "unknown"."""

Offsets = Sequence[tuple[int, int]]


def class_token_spans(
    tokenizer: Any, text: str, class_names: Sequence[str], unknown: bool = True
) -> dict[str, tuple[int, ...]]:
    """Token positions of every mention of each class, in order; empty where there is none.

    Names match in any case, singular or plural, joined or apart, with the aliases and kinds of
    `mentions`; a mention that the token limit cuts off, wholly or in part, does not count.

    Args:
        tokenizer: Of transformers, that the text encoder uses; it must know offsets.
        text: What the text encoder reads: a prompt or an `attribution_text`.
        class_names: Classes to look for.
        unknown: Count tokens, too, that stand for any word outside of the vocabulary.

    Raises:
        ValueError: If the tokenizer knows no offsets or no maximum length.
    """
    ids, offsets = _padded_offsets(tokenizer, text)
    left_out = (
        set() if unknown else {i for i, one in enumerate(ids) if one == tokenizer.unk_token_id}
    )
    return {
        name: tuple(sorted({i for p in places for i in _covering(offsets, p)} - left_out))
        for name, places in find_mentions(text, class_names).items()
    }


def attribution_text(class_names: Sequence[str]) -> str:
    """The class names as one text for cross-attention; commas separate better than spaces (LS).

    >>> attribution_text(["aeroplane", "tvmonitor"])
    'aeroplane, tv monitor'
    """
    return ", ".join(map(spoken, class_names))


def truncated_words(tokenizer: Any, text: str) -> tuple[str, ...]:
    """Words that the text encoder does not see in full: those behind CLIP's 77-token limit.

    Raises:
        ValueError: If the tokenizer knows no offsets or no maximum length.
    """
    _check(tokenizer)
    settings = {"add_special_tokens": False, "truncation": False, "verbose": False}
    offsets: Offsets = tokenizer(text, return_offsets_mapping=True, **settings)["offset_mapping"]
    kept = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    if len(offsets) <= kept:
        return ()
    cut = min(start for start, _ in offsets[kept:])
    seen = text[:cut].split()
    partial = 1 if cut and not text[cut - 1].isspace() and not text[cut].isspace() else 0
    return tuple(text.split()[len(seen) - partial :])


def _padded_offsets(tokenizer: Any, text: str) -> tuple[Sequence[int], Offsets]:
    """Each token of the padded sequence and its character range; (0, 0) for special tokens."""
    _check(tokenizer)
    encoding = tokenizer(text, padding="max_length", truncation=True, return_offsets_mapping=True)
    return encoding["input_ids"], encoding["offset_mapping"]


def _check(tokenizer: Any) -> None:
    kind = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer must know offsets (a fast tokenizer). Got {kind}.")
    if tokenizer.model_max_length > _MAX_LENGTH:
        raise ValueError(
            f"the tokenizer must have a model_max_length of at most {_MAX_LENGTH}. Got "
            f"{tokenizer.model_max_length} ({kind}); set it in tokenizer_config.json."
        )


def _covering(offsets: Offsets, place: Mention) -> list[int]:
    """Tokens that share a character with a place; none if its end is cut off."""
    shared = [
        (i, min(end, place.end))
        for i, (start, end) in enumerate(offsets)
        if max(start, place.start) < min(end, place.end)
    ]
    whole = bool(shared) and max(end for _, end in shared) == place.end
    return [i for i, _ in shared] if whole else []
