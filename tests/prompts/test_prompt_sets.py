"""Choosing prompts by class, and the prompt files that come with the project."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

import synthgen
from synthgen.embedded.vocabulary import BACKGROUNDS, CLASSES, COLORS, SIMILAR_COLORS
from synthgen.lab.train.tokenizer import SPLIT_WORDS, load_tokenizer, write_tokenizer
from synthgen.lab.world.captions import parse_caption
from synthgen.lab.world.prompt_list import jsonl, scene_prompts
from synthgen.prompts import (
    PACKAGED,
    class_token_spans,
    load_prompts,
    mentioned_classes,
    truncated_words,
)

SHARED = Path(synthgen.__file__).parents[2] / "shared" / "data"
PUBLISHED = SHARED / "prompts" / "voc_sample.json"
CLIP = SHARED / "sd21" / "tokenizer"

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


# --- the packaged files ------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_files_are_clean(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts = load_prompts(name)
    assert [p.id for p in prompts] == [f"{name}-{i:04d}" for i in range(1, len(prompts) + 1)]
    assert len({p.text for p in prompts}) == len(prompts)
    assert all(p.class_names and p.text == " ".join(p.text.split()) for p in prompts)
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]|\b(\w+) \1\b", p.text) for p in prompts)


def test_voc_prompts_are_balanced_and_name_exactly_their_classes() -> None:
    prompts = load_prompts("voc", VOC)
    counts = Counter(name for prompt in prompts for name in prompt.class_names)
    assert len(prompts) >= 1000
    assert set(counts) == set(VOC)
    assert min(counts.values()) >= 60
    assert max(counts.values()) <= 2 * min(counts.values())
    assert sum(len(p.class_names) > 1 for p in prompts) >= 0.25 * len(prompts)
    silent = [prompt for prompt in prompts if "armchair" in prompt.text]
    assert len(silent) == 2  # and the list names no chair there
    for prompt in prompts:
        named = [*prompt.class_names, *(["chair"] if prompt in silent else [])]
        assert sorted(mentioned_classes(prompt.text, VOC)) == sorted(named), prompt.text


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"needs ../shared/{PUBLISHED.name}")
def test_voc_prompts_are_none_of_the_published_ones() -> None:
    def plain(text: str) -> str:
        return re.sub(r"\W+", " ", text.lower()).strip()

    published = {plain(entry["prompt_sd"]) for entry in json.loads(PUBLISHED.read_text())}
    assert not [p.text for p in load_prompts("voc") if plain(p.text) in published]


@pytest.mark.skipif(not CLIP.exists(), reason="needs ../shared/data/sd21/tokenizer")
@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_prompts_fit_clip(name: str) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(str(CLIP))
    assert not [p.text for p in load_prompts(name) if truncated_words(tokenizer, p.text)]


def test_scene_prompts_are_of_the_renderers_grammar_and_balanced() -> None:
    prompts = load_prompts("scenes", CLASSES)
    meanings = [parse_caption(p.text) for p in prompts]
    assert len(prompts) >= 500
    assert 0.45 <= sum(len(m.objects) == 1 for m in meanings) / len(meanings) <= 0.55
    assert {len(m.objects) for m in meanings} == {1, 2, 3, 4}
    for prompt, meaning in zip(prompts, meanings, strict=True):
        assert prompt.class_names == tuple(item.class_name for item in meaning.objects)
        for item in meaning.objects:
            assert item.colors[0] != BACKGROUNDS[meaning.background].palette
            assert frozenset(item.colors) not in SIMILAR_COLORS
    objects = [item for meaning in meanings for item in meaning.objects]
    for counts, names in (
        (Counter(item.class_name for item in objects), CLASSES),
        (Counter(m.objects[0].class_name for m in meanings if len(m.objects) == 1), CLASSES),
        (Counter(color for item in objects for color in item.colors), COLORS),
        (Counter(meaning.background for meaning in meanings), BACKGROUNDS),
    ):
        assert set(counts) == set(names)
        assert max(counts.values()) <= 2 * min(counts.values())


def test_scene_prompts_fit_the_embedded_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    embedded = load_tokenizer(tmp_path)
    for prompt in load_prompts("scenes"):
        assert truncated_words(embedded, prompt.text) == ()
        spans = class_token_spans(embedded, prompt.text, prompt.class_names)
        ids = embedded(prompt.text)["input_ids"]
        for name, span in spans.items():
            tokens = embedded.convert_ids_to_tokens([ids[i] for i in span])
            assert "|".join(tokens) == "|".join(SPLIT_WORDS.get(name, (name,))) + "</w>"


def test_scene_prompts_of_one_object_are_a_prompt_file(tmp_path: Path) -> None:
    prompts = scene_prompts(24, seed=1, object_counts={1: 1})
    assert Counter(p.class_names for p in prompts) == {(name,): 2 for name in CLASSES}
    (tmp_path / "one.jsonl").write_text(jsonl(prompts), encoding="utf-8")
    assert list(load_prompts(tmp_path / "one.jsonl")) == prompts


def test_the_generator_of_the_scene_prompts_is_deterministic() -> None:
    prompts = scene_prompts(60, seed=5)
    assert prompts == scene_prompts(60, seed=5)
    assert [p.text for p in prompts[:20]] == [p.text for p in scene_prompts(20, seed=5)]
    assert len({p.text for p in prompts}) == 60
    assert prompts != scene_prompts(60, seed=6)
