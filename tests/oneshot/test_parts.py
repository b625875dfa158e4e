"""Parts from one example: they are found, saved, gone on with; mistakes are one line."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import synthgen
from synthgen import progress
from synthgen.diffusion.backbones import Backbone
from synthgen.oneshot.attending import ClassReader, resized
from synthgen.oneshot.learn import Fit, check_examples, trainable
from synthgen.oneshot.parts import Parts, class_states
from synthgen.oneshot.settings import PartSettings
from synthgen.segmentation.metrics import class_ious, confusion

NAMES = ("body", "hole")
QUICK: dict[str, Any] = {"epochs": 4, "lr": 0.05}


def example(size: tuple[int, int] = (64, 64)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.integers(90, 120, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, dtype=np.uint8)
    mask[8:-8, 8:-8], mask[24:40, 24:40] = 1, 2
    image[mask == 1], image[mask == 2] = (200, 40, 40), (40, 60, 200)
    return image, mask


@pytest.fixture
def pipe(backbone: Backbone) -> Any:
    return backbone.pipeline


def test_parts_learn_and_are_found(pipe: Any) -> None:
    image, mask = example()
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    parts = synthgen.learn_parts(pipe, image, mask, names=NAMES, **QUICK)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert len(parts.losses) == 4
    assert set(parts.losses[0]) == {"loss", "ce", "mse", "ldm"}
    for size in ((64, 64), (50, 120)):
        found = parts(np.zeros((*size, 3), dtype=np.uint8))
        assert found.semantic.shape == found.scores.shape == size
        assert found.semantic.max() <= 2
        assert found.class_names == NAMES
    assert parts.maps(image).shape == (3, 64, 64)


def test_embeddings_are_a_function_of_the_seed(pipe: Any) -> None:
    one, same, other = (
        synthgen.learn_parts(pipe, *example(), names=NAMES, seed=seed, **QUICK).embeddings
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_first_token_is_not_trained(pipe: Any) -> None:
    reader = ClassReader(pipe, PartSettings())
    states = class_states(reader, PartSettings(), NAMES)
    own = class_states(reader, PartSettings(), NAMES, torch.ones(2, states.shape[2]))
    assert torch.equal(own[0, 0], states[0, 0])
    assert bool((own[0, 1:3] == 1).all())
    assert torch.equal(own[0, 3:], states[0, 3:])


def test_checkpointed_blocks_give_the_same_gradients(pipe: Any) -> None:
    image, mask = example()
    steps = []
    for checkpointing in (False, True):
        settings = PartSettings(checkpointing=checkpointing)
        fit = Fit(ClassReader(pipe, settings), [(image, mask)], [], NAMES, settings)
        with trainable(pipe.unet, checkpointing):
            fit.step(0, 0)
        steps.append(fit.embeddings.grad)
    assert steps[0] is not None
    assert steps[1] is not None
    torch.testing.assert_close(steps[0], steps[1])


@pytest.mark.parametrize("decay", [False, True])
def test_an_interrupted_fit_goes_on_to_the_same_bits(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decay: bool
) -> None:
    image, mask = example()
    options: dict[str, Any] = {"names": NAMES, "validation": (image, mask), "validate_every": 2}
    options |= {**QUICK, "save_every": 1, "decay": decay}
    whole = synthgen.learn_parts(pipe, image, mask, **options)
    calls = 0

    def stop(event: str, **_: object) -> None:
        nonlocal calls
        calls += event == "step"
        if calls == 3:
            raise progress.Stopped

    with monkeypatch.context() as patch:
        patch.setattr(progress, "report", stop)
        with pytest.raises(progress.Stopped):
            synthgen.learn_parts(pipe, image, mask, folder=tmp_path, **options)
    resumed = synthgen.learn_parts(pipe, image, mask, folder=tmp_path, **options)
    assert torch.equal(resumed.embeddings, whole.embeddings)
    assert resumed.losses == whole.losses
    assert "validation" in resumed.losses[1]
    with pytest.raises(ValueError, match="same examples and settings"):
        synthgen.learn_parts(pipe, image, mask, folder=tmp_path, **{**options, "seed": 1})


def test_parts_are_saved_and_read_back(pipe: Any, tmp_path: Path) -> None:
    image, mask = example()
    parts = synthgen.learn_parts(pipe, image, mask, names=NAMES, noises=2, **QUICK)
    parts.save(tmp_path / "parts")
    again = synthgen.load_parts(tmp_path / "parts", pipe)
    assert again.names == NAMES
    assert again.settings.noises == 2
    assert [dict(row) for row in again.losses] == [dict(row) for row in parts.losses]
    np.testing.assert_array_equal(again(image).semantic, parts(image).semantic)
    about = (tmp_path / "parts" / "parts.json").read_text()
    assert str(tmp_path) not in about
    half = synthgen.load_parts(tmp_path / "parts", pipe.to(torch.bfloat16))
    pipe.to(torch.float32)
    assert half.names == NAMES


def test_maps_of_several_timesteps_are_their_mean(pipe: Any) -> None:
    image, mask = example()
    parts = synthgen.learn_parts(pipe, image, mask, names=NAMES, presence=0.0, **QUICK)
    alone = [parts.maps(image, timestep=t, noises=2) for t in (20, 100, 300)]
    both = parts.maps(image, timestep=20, more_timesteps=(100, 300), noises=2)
    np.testing.assert_allclose(both, np.mean(alone, 0), atol=1e-6)
    assert np.abs(alone[0] - alone[2]).max() > 1e-3


def test_another_model_is_refused_in_one_line(pipe: Any, tmp_path: Path) -> None:
    image, mask = example()
    synthgen.learn_parts(pipe, image, mask, names=NAMES, **QUICK).save(tmp_path)
    with pytest.raises(ValueError, match=r"must be found by the model .* Got scenes") as caught:
        synthgen.load_parts(tmp_path, synthgen.load_model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "cut", "json", "format"])
def test_damaged_parts_are_refused_in_one_line(pipe: Any, tmp_path: Path, damage: str) -> None:
    image, mask = example()
    synthgen.learn_parts(pipe, image, mask, names=NAMES, epochs=1).save(tmp_path)
    tensors, about = tmp_path / "parts.safetensors", tmp_path / "parts.json"
    if damage == "missing":
        tensors.unlink()
    elif damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-9])
    elif damage == "json":
        about.write_text("[1")
    else:
        about.write_text(about.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(ValueError, match="must hold") as caught:
        synthgen.load_parts(tmp_path, pipe)
    assert "\n" not in str(caught.value)


def test_many_parts_fit_and_one_more_does_not(pipe: Any) -> None:
    image = np.zeros((64, 80, 3), dtype=np.uint8)
    mask = np.zeros((64, 80), dtype=np.uint8)
    mask[:8] = np.arange(640).reshape(8, 80) // 8 + 1
    mask[mask > 76] = 76
    names = [f"part {number}" for number in range(1, 77)]
    parts = synthgen.learn_parts(pipe, image, mask, names=names, epochs=1, augmentation="none")
    assert parts(image).semantic.max() <= 76
    mask[0, 0] = 77
    with pytest.raises(ValueError, match="at most 76"):
        synthgen.learn_parts(pipe, image, mask, names=[*names, "one more"], epochs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": np.zeros((32, 64), np.uint8)}, "the size of its image, 64 x 64 pixels. Got 32"),
        ({"masks": np.full((64, 64), 255, np.uint8)}, "annotate something"),
        ({"masks": np.full((64, 64), 7, np.uint8)}, "Got 7; name it"),
        ({"masks": np.zeros((64, 64), np.uint8)}, "no pixel of 'body'"),
        ({"masks": np.zeros((64, 64), np.float32)}, "class numbers"),
        ({"images": np.zeros((64, 64), np.uint8)}, "RGB of 8 bits"),
        ({"names": ()}, "one or more parts"),
        ({"names": ("a", "a")}, "each once"),
        ({"images": [], "masks": []}, "one or more"),
        ({"images": [np.zeros((4, 4, 3), np.uint8)], "masks": []}, "each with a mask"),
    ],
)
def test_examples_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    image, mask = example()
    given: dict[str, Any] = {"images": image, "masks": mask, "names": NAMES, **change}
    with pytest.raises(ValueError, match=message) as caught:
        check_examples(**given)
    assert "\n" not in str(caught.value)


def test_settings_that_were_learned_with_stay(pipe: Any) -> None:
    image, mask = example()
    parts = synthgen.learn_parts(pipe, image, mask, names=NAMES, epochs=1)
    with pytest.raises(ValueError, match="must be one of timestep"):
        parts(image, epochs=3)
    with pytest.raises(ValueError, match="timesteps must be a range"):
        synthgen.learn_parts(pipe, image, mask, names=NAMES, timesteps=(9, 5))


def test_a_fit_on_one_scene_finds_its_part_in_another() -> None:
    """The embedded model, 30 epochs: well above painting every pixel as the part."""
    from synthgen.embedded.vocabulary import TUNING_SEEDS
    from synthgen.lab.world.render import render

    every = (render(seed, 1) for seed in TUNING_SEEDS[5000:])
    houses = (scene for scene in every if scene.objects[0].class_name == "house")
    first, *others = islice(houses, 4)
    mask = (first.semantic > 0).astype(np.uint8)
    pipe = synthgen.load_model()
    parts = synthgen.learn_parts(pipe, first.image, mask, names=["house"], epochs=30)
    truths = [(scene.semantic > 0).astype(np.uint8) for scene in others]
    pairs = zip(truths, others, strict=True)
    counts = sum(confusion(truth, parts(scene.image).semantic, 2) for truth, scene in pairs)
    assert class_ious(counts)[1] > 1.4 * np.mean(truths)


def test_the_rate_sinks_along_a_cosine(pipe: Any) -> None:
    settings = PartSettings(epochs=4, decay=True, lr=0.3)
    fit = Fit(ClassReader(pipe, settings), check_examples(*example(), NAMES), [], NAMES, settings)
    rates = []
    with trainable(pipe.unet, False):
        for _ in range(4):
            fit.learn_epoch()
            rates.append(fit.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx(
        [0.3, 0.15 + 0.15 / math.sqrt(2), 0.15, 0.15 - 0.15 / math.sqrt(2)]
    )


def test_what_is_not_given_is_the_card_s_or_the_paper_s(pipe: Any) -> None:
    image, mask = example()
    of_paper = synthgen.learn_parts(pipe, image, mask, names=NAMES, epochs=1).settings
    of_card = synthgen.learn_parts(
        synthgen.load_model(), image, mask, names=NAMES, epochs=1
    ).settings
    assert (of_paper.lr, of_paper.background, of_paper.was) == (0.1, "start", True)
    assert (of_card.lr, of_card.background, of_card.was) == (0.3, "rest", False)
    assert of_card.epochs == 1


def test_working_size_keeps_shape_and_area(pipe: Any) -> None:
    reader = ClassReader(pipe, PartSettings())
    assert reader.working_size((500, 500)) == (64, 64)
    rows, columns = reader.working_size((100, 400))
    assert rows % 32 == columns % 32 == 0
    assert columns > rows
    assert resized(np.zeros((5, 7, 3), np.uint8), (64, 32)).shape == (3, 64, 32)


def test_a_part_is_a_union_of_masks(pipe: Any) -> None:
    image, mask = example()
    parts: Parts = synthgen.learn_parts(pipe, image, mask, names=NAMES, epochs=1)
    found = parts(image, clusters=True, presence=0.0)
    assert found.semantic.shape == mask.shape
    assert len(found.mask_labels) == len(found.mask_scores) > 0
