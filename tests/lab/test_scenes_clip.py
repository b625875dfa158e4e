"""The recipe of the embedded CLIP: texts that say less, resuming, export, figures; what ships."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from synthgen.embedded.clip import SHIPPED_CLIP, Clip, clip_weights_dir
from synthgen.embedded.sam import SHIPPED_SAM
from synthgen.lab.bench.clip import bench_clip
from synthgen.lab.train import checkpoint
from synthgen.lab.train.clip import ClipSettings, ClipTrainer, Said, contrast, shorten
from synthgen.lab.train.export import export_clip
from synthgen.lab.train.tokenizer import write_tokenizer
from synthgen.lab.world.captions import parse_caption
from synthgen.lab.world.corpus import Corpus, render_corpus

SCENE = parse_caption("a red ball and a red and white striped cup on the grass")
SETTINGS = ClipSettings(steps=2, batch=4, whole_share=0.5)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return render_corpus(6, 0.5)


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder after two steps at once, one of half of the patches and one of all."""
    work = tmp_path_factory.mktemp("work")
    write_tokenizer(work / "tokenizer")
    trainer = ClipTrainer(corpus, work / "tokenizer", SETTINGS)
    list(trainer.train(work / "clip", SHIPPED_SAM))
    return work


def test_texts_that_say_less_are_true_of_their_scene_and_of_few_others() -> None:
    rng = np.random.default_rng(0)
    other = parse_caption("a blue ball and a green tree on the grass")
    texts = set()
    for _ in range(600):
        said = shorten(SCENE, 0.4, rng)
        text = said.text(rng)
        texts.add(text)
        assert said.true_of(SCENE), text
        fits = said.place in (None, "grass") and [o.class_name for o in said.objects] == ["ball"]
        assert said.true_of(other) == (fits and not said.objects[0].colors), text
    assert {"a ball", "a photo of a cup", "a red and white striped cup on the grass"} <= texts
    twice = Said((SCENE.objects[0], SCENE.objects[0]), None)
    assert not twice.true_of(SCENE), "two balls are not one"
    assert not Said((replace(SCENE.objects[1], pattern="dotted"),), None).true_of(SCENE)


def test_the_loss_is_clips_where_each_text_is_true_of_one_image() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(5)
    cross = torch.nn.functional.cross_entropy
    expected = (cross(logits, target) + cross(logits.T, target)) / 2
    assert torch.allclose(contrast(logits, torch.eye(5, dtype=torch.bool)), expected)
    same = torch.ones(5, 5, dtype=torch.bool)
    assert contrast(torch.zeros(5, 5), same) == pytest.approx(np.log(5))


def test_a_run_that_was_stopped_ends_in_the_same_bits(
    corpus: Corpus, trained: Path, tmp_path: Path
) -> None:
    for steps in (1, 2):
        # shares of the steps are of the run's length: the first step sees half in both
        settings = replace(SETTINGS, steps=steps, whole_share=0.5 if steps == 2 else 0.0)
        trainer = ClipTrainer(corpus, trained / "tokenizer", settings)
        list(trainer.train(tmp_path, SHIPPED_SAM))
    straight, resumed = (checkpoint.load_state(f) for f in (trained / "clip", tmp_path))
    assert straight is not None
    assert resumed is not None
    for name, tensor in straight[0].items():
        assert torch.equal(tensor, resumed[0][name]), name


def test_export_writes_averaged_weights_with_a_card(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lab\.train clip --steps"):
        export_clip(tmp_path, tmp_path / "weights")
    with pytest.raises(ValueError, match="must hold the weights of scenes-clip"):
        clip_weights_dir(tmp_path)
    export_clip(trained, tmp_path / "weights")
    card = json.loads((tmp_path / "weights" / "card.json").read_text())
    assert (card["name"], card["recipe"]["step"]) == ("scenes-clip", 2)
    averaged = checkpoint.subset(checkpoint.load_state(trained / "clip")[0], "ema")
    for name, parameter in Clip(tmp_path / "weights").model.named_parameters():
        assert torch.equal(parameter, averaged[name].half().float()), name
    figures = bench_clip(4, tmp_path / "weights")
    assert set(figures) == {"caption_of_50", "scene_of_50", "single_class_accuracy"}
    other = (tmp_path / "weights").rename(tmp_path / "other")  # files are looked at once a process
    (other / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json .* must have sha256"):
        clip_weights_dir(other)


def test_what_ships_finds_captions_and_is_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED_CLIP.iterdir()) <= 12e6
    assert not [path for path in SHIPPED_CLIP.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    assert bench_clip(50)["caption_of_50"] >= 0.8
