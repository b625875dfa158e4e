"""Downstream training: batches, loss, scores, resuming in the same bits, export, curves."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from synthgen import progress
from synthgen.embedded.vocabulary import TRAIN_SEEDS
from synthgen.lab.downstream.augment import (
    Augmentation,
    crop,
    crop_grid,
    draw_batch,
    pick,
    to_unit,
)
from synthgen.lab.downstream.labeled_images import (
    LabeledImages,
    names_by_id,
    rendered_images,
    with_names,
)
from synthgen.lab.downstream.report import training_curves
from synthgen.lab.downstream.scoring import confuse, score_model, summarize
from synthgen.lab.downstream.segmenters import build_segmenter
from synthgen.lab.downstream.trainer import (
    TrainSettings,
    crop_side,
    epoch_steps,
    export_segmenter,
    finished_history,
    load_averaged,
    segmentation_loss,
    train,
)
from synthgen.lab.train import checkpoint
from synthgen.registry import DOWNSTREAM_MODELS
from synthgen.types import IGNORE

NAMES = ("background", "square", "stripe")
NO_AUGMENTATION = Augmentation(0.0, (1.0, 1.0), 0.0, 0.0)
TINY = TrainSettings(steps=6, batch=2, size=32, warm_up=2, validate_every=2)


def changed(**settings: object) -> TrainSettings:
    return TINY.model_copy(update=settings)


def drawn(num: int, seed: int = 0, size: tuple[int, int] = (32, 48)) -> LabeledImages:
    """Noise with a red square and a blue stripe, labeled; some pixels are undecided."""
    rng = np.random.default_rng(seed)
    images, semantics = [], []
    for _ in range(num):
        image = rng.integers(60, 120, (*size, 3), dtype=np.uint8)
        semantic = np.zeros(size, dtype=np.uint8)
        top, left = rng.integers(0, size[0] - 16), rng.integers(0, size[1] - 16)
        semantic[:, left : left + 5] = 2
        semantic[top : top + 14, left : left + 14] = 1
        image[semantic == 2] = (40, 40, 220)
        image[semantic == 1] = (220, 40, 40)
        semantic[0] = IGNORE
        images.append(image)
        semantics.append(semantic)
    return LabeledImages(tuple(images), tuple(semantics), NAMES)


@pytest.fixture
def stop_switch() -> Iterator[None]:
    """Takes back every request to stop after the test."""
    yield
    progress._stop.clear()


@pytest.mark.parametrize("name", sorted(DOWNSTREAM_MODELS))
def test_every_network_labels_pixels_of_images_that_are_not_square(name: str) -> None:
    torch.manual_seed(3)
    model = build_segmenter(name, 5)
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    logits = model.train()(images)
    assert logits.shape == (2, 5, 64, 96)
    segmentation_loss(logits, torch.zeros(2, 64, 96, dtype=torch.long)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    torch.manual_seed(3)
    again = build_segmenter(name, 5)
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs), "weights are a function of torch's seed"


def test_a_wrong_network_is_one_line() -> None:
    with pytest.raises(ValueError, match="Did you mean 'segformer'"):
        build_segmenter("segfromer", 3)
    with pytest.raises(ValueError, match="background and at least one class"):
        build_segmenter("segformer", 1)
    with pytest.raises(ValueError, match="multiple of 32"):
        TrainSettings(size=100)
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        TrainSettings(batch=1)


def cropped(
    data: LabeledImages, size: tuple[int, int], augmentation: Augmentation, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return crop(data, 0, crop_grid(size, augmentation, rng), augmentation, rng)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_sample_is_its_image_or_mirrored_with_its_labels(direction: int) -> None:
    data, chosen = drawn(1), Augmentation(flip=float(direction < 0), scale=(1.0, 1.0), color=0.0)
    image, semantic = cropped(data, (32, 48), chosen)
    expected = to_unit(np.ascontiguousarray(data.images[0][:, ::direction]))
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
    assert (semantic.numpy() == data.semantics[0][:, ::direction]).all()


def test_image_and_labels_are_cropped_alike() -> None:
    """Images whose red is the label: away from edges, a crop's red is its label still."""
    semantic = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((16, 16), np.uint8))
    image = np.repeat(semantic[..., None] * 20, 3, axis=2)
    data = LabeledImages((image,), (semantic,), tuple("abcdefghijkl"))
    zoom = Augmentation(flip=0.5, scale=(0.4, 0.8), color=0.0)
    seen = set()
    for seed in range(8):
        got, labels = cropped(data, (64, 64), zoom, seed)
        red = ((got[0] + 1) * 127.5 / 20).numpy()
        flat = np.abs(red - red.round()) < 1e-3
        assert flat.mean() > 0.6
        assert (red.round()[flat] == labels.numpy()[flat]).all()
        seen |= set(np.unique(labels.numpy()).tolist())
    assert seen == set(range(12)), "crops reach every corner"


