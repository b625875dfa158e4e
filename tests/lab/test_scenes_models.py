"""The embedded model: latents by formula, tokenizer, recipes that resume, shipped weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthgen.embedded import card
from synthgen.embedded.vocabulary import CLASSES
from synthgen.lab.train import checkpoint
from synthgen.lab.train.classifier import ClassifierSettings, ClassifierTrainer
from synthgen.lab.train.export import export_weights
from synthgen.lab.train.latents import encode_blocks, image_to_unit, shrink
from synthgen.lab.train.ldm import (
    CALM,
    LdmData,
    LdmSettings,
    LdmTrainer,
    draw_batch,
    prepare_data,
)
from synthgen.lab.train.models import build_unet, load_pipeline
from synthgen.lab.train.tokenizer import (
    SPLIT_WORDS,
    caption_words,
    load_tokenizer,
    write_tokenizer,
)
from synthgen.lab.train.trainer import Trainer
from synthgen.lab.train.vae import VaeSettings, VaeTrainer, fresh_vae
from synthgen.lab.world.corpus import Corpus, cached_corpus, render_corpus

HAVE_WEIGHTS = (card.SHIPPED / card.CARD_NAME).exists()
needs_weights = pytest.mark.skipif(not HAVE_WEIGHTS, reason="weights not exported yet")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return render_corpus(12, 0.7)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def data(corpus: Corpus, tokenizer_dir: Path) -> LdmData:
    return prepare_data(corpus, tokenizer_dir)


@pytest.fixture
def ldm(data: LdmData, tokenizer_dir: Path) -> Callable[..., LdmTrainer]:
    """Makes a trainer at the smallest grid."""

    def make(steps: int = 2, batch: int = 2, **settings: Any) -> LdmTrainer:
        chosen = LdmSettings(steps=steps, batch=batch, grid=8, decay_share=0.0, **settings)
        return LdmTrainer(data, tokenizer_dir, chosen)

    return make


def test_encoder_computes_the_formula(corpus: Corpus) -> None:
    images = image_to_unit(torch.from_numpy(corpus.images[:4]))
    with torch.no_grad():
        posterior = fresh_vae().encode(images).latent_dist
    assert (posterior.mean - encode_blocks(images)).abs().max() < 0.01
    assert posterior.std.max() < 0.002


def test_latents_mirror_with_the_image(corpus: Corpus) -> None:
    images = image_to_unit(torch.from_numpy(corpus.images[:2]))
    assert torch.allclose(encode_blocks(images.flip(3)), encode_blocks(images).flip(3), atol=1e-5)
    assert shrink(encode_blocks(images), 16).shape == (2, 4, 16, 16)


def test_unet_has_the_topology_of_sd21() -> None:
    names = [name for name, _ in build_unet().named_modules() if name.endswith("attn1")]
    counts = [sum(name.startswith(part) for name in names) for part in ("down", "mid", "up")]
    assert counts == [6, 1, 9]


def test_tokenizer_splits_some_class_words(tokenizer_dir: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    assert tokenizer.is_fast
    for word in caption_words():
        pieces = tokenizer(word).input_ids[1:-1]
        assert len(pieces) == (2 if word in SPLIT_WORDS else 1), word
    assert set(SPLIT_WORDS) < set(CLASSES)
    found = tokenizer("a red mushroom", return_offsets_mapping=True).offset_mapping
    assert [tuple(pair) for pair in found][3:5] == [(6, 10), (10, 14)]


def test_corpus_is_read_back(tmp_path: Path) -> None:
    made = cached_corpus(tmp_path, 6, 0.5, workers=1)
    read = cached_corpus(tmp_path, 6, 0.5)
    assert np.array_equal(made.images, read.images)
    assert list(read.singles()[:3]) == [0, 1, 2]
    with pytest.raises(ValueError, match="must hold 7 scenes"):
        cached_corpus(tmp_path, 7, 0.5)


def test_batches_follow_the_settings(data: LdmData) -> None:
    small = replace(data, latents=shrink(data.latents.float(), 8))
    settings = LdmSettings(steps=1, grid=8, batch=2000, single_share=0.9, calm_density=0.0)
    _, tokens, timesteps, _ = draw_batch(small, 0, settings)
    assert timesteps.min() >= CALM
    single = {tuple(row) for row in data.tokens[data.single].tolist()}
    named = [row for row in tokens.tolist() if row != data.null.tolist()]
    assert np.mean([tuple(row) in single for row in named]) == pytest.approx(0.9, abs=0.03)
    assert len(named) / len(tokens) == pytest.approx(0.9, abs=0.03)


def _state(folder: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load_state(folder)
    assert state is not None
    return state[0]


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def check_resume(make: Callable[[int], Trainer], folder: Path) -> dict[str, torch.Tensor]:
    """Two steps at once end in the bits of one and one, of model, averages and moments."""
    list(make(2).train(folder / "a"))
    list(make(1).train(folder / "b"))
    list(make(2).train(folder / "b"))
    assert _same(_state(folder / "a"), _state(folder / "b"))
    return _state(folder / "a")


def test_ldm_resumes_as_if_uninterrupted(ldm: Callable[..., LdmTrainer], tmp_path: Path) -> None:
    state = check_resume(ldm, tmp_path)
    parts = ("unet", "text", "optimizer", "ema_unet", "ema_text")
    assert {name.split(".")[0] for name in state} == set(parts)
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    assert meta.keys() == {"step", "grid", "samples", "curve", "settings", "start", "tensors"}
    assert (meta["step"], meta["grid"], meta["samples"]) == (2, 8, 4)
    assert meta["curve"][0][:2] == [8, 2]


def test_vae_resumes_as_if_uninterrupted(corpus: Corpus, tmp_path: Path) -> None:
    def make(steps: int) -> VaeTrainer:
        return VaeTrainer(corpus, VaeSettings(steps=steps, batch=2, decay_share=0.0))

    encoder = checkpoint.subset(check_resume(make, tmp_path), "vae.encoder")
    assert _same(encoder, dict(fresh_vae().encoder.state_dict()))


def test_classifier_resumes_as_if_uninterrupted(corpus: Corpus, tmp_path: Path) -> None:
    def make(steps: int) -> ClassifierTrainer:
        settings = ClassifierSettings(steps=steps, batch=4, decay_share=0.0)
        return ClassifierTrainer(corpus, settings)

    check_resume(make, tmp_path)


def test_another_grid_begins_a_stage_with_the_weights_of_the_last(
    ldm: Callable[..., LdmTrainer], data: LdmData, tokenizer_dir: Path, tmp_path: Path
) -> None:
    first = ldm(1)
    list(first.train(tmp_path))
    second = LdmTrainer(data, tokenizer_dir, LdmSettings(steps=9, grid=16))
    assert second.load(tmp_path)
    assert (second.step, second.samples) == (0, 2)
    assert _same(dict(second.unet.state_dict()), dict(first.unet.state_dict()))


def test_two_workers_take_the_same_step(ldm: Callable[..., LdmTrainer], tmp_path: Path) -> None:
    losses = [
        list(ldm(1, batch=4, workers=workers).train(tmp_path / str(workers)))[-1].loss
        for workers in (1, 2)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, two = (checkpoint.subset(_state(tmp_path / name), "optimizer") for name in "12")
    assert all(torch.allclose(one[k], two[k], atol=1e-4) for k in one)
    with pytest.raises(ValueError, match="multiple of workers"):
        ldm(1, batch=3, workers=2)


@needs_weights
def test_ldm_goes_on_from_exported_weights(ldm: Callable[..., LdmTrainer], tmp_path: Path) -> None:
    fresh = list(ldm().train(tmp_path / "a"))[-1].loss
    started = list(ldm().train(tmp_path / "b", card.SHIPPED))[-1].loss
    assert started < 0.5 * fresh


@needs_weights
def test_export_keeps_shipped_parts_that_were_not_trained(
    ldm: Callable[..., LdmTrainer], tmp_path: Path
) -> None:
    work, weights = tmp_path / "work", tmp_path / "weights"
    shutil.copytree(card.SHIPPED, weights)
    list(ldm(1).train(work / "ldm"))
    export_weights(work, weights)
    before, after = card.read_card(), card.read_card(weights)
    changed = {name for name, sha in before["sha256"].items() if after["sha256"][name] != sha}
    assert changed
    assert {name.split("/")[0] for name in changed} <= {"unet", "text_encoder"}
    assert after["recipe"]["vae"] == before["recipe"]["vae"]
    assert after["recipe"]["classifier"] == before["recipe"]["classifier"]
    assert after["recipe"]["ldm"]["step"] == 1
    assert after["quality"] == {}


def test_export_without_a_model_says_what_to_train(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train vae --steps N"):
        export_weights(tmp_path / "work", tmp_path / "weights")


@needs_weights
def test_weights_are_small_and_safe() -> None:
    files = [path for path in card.SHIPPED.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in weights) <= 20_000_000
    assert max(path.stat().st_size for path in files) <= 15_000_000
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]
    assert card.read_card()["sha256"] == card.file_digests(card.SHIPPED)


@needs_weights
def test_changed_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(card.SHIPPED, folder)
    assert card.weights_dir(folder) == folder
    card.weights_dir.cache_clear()
    target = folder / "classifier.safetensors"
    target.write_bytes(target.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(ValueError, match=r"classifier.safetensors .* must have sha256"):
        card.weights_dir(folder)


def test_missing_weights_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train export"):
        card.weights_dir(tmp_path)


@needs_weights
def test_shipped_pipeline_generates_and_reconstructs() -> None:
    from synthgen.lab.bench.scenes import generate_images, prompt_accuracy, reconstruction_psnr

    pipeline = load_pipeline(card.weights_dir())
    assert reconstruction_psnr(pipeline, num=8) > 26
    prompts = ["a red ball on the grass", "a blue house in the snow"]
    images = generate_images(pipeline, prompts, 4, 4.0)
    assert images.shape == (2, 3, 128, 128)
    assert images.std() > 0.1
    again = generate_images(pipeline, prompts[:1], 4, 4.0)
    assert torch.allclose(images[:1], again, atol=1e-2)
    assert all(0 <= share <= 1 for share in prompt_accuracy(images, prompts, card.SHIPPED))
