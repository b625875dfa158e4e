"""The embedded world's CLIP tokenizer: byte-level BPE with a few hundred tokens.

Merges are learned on the words that captions use, except across the pieces of `SPLIT_WORDS`, which
therefore fall into two tokens: code that maps class names to token spans meets both cases.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.models.clip.tokenization_clip import CLIPTokenizer as _Fast

from synthgen.embedded.vocabulary import BACKGROUNDS, CLASSES, COLORS, PATTERNS

MAX_TOKENS = 48
"""Length that every caption is padded to, start and end token included."""

SPLIT_WORDS = {"mushroom": ("mush", "room"), "flower": ("flow", "er")}
"""Class words that are two tokens, with the pieces that merges stop at."""

START, END = "<|startoftext|>", "<|endoftext|>"
_OTHER_WORDS = ["a", "an", "and", "next", "to", "photo", "picture", "of", "there", "is"]


def _byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes, as GPT-2 and CLIP order them."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(len(hidden))]


def caption_words() -> list[str]:
    """Words of the caption grammar, sorted."""
    places = [word for place in BACKGROUNDS.values() for word in place.phrase.split()]
    kinds = [kind for kind in PATTERNS if kind not in ("solid", "halves")]
    return sorted({*_OTHER_WORDS, *places, *kinds, *COLORS, *CLASSES})


def _pieces(word: str) -> list[list[str]]:
    """Symbols of a word that may merge with each other."""
    *front, last = SPLIT_WORDS.get(word, (word,))
    return [*(list(piece) for piece in front), [*last[:-1], f"{last[-1]}</w>"]]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges that make each word one token, or two, the most frequent pair first.

    >>> learn_merges(["an"])
    [('a', 'n</w>')]
    """
    pieces = [piece for word in words for piece in _pieces(word)]
    merges: list[tuple[str, str]] = []
    while any(len(word) > 1 for word in pieces):
        pairs = Counter(pair for word in pieces for pair in itertools.pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merge(word, best) for word in pieces]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def write_tokenizer(folder: Path) -> None:
    """Write vocabulary, merges and settings that `CLIPTokenizer.from_pretrained` reads."""
    merges = learn_merges(caption_words())
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(f"{c}</w>" for c in alphabet), *(a + b for a, b in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)])
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text(lines + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))


def load_tokenizer(folder: Path) -> _Fast:
    """The tokenizer in `folder`."""
    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