def test_objects_are_pasted_whole_with_their_labels_and_nothing_else() -> None:
    """A flat gray image, over which green things of class 1 are pasted: green is 1, gray is 0."""
    empty = np.zeros((32, 32), np.uint8)
    thing = empty.copy()
    thing[10:22, 8:24] = 1
    thing[9], thing[22] = IGNORE, IGNORE
    gray = np.full((32, 32, 3), 100, np.uint8)
    green = np.where(thing[..., None] == 1, np.uint8([0, 250, 0]), np.uint8(7))
    names = ("background", "thing")
    sources = [LabeledImages((gray,), (empty,), names), LabeledImages((green,), (thing,), names)]
    paste = Augmentation(0.5, (1.0, 1.0), 0.0, paste=0.8, paste_scale=(1.0, 2.0))
    shares = []
    for step in range(30):
        images, semantics = draw_batch(sources, 3, step, 2, (32, 32), paste)
        pixels = ((images[0] + 1) * 127.5).round().long()  # position 0 is gray
        shown = semantics[0] == 1
        assert set(semantics[0].unique().tolist()) <= {0, 1}, "no pixel to ignore"
        assert (pixels[:, ~shown] == 100).all()
        assert (pixels[1][shown] > pixels[0][shown]).all()
        shares.append(float(shown.float().mean()))
    assert min(shares) == 0.0, "some stay as they are"
    assert max(shares) > thing.astype(bool).mean() / 4
    assert len(set(shares)) > 10, "at many sizes and places"


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    sources = [drawn(5), drawn(3, seed=1)]
    one, same, other, next_one = (
        draw_batch(sources, seed, step, 4, (32, 32), Augmentation())
        for seed, step in ((0, 7), (0, 7), (1, 7), (0, 8))
    )
    assert all(torch.equal(*pair) for pair in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[0], next_one[0])
    assert one[0].abs().max() <= 1.0


def test_crops_are_three_quarters_of_the_images() -> None:
    sides = {(128, 128): 96, (512, 640): 384, (40, 50): 32, (100, 300): 64}
    assert {size: crop_side(drawn(1, size=size)) for size in sides} == sides


def test_sources_take_turns_and_every_round_shows_every_image_once() -> None:
    sources = [drawn(5), drawn(3, seed=1)]
    seen = [pick(sources, 4, number) for number in range(60)]
    assert [source for source, _ in seen] == [0, 1] * 30
    for source, num in ((0, 5), (1, 3)):
        rows = [row for which, row in seen if which == source]
        rounds = [rows[start : start + num] for start in range(0, len(rows) - num + 1, num)]
        assert all(sorted(turn) == list(range(num)) for turn in rounds)
        assert len({tuple(turn) for turn in rounds}) > 1, "in another order"
    assert epoch_steps(sources, 4) == 3  # ten samples show the five of the larger one


def test_the_loss_is_the_mean_over_pixels_that_are_decided() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(2, 3, 4, 5))).requires_grad_()
    semantics = torch.from_numpy(rng.choice([0, 1, 2, IGNORE], (2, 4, 5)))
    terms = []
    for b, y, x in product(range(2), range(4), range(5)):
        if semantics[b, y, x] != IGNORE:
            scores = logits[b, :, y, x].detach().numpy()
            terms.append(np.log(np.exp(scores).sum()) - scores[semantics[b, y, x]])
    loss = segmentation_loss(logits, semantics)
    assert float(loss.detach()) == pytest.approx(np.mean(terms))
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad.movedim(1, -1)[semantics == IGNORE] == 0).all()
    nothing = segmentation_loss(logits, torch.full_like(semantics, IGNORE))
    assert float(nothing.detach()) == 0.0


