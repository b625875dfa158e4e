"""Class names in texts and in tokens, with the real CLIP tokenizer and with a small one."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from tiny import tiny_tokenizer
from transformers import CLIPTokenizer

import synthgen
from synthgen.prompts import (
    attribution_text,
    class_token_spans,
    mentioned_classes,
    truncated_words,
)
from synthgen.prompts.mentions import find_mentions, plurals

SHARED = Path(synthgen.__file__).parents[2] / "shared" / "data"
PUBLISHED = SHARED / "prompts" / "voc_sample.json"
MARKED = SHARED / "field" / "mentions.jsonl"
CLIP = SHARED / "sd21" / "tokenizer"

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


# --- class names in texts ----------------------------------------------------------------------

PLURALS = dict(
    pair.split("/")
    for pair in (
        *("bus/buses", "person/people", "sheep/sheep", "knife/knives", "pony/ponies"),
        *("bench/benches", "box/boxes", "toothbrush/toothbrushes", "toy/toys", "man/men"),
        *("child/children", "mouse/mice", "couch/couches", "calf/calves", "tomato/tomatoes"),
        *("piano/pianos", "giraffe/giraffes", "wolf/wolves", "glass/glasses"),
    )
)


@pytest.mark.parametrize("word", PLURALS)
def test_plurals(word: str) -> None:
    assert PLURALS[word] in plurals(word)
    assert mentioned_classes(f"Two {PLURALS[word].upper()}, side by side", [word]) == (word,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("an airplane and two planes", ["aeroplane"]),
        ("a TV-monitor", ["tvmonitor"]),
        ("televisions", ["tvmonitor"]),
        ("a tvmonitor", ["tvmonitor"]),
        ("potted  plants", ["pottedplant"]),
        ("a dining table", ["diningtable"]),
        ("motorcycles", ["motorbike"]),
        ("a couch", ["sofa"]),
        ("a boy, a girl and their mother's lamb", ["person", "sheep"]),
        ("the man's bike", ["bicycle", "person"]),
        ("a dirt bike", ["motorbike"]),
        ("a carpet, a cargo, catnip, a scarecrow and a dogma", []),
        ("training on a trainer", []),
        ("a snowman and an ottoman", []),
        ("a chairman, two policewomen and a police man", ["person"]),
        ("a motor bike", ["motorbike"]),
        ("a power plant, a hot dog, a bird-cage and a bird house", []),
        ("an arm chair beside armchairs", ["chair"]),
        ("", []),
    ],
)
def test_voc_classes_in_texts(text: str, expected: list[str]) -> None:
    assert list(mentioned_classes(text, VOC)) == expected


WRITTEN = [
    ("busses, T.V. sets and a motor bike", ["bus", "tvmonitor", "motorbike"]),
    ("sixty busses", ["bus"]),
    ("a fishermans boathouse", []),
    ("Fishermen", ["person"]),
    ("a cafe\u0301 and a ca\ufb01", ["caf\u00e9"]),
    ("\uff22\uff35\uff33 stop", ["bus"]),
    ("\u4e24\u53ea\u732b", ["\u732b"]),
    ("\u0130zmir cat", ["cat"]),
    ("a Do\u011f", []),
    ("a \u1112\u1161\u11ab river", ["\ud55c"]),
]
NAMES = ("bus", "tvmonitor", "motorbike", "person", "caf\u00e9", "\u732b", "\ud55c", "cat", "dog")


@pytest.mark.parametrize(("text", "expected"), WRITTEN)
def test_however_a_text_is_written(text: str, expected: list[str]) -> None:
    assert sorted(mentioned_classes(text, NAMES)) == sorted(expected)


def test_places_are_those_of_the_text_as_it_is() -> None:
    text = "\uff21 cafe\u0301 and a \ufb01re hydrant"
    found = find_mentions(text, ["caf\u00e9", "fire hydrant"])
    marked = [text[m.start : m.end] for places in found.values() for m in places]
    assert marked == ["cafe\u0301", "\ufb01re hydrant"]


@pytest.mark.skipif(not MARKED.exists(), reason=f"needs ../shared/{MARKED.name}")
def test_marked_captions() -> None:
    """Characters of each class as people marked them, within what the text encoder reads."""
    rows = [json.loads(line) for line in MARKED.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 61
    for row in rows:
        text, tokens = row["caption"], tiny_tokenizer()
        for name, marks in row["marks"].items():
            places = find_mentions(text, [*row["marks"]])[name]
            found = {i for place in places for i in range(place.start, place.end)}
            if len(text) > 300 and not class_token_spans(tokens, text, [name])[name]:
                found = set()  # cut off
            assert found == {i for mark in marks for i in marked(text, mark)}, (text, name)


def marked(text: str, mark: str) -> range:
    """Characters of "piece", or of the n-th "piece#n", without the spaces around it."""
    piece, _, nth = mark.partition("#")
    starts = [m.start() for m in re.finditer(re.escape(piece), text)]
    start = starts[int(nth or 0)] + len(piece) - len(piece.lstrip())
    return range(start, start + len(piece.strip()))


def test_longer_names_and_own_names_take_their_place() -> None:
    assert mentioned_classes("a hot dog", ["dog", "hot dog"]) == ("hot dog",)
    assert mentioned_classes("a hot dog", ["dog"]) == ()
    assert mentioned_classes("a door", ["screen door, screen", "door;double door"]) == (
        "door;double door",
    )
    assert mentioned_classes("a screen", ["screen door, screen", "screen"]) == ("screen",)
    assert mentioned_classes("someone, mortals", ["person, individual, someone, mortal"])
    assert mentioned_classes("a man", ["person", "man"]) == ("man",)
    assert mentioned_classes("a woman", ["person", "man"]) == ("person",)
    assert mentioned_classes("a couch", ["couch", "sofa"]) == ("couch",)
    assert mentioned_classes("traffic lights", ["traffic_light"]) == ("traffic_light",)
    assert mentioned_classes("c++ (x)", ["c++"]) == ("c++",)
    with pytest.raises(ValueError, match="must not be empty"):
        mentioned_classes("a", [" "])


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"needs ../shared/{PUBLISHED.name}")
def test_published_captions_are_understood() -> None:
    """Names alone are in 43 % of the (caption, class) pairs, synonyms and plurals in 98 %."""
    entries = json.loads(PUBLISHED.read_text())
    pairs = [(entry["prompt_sd"], name) for entry in entries for name in set(entry["classes"])]
    named = sum(re.search(rf"\b{name}\b", text) is not None for text, name in pairs)
    understood = sum(mentioned_classes(text, [name]) == (name,) for text, name in pairs)
    assert named / len(pairs) < 0.45
    assert understood / len(pairs) > 0.97


# --- class names in tokens ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=["small", "clip"])
def tokenizer(request: pytest.FixtureRequest) -> CLIPTokenizer:
    if request.param == "small":
        return tiny_tokenizer()
    if not CLIP.exists():
        pytest.skip("needs the real CLIP tokenizer at ../shared/data/sd21/tokenizer")
    return CLIPTokenizer.from_pretrained(str(CLIP))


def pieces(tokenizer: CLIPTokenizer, text: str) -> list[str]:
    """Tokens of the padded sequence, without the end-of-word marks."""
    ids = tokenizer(text, padding="max_length", truncation=True)["input_ids"]
    return [token.removesuffix("</w>") for token in tokenizer.convert_ids_to_tokens(ids)]


MENTIONS = {
    "aeroplane": ("aeroplane", "Aeroplanes", "airplane", "JET"),
    "bus": ("bus", "buses"),
    "car": ("car", "Cars"),
    "diningtable": ("dining table", "diningtable", "Dining-Tables"),
    "person": ("person", "people", "men", "woman"),
    "pottedplant": ("potted plant", "potted plants"),
    "sheep": ("sheep", "lambs"),
    "tvmonitor": ("tv monitor", "tv", "television", "TV  monitors"),
}
FILLERS = (
    *("a", "two", "of", "lane", "carpet", "the", "snowman", "cargo", "mention", "under"),
    *("café", ",", "sheepish", "personal", "e\u0301te\u0301", "!?", "42"),
)


def sentence(rng: random.Random, tokenizer: CLIPTokenizer) -> tuple[str, dict[str, list[int]]]:
    """A text built chunk by chunk, with spans counted by encoding every chunk on its own."""
    text, position = "", 1  # after the start-of-text token
    spans: dict[str, list[int]] = {name: [] for name in MENTIONS}
    for _ in range(rng.randint(0, 14)):
        name = rng.choice([None, *MENTIONS])
        chunk = rng.choice(FILLERS) if name is None else rng.choice(MENTIONS[name])
        length = len(tokenizer(chunk, add_special_tokens=False)["input_ids"])
        if position + length > tokenizer.model_max_length - 1:
            break
        if name is not None:
            spans[name] += range(position, position + length)
        text += chunk + rng.choice((" ", "  ", "\t"))
        position += length
    return text, spans


def test_spans_equal_those_counted_chunk_by_chunk(tokenizer: CLIPTokenizer) -> None:
    rng = random.Random(0)
    for _ in range(300):
        text, expected = sentence(rng, tokenizer)
        found = class_token_spans(tokenizer, text, tuple(MENTIONS))
        assert {name: list(span) for name, span in found.items()} == expected, text


def test_a_word_of_two_tokens_shifts_all_later_ones(tokenizer: CLIPTokenizer) -> None:
    text = "an aeroplane over a lane and a car on a carpet"
    tokens = pieces(tokenizer, text)
    spans = class_token_spans(tokenizer, text, ["aeroplane", "lane", "car", "dog"])
    assert len(spans["aeroplane"]) >= 2
    for name in ("aeroplane", "lane", "car"):
        assert "".join(tokens[i] for i in spans[name]) == name
    assert spans["dog"] == ()
    assert spans["car"][0] > text.split().index("car") + 1  # where the word's index would point


def test_mentions_cut_off_by_the_token_limit_do_not_count(tokenizer: CLIPTokenizer) -> None:
    length = len(tokenizer("aeroplane", add_special_tokens=False)["input_ids"])
    for fillers in range(76 - length - 2, 80):
        span = class_token_spans(tokenizer, "a " * fillers + "aeroplane", ["aeroplane"])
        expected = range(fillers + 1, fillers + 1 + length)
        assert span["aeroplane"] == (tuple(expected) if expected[-1] <= 75 else ())


def test_attribution_text_has_a_span_of_its_own_for_every_class(tokenizer: CLIPTokenizer) -> None:
    names = [*VOC[:18], "man", "hot dog"]
    text = attribution_text(names)
    tokens = pieces(tokenizer, text)
    spans = class_token_spans(tokenizer, text, names)
    covered = [i for name in names for i in spans[name]]
    kept = [name for name in names if spans[name]]
    assert len(covered) == len(set(covered))
    assert kept == names[: len(kept)]
    for name in kept:
        assert "".join(tokens[i] for i in spans[name]) == name.replace(" ", "")


def test_truncated_words_equal_those_found_word_by_word(tokenizer: CLIPTokenizer) -> None:
    rng = random.Random(1)
    words = ("a", "aeroplane", "car,", "dog", "monitor", "red", "(under)", "café", "!")
    for number in (0, 1, 20, 60, 74, 75, 76, 90):
        chosen = [rng.choice(words) for _ in range(number)]
        seen = 0
        while seen < number:
            beginning = " ".join(chosen[: seen + 1])
            if len(tokenizer(beginning, add_special_tokens=False)["input_ids"]) > 75:
                break
            seen += 1
        assert truncated_words(tokenizer, "  ".join(chosen)) == tuple(chosen[seen:])


def test_tokenizers_without_offsets_or_limit_are_refused() -> None:
    endless = tiny_tokenizer()
    endless.model_max_length = int(1e30)
    with pytest.raises(ValueError, match="model_max_length"):
        class_token_spans(endless, "a car", ["car"])
    with pytest.raises(ValueError, match="model_max_length"):
        truncated_words(endless, "a car")

    class Slow(CLIPTokenizer):
        is_fast = False

    with pytest.raises(ValueError, match=r"fast tokenizer.* Got Slow"):
        class_token_spans(Slow(), "a car", ["car"])
