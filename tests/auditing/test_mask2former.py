"""Mask2Former as an auditor: the contract, masks from scores, and weights that are not right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import check_auditor
from safetensors.torch import load_file, save_file
from scipy import ndimage

from synthgen.auditing.loading import load_auditor
from synthgen.auditing.mask2former import (
    annotate_scores,
    load_mask2former,
    load_scenes_mask2former,
)
from synthgen.config import AuditorConfig
from synthgen.embedded.mask2former import LABELS, class_scores, load_m2f
from synthgen.embedded.vocabulary import CLASSES
from synthgen.lab.train.export import export_m2f
from synthgen.lab.train.m2f import M2fTrainer
from synthgen.lab.train.trainer import Settings
from synthgen.lab.world.corpus import TruthCorpus
from synthgen.registry import AUDITORS, resolve


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the form that ``export-m2f`` gives."""
    work = tmp_path_factory.mktemp("m2f")
    nothing = TruthCorpus(*(np.zeros((1, 2, 2, 3)[:n], np.uint8) for n in (4, 3, 3, 3)))
    M2fTrainer(nothing, Settings(steps=1)).save(work / "m2f")
    export_m2f(work, work / "weights")
    return work / "weights"


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _settings(folder: Path, **changes: object) -> AuditorConfig:
    return AuditorConfig(name="scenes-m2f", checkpoint=str(folder), device="cpu", **changes)


def _scores(seed: int, shape: tuple[int, int, int] = (4, 9, 14)) -> np.ndarray:
    noise = np.random.default_rng(seed).random(shape)
    return ndimage.gaussian_filter(noise, (0, 1.2, 1.2)).astype(np.float32)


def test_both_rows_are_auditors(folder: Path) -> None:
    for name in ("scenes-m2f", "mask2former"):
        load = resolve(AUDITORS[name], AUDITORS)
        found = check_auditor(load(_settings(folder)))
        for seen in found:
            assert set(seen.labels) <= set(LABELS)
            assert (seen.masks.sum(0) == 1).all(), "by default the classes share out the image"


def test_identity_names_weights_and_no_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match="points_per_side must be a parameter"):
        load_mask2former(_settings(folder, generator={"points_per_side": 16}))
    identity = load_scenes_mask2former(_settings(folder)).identity
    card = json.loads((folder / "card.json").read_text())
    assert identity["sha256"] == card["sha256"]["model.safetensors"]
    assert str(folder) not in json.dumps(identity)


def test_identity_changes_with_the_image_processor(folder: Path, copied: Path) -> None:
    path = copied / "preprocessor_config.json"
    path.write_text(path.read_text().replace("1024", "512"))
    before, after = (load_mask2former(_settings(f)).identity for f in (folder, copied))
    assert before["sha256"] == after["sha256"]
    assert before != after


def test_mixed_sizes_keep_their_order(folder: Path) -> None:
    rng = np.random.default_rng(1)
    sizes = ((32, 64), (48, 40), (32, 64), (32, 64))
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    auditor = load_scenes_mask2former(_settings(folder, batch_size=1))
    for image, seen in zip(images, auditor.annotate(images), strict=True):
        (alone,) = auditor.annotate([image])
        assert seen.masks.shape[1:] == image.shape[:2]
        assert seen.masks.tobytes() == alone.masks.tobytes()
        assert seen.predicted_iou == alone.predicted_iou


def test_scores_are_those_of_transformers(folder: Path) -> None:
    """At 384 px, where transformers' own post-processing resizes but once."""
    model, processor = load_m2f(folder)
    image = np.random.default_rng(2).integers(0, 256, (384, 384, 3)).astype(np.uint8)
    inputs = processor(images=[image], input_data_format="channels_last", return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=inputs["pixel_values"])
    theirs = processor.post_process_semantic_segmentation(
        output, [(384, 384)], return_segmentation_scores=True
    )[0]["segmentation_scores"]
    ours = class_scores(output.masks_queries_logits[0], output.class_queries_logits[0], (384, 384))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_masks_are_those_of_the_classes_that_win_a_pixel() -> None:
    scores = _scores(3)
    seen = annotate_scores(scores, ["a", "b", "c", "d"])
    assert (seen.masks.sum(0) == 1).all()
    assert (np.diff(seen.masks.sum((1, 2))) <= 0).all(), "largest first"
    for mask, label, score in zip(seen.masks, seen.labels, seen.predicted_iou, strict=True):
        own = "abcd".index(label)
        assert (mask == (scores.argmax(0) == own)).all()
        assert score == pytest.approx(scores[own][mask].mean())


def test_missing_weights_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train m2f") as caught:
        load_scenes_mask2former(_settings(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="Got none in"):
        load_mask2former(_settings(tmp_path))


def test_another_hash_is_refused_and_both_are_named(folder: Path) -> None:
    right = load_mask2former(_settings(folder)).identity["sha256"]
    assert load_mask2former(_settings(folder, sha256=right.upper())).identity["sha256"] == right
    with pytest.raises(ValueError, match=f"must have sha256 {'0' * 64}. Got {right}"):
        load_mask2former(_settings(folder, sha256="0" * 64))


def test_truncated_weights_are_refused(copied: Path) -> None:
    content = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="must hold a Mask2Former") as caught:
        load_mask2former(_settings(copied))
    assert "\n" not in str(caught.value)


def test_incomplete_weights_are_refused_not_filled_with_noise(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    del tensors["class_predictor.weight"]
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"Missing: class_predictor\.weight"):
        load_mask2former(_settings(copied))


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "not json",
        '{"model_type": "sam"}',
        '{"model_type": "mask2former", "num_queries": "many"}',
    ],
)
def test_a_folder_of_another_model_is_refused(copied: Path, content: str) -> None:
    (copied / "config.json").write_text(content)
    with pytest.raises(ValueError, match="must hold a Mask2Former") as caught:
        load_mask2former(_settings(copied))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"checkpoint": "mask2former-swin-large-abe"},
            "Did you mean 'mask2former-swin-large-ade'",
        ),
        ({"revision": "main"}, "must be a commit hash of 40 hex digits"),
        ({}, "facebook/mask2former-swin-large-ade-semantic must be in the local hub cache"),
        ({"checkpoint": "no-such-owner/nothing"}, "must be in the local hub cache"),
    ],
)
def test_a_checkpoint_out_of_reach_is_one_clear_line(
    settings: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=message) as caught:
        load_mask2former(AuditorConfig(name="mask2former", **settings))
    assert "\n" not in str(caught.value)


def test_an_auditor_loaded_by_name_says_which_classes_it_knows() -> None:
    """Else no audit of the command line would judge a label."""
    assert set(CLASSES) <= set(load_auditor(AuditorConfig(name="scenes-m2f")).class_names)
    assert load_auditor(AuditorConfig(name="halves:load_halves")).class_names == ()