def test_scores_equal_those_of_sets_of_pixels() -> None:
    rng = np.random.default_rng(1)
    truth = rng.choice(np.array([0, 1, 2, IGNORE], np.uint8), (3, 6, 7))
    predicted = rng.integers(0, 4, (3, 6, 7))  # class 3 is predicted and never true
    names = ("background", "a", "b", "c", "never")
    scores = summarize(confuse(truth, predicted, 5), names)
    pixels = [tuple(at) for at in np.argwhere(truth != IGNORE)]
    for number, name in enumerate(names[:4]):
        true = {at for at in pixels if truth[at] == number}
        said = {at for at in pixels if predicted[at] == number}
        assert scores.class_iou[name] == pytest.approx(len(true & said) / len(true | said))
    assert "never" not in scores.class_iou
    values = list(scores.class_iou.values())
    assert scores.miou == pytest.approx(sum(values) / 4)
    assert scores.object_miou == pytest.approx(sum(values[1:]) / 3)
    right = sum(truth[at] == predicted[at] for at in pixels)
    assert scores.pixel_accuracy == pytest.approx(right / len(pixels))


class ReadRed(torch.nn.Module):
    """Predicts the class that the red channel says, off by one for every third column."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        wanted = ((images[:, 0] + 1) * 127.5 / 50).round().long()
        wanted[..., ::3] = (wanted[..., ::3] + 1) % 3
        return torch.nn.functional.one_hot(wanted, 3).movedim(-1, 1).float()


def test_images_of_several_sizes_are_scored_as_one_by_one() -> None:
    rng = np.random.default_rng(2)
    semantics = [rng.integers(0, 3, (6, 5 + i // 3), dtype=np.uint8) for i in range(8)]
    images = [np.repeat(s[..., None] * 50, 3, axis=2) for s in semantics]
    data = LabeledImages(tuple(images), tuple(semantics), NAMES)
    predicted = [ReadRed()(to_unit(image)[None]).argmax(1)[0].numpy() for image in images]
    counts = sum(confuse(s, p, 3) for s, p in zip(semantics, predicted, strict=True))
    assert score_model(ReadRed(), data) == summarize(counts, NAMES)


def test_ids_follow_names_not_numbers() -> None:
    data = drawn(2)
    moved = with_names(data, ("background", "stripe", "circle", "square"))
    for before, after in zip(data.semantics, moved.semantics, strict=True):
        for old, new in ((0, 0), (1, 3), (2, 1), (IGNORE, IGNORE)):
            assert ((before == old) == (after == new)).all()
    with pytest.raises(ValueError, match=r"same classes\. Got \['stripe'\]"):
        with_names(data, ("background", "square"))
    with pytest.raises(ValueError, match=r"count from 0\. Got \[0, 2\]"):
        names_by_id({0: "background", 2: "cat", 255: "ignore"})
    with pytest.raises(ValueError, match="Got 3 of 2"):
        data.first(3)


def test_a_fingerprint_knows_every_pixel_and_name() -> None:
    data = drawn(2)
    semantic = data.semantics[1].copy()
    semantic[9, 9] ^= 1
    others = [
        data.first(1),
        replace(data, semantics=(data.semantics[0], semantic)),
        replace(data, class_names=("background", "square", "line")),
    ]
    prints = {item.fingerprint() for item in (data, *others)}
    assert len(prints) == 4
    assert drawn(2).fingerprint() == data.fingerprint()


class StopAt(logging.Handler):
    """Requests a stop when a training reports a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.at = step

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, "fields", {})
        if getattr(record, "event", "") == "step" and fields["step"] == self.at:
            progress.request_stop()


def run_until(step: int, data: LabeledImages, folder: Path, settings: TrainSettings) -> None:
    """Train, with a request to stop while a step is done."""
    handler, level = StopAt(step), progress.logger.level
    progress.logger.addHandler(handler)
    progress.logger.setLevel(logging.INFO)
    try:
        with pytest.raises(progress.Stopped):
            list(train([data, data], data, folder, settings, save_every=1000))
    finally:
        progress.logger.removeHandler(handler)
        progress.logger.setLevel(level)
        progress._stop.clear()


