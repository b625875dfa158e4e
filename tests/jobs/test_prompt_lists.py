"""Captions by a BLIP of random weights, and lists whose classes come evenly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_photos import BAD, GOOD, PHOTO_OVERRIDES, picture, write_photos
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)
from typer.testing import CliRunner

import synthgen
from synthgen.cli import app
from synthgen.dataset.photos import open_photos
from synthgen.jobs import prompt_lists
from synthgen.prompts import load_prompts

WORDS = ("a", "photo", "of", "cat", "dog", "red", "##s", "on", "the", "grass")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP of transformers' own classes, small, drawn at random."""
    folder = tmp_path_factory.mktemp("blip")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
    (folder / "vocab.txt").write_text("\n".join((*special, *WORDS)) + "\n")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), bos_token="[DEC]")
    shared = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": 1, "encoder_hidden_size": 16}
    ids = {"bos_token_id": 5, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    vision = {"image_size": 32, "patch_size": 16, "num_hidden_layers": 1}
    torch.manual_seed(0)
    config = BlipConfig(
        text_config={**shared, **text, **ids},
        vision_config={**shared, **vision},
        projection_dim=16,
    )
    network = BlipForConditionalGeneration(config)
    network.save_pretrained(folder, safe_serialization=True)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_every_image_that_can_be_read_gets_a_caption_once(
    blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "captions.jsonl"
    settings: dict[str, Any] = {"model": str(blip), "max_new_tokens": 6, "device": "cpu"}
    with pytest.warns(UserWarning, match="No caption of "):
        counts = prompt_lists.caption([str(photos)], out, **settings)
    readable = len(GOOD) + 1  # of one color is an image
    assert counts == {
        "images": len(GOOD) + len(BAD),
        "captions": readable,
        "kept": 0,
        "failed": len(BAD) - 1,
    }
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["image"] for row in rows) == sorted([*GOOD, "green.png"])
    assert all({*row["prompt"].replace("s", "").split()} for row in rows)
    assert not any(mark in row["prompt"] for row in rows for mark in "[]#")
    processor = BlipProcessor.from_pretrained(blip)
    network = BlipForConditionalGeneration.from_pretrained(blip)
    pixels = processor(images=Image.open(photos / "rgba.png").convert("RGB"), return_tensors="pt")
    (tokens,) = network.generate(**pixels, max_new_tokens=6)
    by_hand = processor.decode(tokens, skip_special_tokens=True)
    assert {"rgba.png": by_hand}.items() <= {row["image"]: row["prompt"] for row in rows}.items()
    first = out.read_bytes()
    out.write_text("".join(first.decode().splitlines(keepends=True)[3:]) + "{cut")
    seen: list[int] = []
    plain = prompt_lists.captioner

    def counted(*arguments: Any) -> Any:
        describe = plain(*arguments)
        return lambda pictures: seen.append(len(pictures)) or describe(pictures)

    monkeypatch.setattr(prompt_lists, "captioner", counted)
    with pytest.warns(UserWarning, match="No caption of "):
        again = prompt_lists.caption([str(photos)], out, batch_size=2, **settings)
    assert sum(seen) == 3
    assert again["kept"] == readable - 3
    assert out.read_bytes() == first
    found = open_photos([str(photos)], str(out), ["cat", "dog"])
    texts = {prompt.photo.name: prompt for prompt in found.prompts}
    assert all(texts[row["image"]].text == row["prompt"] for row in rows)
    words = ["prompts", "caption", str(photos), "--out", str(out), "--model", str(blip), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 3, done.output + str(done.exception)
    assert json.loads(done.stdout.splitlines()[0])["kept"] == readable
    out.unlink()
    with pytest.raises(ValueError, match="--model must be the folder of a BLIP"):
        prompt_lists.caption([str(photos)], out, model=str(photos))


def test_a_list_is_built_of_equal_classes_and_held_out_texts(tmp_path: Path) -> None:
    rows = [{"prompt": f"a cat {index % 30}", "classes": ["cat"]} for index in range(40)]
    rows += [{"prompt": f"a dog and a cat {i}", "classes": ["dog", "cat"]} for i in range(10)]
    rows += [{"prompt": "nothing", "classes": []}]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    words = ["prompts", "build", str(tmp_path / "all.jsonl"), "--out", str(out), "--num", "12"]
    done = CliRunner().invoke(app, [*words, "--held-out", "0.25", "--append-classes", "--json"])
    assert done.exit_code == 0, done.output + str(done.exception)
    told = json.loads(done.stdout.splitlines()[0])
    assert (told["read"], told["equal"], told["without_class"]) == (51, 10, 1)
    assert told["written"] + told["held_out"] == 12
    assert told["classes"] == {"cat": 12, "dog": 10}
    made, held = load_prompts(out), load_prompts(tmp_path / "out.held-out.jsonl")
    assert (len(made), len(held)) == (told["written"], told["held_out"])
    assert held
    assert not {p.text for p in made} & {p.text for p in held}
    assert made[0].text.endswith(("; cat", "; dog, cat"))
    whole = prompt_lists.build(str(tmp_path / "all.jsonl"), tmp_path / "whole.jsonl")
    assert whole["written"] == 40
    counts = [json.loads(line)["count"] for line in (tmp_path / "whole.jsonl").open()]
    assert sum(counts) == 50


def test_annotating_lets_blip_write_the_captions_first(
    blip: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    Image.fromarray(picture(40, 60)).save(tmp_path / "a.png")
    words = ["annotate", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    words += ["--engine", "inline", "--captions", f"blip:{blip}", "--set", "num=1"]
    overrides = [*PHOTO_OVERRIDES, f"model.card={tiny_pipeline}"]
    done = CliRunner().invoke(app, words + [w for each in overrides for w in ("--set", each)])
    assert done.exit_code == 0, done.output + str(done.exception)
    (row,) = map(json.loads, (tmp_path / "out.captions.jsonl").open())
    (sample,) = synthgen.open_dataset(tmp_path / "out")
    assert sample["prompt"] == row["prompt"] != ""
    with pytest.raises(ValueError, match="Captions by BLIP stand beside a local folder"):
        synthgen.annotate(tmp_path / "a.png", "memory://out", captions="blip")
