"""The recipe of the embedded BLIP: captions, resuming, export, and what it is used for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from synthgen.cli import app
from synthgen.embedded.blip import blip_weights_dir
from synthgen.embedded.clip import SHIPPED_CLIP, Clip
from synthgen.embedded.vocabulary import CLASSES, TRAIN_SEEDS, TUNING_SEEDS
from synthgen.jobs.prompt_lists import captioner
from synthgen.lab.bench.blip import bench_blip
from synthgen.lab.train import checkpoint
from synthgen.lab.train.blip import BlipSettings, BlipTrainer, plain_caption
from synthgen.lab.train.export import export_blip
from synthgen.lab.train.latents import image_to_unit
from synthgen.lab.world.captions import parse_caption
from synthgen.lab.world.corpus import Corpus, render_corpus, truth_corpus
from synthgen.lab.world.render import render


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return render_corpus(6, 0.5)


def test_captions_say_the_same_and_nothing_that_is_left_open(corpus: Corpus) -> None:
    for text in corpus.captions:
        said, plain = parse_caption(text), parse_caption(plain_caption(text))
        assert plain.background == said.background
        assert sorted(map(str, plain.objects)) == sorted(map(str, said.objects))
        places = [CLASSES.index(item.class_name) for item in plain.objects]
        assert places == sorted(places)
        assert plain_caption(plain_caption(text)) == plain_caption(text)


def test_it_begins_with_the_tower_of_scenes_clip_and_goes_on_from_itself(
    corpus: Corpus, tmp_path: Path
) -> None:
    truth = truth_corpus(tmp_path / "truth", 3, 0, TRAIN_SEEDS.start + 3)
    trainer = BlipTrainer(corpus, truth, 3, tmp_path / "words", BlipSettings(steps=1))
    trainer.start(SHIPPED_CLIP)
    small = image_to_unit(torch.from_numpy(np.array(corpus.images)))
    seen = F.interpolate(F.avg_pool2d(small, 2), scale_factor=2)
    clip = Clip(SHIPPED_CLIP).model.vision_model
    with torch.no_grad():
        theirs = clip.post_layernorm(clip(seen).last_hidden_state)[:, 1:]
        ours = trainer.model.vision_model(seen).last_hidden_state[:, 1:]
    pooled = F.avg_pool2d(theirs.mT.unflatten(2, (16, 16)), 2).flatten(2).mT
    assert F.cosine_similarity(pooled, ours, dim=-1).mean() > 0.9
    list(trainer.train(tmp_path / "blip"))
    export_blip(tmp_path, tmp_path / "weights")
    again = BlipTrainer(corpus, truth, 3, tmp_path / "words", BlipSettings(steps=1))
    again.start(tmp_path / "weights")
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    stored = load_file(tmp_path / "weights" / "model.safetensors")[name].float()
    assert torch.equal(again.model.state_dict()[name], stored)
    card = json.loads((tmp_path / "weights" / "card.json").read_text())
    assert card["recipe"]["start"] == "scenes-clip, its vision tower"
    assert again.start_from == "scenes-blip after 64 samples, from scenes-clip, its vision tower"


def test_the_shipped_one_describes_scenes_from_the_command_line(tmp_path: Path) -> None:
    assert bench_blip(50)["classes"] >= 0.9
    Image.fromarray(render(TUNING_SEEDS[0], 1).image).save(tmp_path / "a.png")
    words = ["prompts", "caption", str(tmp_path / "a.png"), "--out", str(tmp_path / "c.jsonl")]
    done = CliRunner().invoke(app, [*words, "--model", "scenes-blip"])
    assert done.exit_code == 0, done.output
    (row,) = map(json.loads, (tmp_path / "c.jsonl").open())
    assert parse_caption(row["prompt"]).objects


def test_training_goes_on_in_the_same_bits_and_is_exported(corpus: Corpus, tmp_path: Path) -> None:
    truth = truth_corpus(tmp_path / "truth", 3, 0, TRAIN_SEEDS.start + 3)

    def run(work: Path, steps: int) -> None:
        settings = BlipSettings(steps=steps, batch=3, decay_share=1e-9)
        trainer = BlipTrainer(corpus, truth, 3, work / "words", settings)
        list(trainer.train(work / "blip"))

    run(tmp_path / "whole", 3)
    for steps in (1, 3):
        run(tmp_path / "parts", steps)
    states = [checkpoint.load_state(tmp_path / name / "blip") for name in ("whole", "parts")]
    assert states[0] is not None
    assert states[1] is not None
    assert states[0][0].keys() == states[1][0].keys()
    assert all(torch.equal(value, states[1][0][name]) for name, value in states[0][0].items())
    export_blip(tmp_path / "whole", tmp_path / "weights")
    card = json.loads((tmp_path / "weights" / "card.json").read_text())
    assert card["recipe"]["step"] == 3
    assert blip_weights_dir(tmp_path / "weights") == tmp_path / "weights"
    assert sum(f.stat().st_size for f in (tmp_path / "weights").iterdir()) < 10e6
    (text,) = captioner(str(tmp_path / "weights"))([corpus.images[0].copy()])
    assert "[" not in text
    found = bench_blip(2, tmp_path / "weights")
    assert {"classes", "classes_1", "classes_2", "exact", "grammar"} <= set(found)
    with pytest.raises(ValueError, match="must hold the weights of scenes-blip"):
        blip_weights_dir(tmp_path)