@pytest.mark.usefixtures("stop_switch")
@pytest.mark.parametrize("model", ["segformer-b0", "lraspp"])
def test_a_resumed_training_ends_in_the_same_bits(model: str, tmp_path: Path) -> None:
    """B0 draws dropout and dropped paths, LR-ASPP keeps statistics of its batches."""
    data, settings = drawn(5), changed(model=model)
    straight = list(train([data, data], data, tmp_path / "straight", settings))
    assert [row["step"] for row in straight] == [2, 4, 6]
    for step in (0, 2, 3):
        run_until(step, data, tmp_path / "resumed", settings)
    rest = list(train([data, data], data, tmp_path / "resumed", settings))
    assert [row["step"] for row in rest] == [6]
    found = [checkpoint.load_state(tmp_path / name) for name in ("straight", "resumed")]
    (tensors, meta), (others, again) = (pair for pair in found if pair is not None)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    assert meta == again, "and with the same history of losses and scores"
    assert list(train([data, data], data, tmp_path / "resumed", settings)) == []


def test_a_checkpoint_of_other_data_or_settings_is_refused(tmp_path: Path) -> None:
    data, settings = drawn(3), changed(steps=1)
    list(train([data], data, tmp_path, settings))
    with pytest.raises(ValueError, match=r"as it was begun\. Got another lr, steps;"):
        list(train([data], data, tmp_path, changed(lr=0.1, steps=2)))
    with pytest.raises(ValueError, match="Got another sources;"):
        list(train([drawn(3, seed=9)], data, tmp_path, settings))
    plain = changed(steps=1, augmentation=NO_AUGMENTATION)
    with pytest.raises(ValueError, match="Got another augmentation;"):
        finished_history([data], data, tmp_path, plain)
    with pytest.raises(ValueError, match="must have the same classes"):
        list(
            train([data], replace(data, class_names=("background", "a", "b")), tmp_path, settings)
        )


def test_the_averaged_weights_are_what_was_measured(tmp_path: Path) -> None:
    data = drawn(3)
    last = list(train([data], data, tmp_path / "checkpoint", TINY))[-1]
    model, _ = load_averaged(tmp_path / "checkpoint")
    assert asdict(score_model(model, data)).items() <= last.items()
    history = export_segmenter(tmp_path / "checkpoint", tmp_path)
    assert [row["step"] for row in history] == [2, 4, 6]
    assert history[-1] == last
    about = json.loads((tmp_path / "segmenter.json").read_text())
    from safetensors.torch import load_file

    fresh = build_segmenter(about["model"], len(about["class_names"])).eval()
    fresh.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert asdict(score_model(fresh, data)).items() <= last.items()
    assert history == finished_history([data], data, tmp_path / "checkpoint", TINY)
    with pytest.raises(FileNotFoundError, match="must hold a checkpoint"):
        load_averaged(tmp_path / "nothing")


def test_curves_show_the_history() -> None:
    rows = [{"step": 2, "loss": 1.5, "miou": 0.2}, {"step": 4, "loss": 1.0, "miou": 0.5}]
    figure = training_curves({"a": [rows, rows[:1]], "b": [rows]})
    loss, miou = figure.axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[1.5, 1.0], [1.5], [1.5, 1.0]]
    assert [list(line.get_ydata()) for line in miou.lines] == [[0.2, 0.5], [0.2], [0.2, 0.5]]
    assert list(miou.lines[0].get_xdata()) == [2, 4]
    assert loss.lines[0].get_color() == loss.lines[1].get_color() != loss.lines[2].get_color()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_four_scenes_are_learned_by_heart(tmp_path: Path) -> None:
    data = rendered_images(tmp_path / "scenes", 4, TRAIN_SEEDS.start, workers=0)
    settings = TrainSettings(
        steps=150,
        batch=4,
        lr=2e-3,
        size=128,
        warm_up=10,
        validate_every=50,
        ema_decay=0.9,
        augmentation=NO_AUGMENTATION,
    )
    seen = list(train([data], data, tmp_path / "run", settings))
    assert seen[-1]["miou"] > 0.8
    assert seen[-1]["loss"] < 0.2 * seen[0]["loss"]
