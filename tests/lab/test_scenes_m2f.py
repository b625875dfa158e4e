"""The recipe of the embedded Mask2Former: corpus, batches, resuming, export, figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from synthgen.embedded.mask2former import LABELS, build_processor, load_m2f, m2f_weights_dir
from synthgen.embedded.vocabulary import CLASSES, TRAIN_SEEDS
from synthgen.lab.bench.m2f import bench_m2f
from synthgen.lab.train import checkpoint
from synthgen.lab.train.export import export_m2f
from synthgen.lab.train.latents import image_to_unit
from synthgen.lab.train.m2f import M2fTrainer, degrade, draw_batch
from synthgen.lab.train.trainer import Settings
from synthgen.lab.world.corpus import TruthCorpus, truth_corpus
from synthgen.lab.world.render import render


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TruthCorpus:
    return truth_corpus(tmp_path_factory.mktemp("truth") / "corpus", 5, workers=0)


@pytest.fixture(scope="module")
def trained(corpus: TruthCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint folder after two steps at once."""
    folder = tmp_path_factory.mktemp("work") / "m2f"
    list(M2fTrainer(corpus, Settings(steps=2, batch=2)).train(folder))
    return folder


def test_corpus_holds_the_rendered_scenes(corpus: TruthCorpus) -> None:
    for row in range(len(corpus)):
        scene = render(TRAIN_SEEDS.start + row)
        for name in ("image", "semantic", "instance", "part"):
            assert (getattr(corpus, name)[row] == getattr(scene, name)).all(), name


def test_corpus_is_rendered_once_and_never_short(tmp_path: Path) -> None:
    first = truth_corpus(tmp_path / "truth", 3, workers=2)
    stamp = (tmp_path / "truth" / "image.npy").stat().st_mtime_ns
    assert (truth_corpus(tmp_path / "truth", 2).image == first.image[:2]).all()
    assert (tmp_path / "truth" / "image.npy").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="must hold 4 scenes"):
        truth_corpus(tmp_path / "truth", 4)
    with pytest.raises(ValueError, match="from seed 7"):
        truth_corpus(tmp_path / "truth", 2, first_seed=7)
    assert [path.name for path in tmp_path.iterdir()] == ["truth"], "no staging is left"


def test_a_batch_does_not_depend_on_who_draws_it(corpus: TruthCorpus) -> None:
    whole = draw_batch(corpus, 3, 11, 5)
    for rank in range(2):
        part = draw_batch(corpus, 3, 11, 5, slice(rank, None, 2))
        assert torch.equal(part[0], whole[0][rank::2])
        for mine, theirs in zip(part[1], whole[1][rank::2], strict=True):
            assert torch.equal(mine, theirs)
    assert not torch.equal(draw_batch(corpus, 3, 12, 5)[0], whole[0])
    assert not torch.equal(draw_batch(corpus, 4, 11, 5)[0], whole[0])


def test_truth_is_mirrored_with_its_image(corpus: TruthCorpus) -> None:
    images, masks, classes = draw_batch(corpus, 0, 0, 16)
    plain = image_to_unit(torch.from_numpy(corpus.image.copy()))
    seen = set()
    for image, own, ids in zip(images, masks, classes, strict=True):
        semantic = (ids[:, None, None] * own).sum(0).numpy()
        for row, scene in enumerate(plain):
            for direction, turned in ((1, scene), (-1, scene.flip(2))):
                if torch.equal(image, turned):
                    assert (semantic == corpus.semantic[row][:, ::direction]).all()
                    seen.add(direction)
    assert seen == {1, -1}, "both directions are drawn, and some images stay as they are"


def test_degrading_is_mild_and_stays_in_range(corpus: TruthCorpus) -> None:
    image = image_to_unit(torch.from_numpy(corpus.image[:1].copy()))[0]
    for seed in range(5):
        got = degrade(image, np.random.default_rng(seed))
        assert got.shape == image.shape
        assert got.abs().max() <= 1.0
        assert 0.0 < (got - image).abs().mean() < 0.35


def test_the_processor_gives_what_training_saw(corpus: TruthCorpus) -> None:
    images = [np.asarray(image) for image in corpus.image[:2]]
    inputs = build_processor()(
        images=images, input_data_format="channels_last", return_tensors="pt"
    )
    expected = image_to_unit(torch.from_numpy(np.stack(images)))
    torch.testing.assert_close(inputs["pixel_values"], expected, atol=1e-5, rtol=0)


def test_a_resumed_run_equals_an_uninterrupted_one(
    corpus: TruthCorpus, trained: Path, tmp_path: Path
) -> None:
    for steps in (1, 2):
        list(M2fTrainer(corpus, Settings(steps=steps, batch=2)).train(tmp_path))
    (straight, meta), (resumed, again) = map(checkpoint.load_state, (trained, tmp_path))
    assert meta["step"] == again["step"] == 2
    assert straight.keys() == resumed.keys()
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name


def test_export_writes_averaged_weights_with_a_card(trained: Path, tmp_path: Path) -> None:
    export_m2f(trained.parent, tmp_path / "weights")
    folder = m2f_weights_dir(tmp_path / "weights")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8e6
    card = json.loads((folder / "card.json").read_text())
    assert card["name"] == "scenes-m2f"
    assert card["recipe"]["step"] == 2
    assert set(card["sha256"]) == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    model, _ = load_m2f(folder)
    assert model.config.id2label == dict(enumerate(("background", *CLASSES)))
    averaged = checkpoint.subset(checkpoint.load_state(trained)[0], "ema")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, averaged[name].half().float()), name


def test_a_changed_file_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lab\.train m2f --steps"):
        export_m2f(tmp_path, tmp_path / "weights")
    export_m2f(trained.parent, tmp_path / "weights")
    (tmp_path / "weights" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json .* must have sha256"):
        m2f_weights_dir(tmp_path / "weights")


def test_figures_of_untrained_weights_are_poor(trained: Path, tmp_path: Path) -> None:
    export_m2f(trained.parent, tmp_path / "weights")
    figures = bench_m2f(2, tmp_path / "weights", workers=0)
    assert 0.0 <= figures["miou"] < 0.5
    assert len(LABELS) == 13


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_four_scenes_are_learned_by_heart(tmp_path: Path) -> None:
    corpus = truth_corpus(tmp_path / "truth", 4, workers=0)
    settings = Settings(steps=240, batch=4, warm_up=20, ema_decay=0.9)
    seen = list(M2fTrainer(corpus, settings).train(tmp_path / "m2f"))
    assert seen[-1].loss < 0.5 * seen[0].loss
    export_m2f(tmp_path, tmp_path / "weights")
    figures = bench_m2f(4, tmp_path / "weights", workers=0, first=TRAIN_SEEDS.start)
    assert figures["miou"] > 0.6
