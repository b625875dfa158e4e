"""SAM auditors: checked checkpoints, every parameter open and recorded."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import check_annotations, check_auditor, check_auditor_identity
from segment_anything import SamAutomaticMaskGenerator

from synthgen.auditing.parameters import read_parameters
from synthgen.auditing.sam import (
    PUBLISHED,
    SamParameters,
    checked_file,
    load_sam,
    load_scenes_sam,
    model_type,
    read_state,
)
from synthgen.config import AuditorConfig
from synthgen.embedded.card import file_digests
from synthgen.embedded.sam import WEIGHTS_NAME, build_scenes_sam, load_folder, save_sam

LOOSE: dict[str, Any] = {
    "points_per_side": 3,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 0.9,
}
"""Lets masks of random weights through."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scenes-sam with random weights."""
    folder = tmp_path_factory.mktemp("sam") / "weights_sam"
    torch.manual_seed(0)
    save_sam(build_scenes_sam(), folder)
    (folder / "card.json").write_text(json.dumps({"sha256": file_digests(folder)}))
    return folder


@pytest.fixture(scope="module")
def pth(weights: Path) -> Path:
    """The same weights as a checkpoint of the kind that Meta publishes."""
    path = weights.parent / "sam.pth"
    torch.save(load_folder(weights).state_dict(), path)
    return path


def _scenes(weights: Path, **generator: Any) -> AuditorConfig:
    return AuditorConfig(checkpoint=str(weights), generator={**LOOSE, **generator}, device="cpu")


def _sha256(path: Path) -> str:
    return file_digests(path.parent)[path.name]


def test_scenes_sam_is_an_auditor(weights: Path) -> None:
    found = check_auditor(load_scenes_sam(_scenes(weights)))
    assert any(len(annotations) for annotations in found)
    check_auditor_identity(load_scenes_sam, _scenes(weights), "pred_iou_thresh", 0.25)
    check_auditor_identity(load_scenes_sam, _scenes(weights), "crop_n_layers", 1)


def test_annotations_are_what_the_package_generates(weights: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    auditor = load_scenes_sam(_scenes(weights, crop_n_layers=1))
    (found,) = auditor.annotate([image])
    parameters = auditor.identity["generator"]
    records = SamAutomaticMaskGenerator(load_folder(weights), **parameters).generate(image)
    records = [record for record in records if record["area"]]
    assert len(found) == len(records) > 0
    for mask, iou, point, record in zip(
        found.masks, found.predicted_iou, found.points_xy, records, strict=True
    ):
        assert np.array_equal(mask, record["segmentation"])
        assert iou == record["predicted_iou"]
        assert list(point) == record["point_coords"][0]


def test_nothing_found_is_an_answer(weights: Path) -> None:
    auditor = load_scenes_sam(_scenes(weights, pred_iou_thresh=1.0, crop_n_layers=1))
    (found,) = auditor.annotate([np.zeros((40, 60, 3), np.uint8)])
    check_annotations(found, (40, 60))
    assert len(found) == 0


def test_a_checkpoint_is_hashed_before_it_is_read(pth: Path, weights: Path) -> None:
    settings = _scenes(pth).model_copy(update={"sha256": _sha256(pth)})
    image = np.random.default_rng(2).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    auditor = load_sam(settings)
    assert auditor.identity["sha256"] == _sha256(pth)
    (ours,), (theirs,) = (
        a.annotate([image]) for a in (auditor, load_scenes_sam(_scenes(weights)))
    )
    assert np.array_equal(ours.masks, theirs.masks)
    with pytest.raises(ValueError, match=f"sha256 must be given.*{_sha256(pth)}"):
        load_sam(_scenes(pth))
    wrong = settings.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ValueError, match=f"must have sha256 {'0' * 64}. Got {_sha256(pth)}"):
        load_sam(wrong)


def test_a_missing_or_renamed_checkpoint_names_the_sha256_it_wants(tmp_path: Path) -> None:
    name, expected = next(iter(PUBLISHED.items()))
    with pytest.raises(ValueError, match=rf"with sha256 {expected}.*{name}"):
        checked_file(str(tmp_path / name), None)
    with pytest.raises(ValueError, match="Got none"):
        checked_file(None, None)
    (tmp_path / name).write_bytes(b"not it")
    with pytest.raises(ValueError, match=rf"must have sha256 {expected}. Got [0-9a-f]{{64}};"):
        checked_file(str(tmp_path / name), None)


def test_only_tensors_are_read_from_a_pickle(tmp_path: Path, pth: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    for payload in (Attack(), {"image_encoder.pos_embed": Attack()}):
        torch.save(payload, tmp_path / "bad.pth")
        with pytest.raises(ValueError, match="plain weights"):
            read_state(tmp_path / "bad.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "cut.pth").write_bytes(pth.read_bytes()[:5000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 50)
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    for name in ("raw.pth", "cut.pth", "cut.safetensors", "other.pth"):
        with pytest.raises(ValueError, match=name) as caught:
            read_state(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("prefix", ["", "module.", "sam.", "module.model.sam_model."])
@pytest.mark.parametrize("under", [(), ("model",), ("state_dict",), ("checkpoint", "model")])
def test_wrapped_and_prefixed_checkpoints_are_the_same_weights(
    prefix: str, under: tuple[str, ...], pth: Path, tmp_path: Path
) -> None:
    plain = read_state(pth)
    tree: Any = {prefix + name: tensor for name, tensor in plain.items()}
    if prefix:
        tree["optimizer.step"] = torch.zeros(1)
    for name in under:
        tree = {"epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}, name: tree}
    path = tmp_path / "tuned.pth"
    torch.save(tree, path)
    found = read_state(path)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    settings = AuditorConfig(checkpoint=str(path), sha256=_sha256(path), device="cpu")
    if prefix == "module." and under == ("model",):
        assert load_sam(settings).identity["model_type"] == "scenes"


def test_the_width_says_which_sam_it_is(pth: Path) -> None:
    for width, name in ((768, "vit_b"), (1024, "vit_l"), (1280, "vit_h")):
        state = {"image_encoder.pos_embed": torch.zeros(1, 2, 2, width)}
        assert model_type(state) == name
    with pytest.raises(ValueError, match="Got none"):
        model_type({})
    partial = {k: v for k, v in read_state(pth).items() if "neck" not in k}
    torch.save(partial, pth.parent / "partial.pth")
    path = pth.parent / "partial.pth"
    settings = AuditorConfig(checkpoint=str(path), sha256=_sha256(path), device="cpu")
    with pytest.raises(ValueError, match=r"weights of a scenes.*neck"):
        load_sam(settings)


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ({"point_per_side": 8}, r"generator\.point_per_side .*Did you mean 'points_per_side'"),
        ({"output_mode": "coco_rle"}, r"output_mode must be a parameter.*Known: points_per_side"),
        ({"pred_iou_thresh": 1.5}, r"generator\.pred_iou_thresh is not valid.*Got 1\.5"),
        ({"points_per_side": 2.5}, r"generator\.points_per_side is not valid.*Got 2\.5"),
        (
            {"points_per_side": 2, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
            r"must leave a point in the smallest crops",
        ),
    ],
)
def test_bad_parameters_are_named(generator: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_parameters(SamParameters, generator)
    assert "\n" not in str(caught.value)


def test_every_parameter_of_the_package_is_open_or_fixed() -> None:
    names = set(SamAutomaticMaskGenerator.__init__.__annotations__) - {"model", "return"}
    assert names - set(SamParameters.model_fields) == {"point_grids", "output_mode"}
    defaults = SamAutomaticMaskGenerator.__init__.__defaults__
    order = list(SamAutomaticMaskGenerator.__init__.__annotations__)[1 : 1 + len(defaults)]
    package = dict(zip(order, defaults, strict=True))
    for name, value in SamParameters().model_dump().items():
        assert value == package[name], name


@pytest.mark.skipif(importlib.util.find_spec("cv2") is not None, reason="OpenCV is installed")
def test_small_regions_need_opencv(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"needs OpenCV.*synthgen\[opencv\]"):
        load_scenes_sam(_scenes(weights, min_mask_region_area=10))


def test_other_weights_than_the_card_names_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must hold the weights of scenes-sam"):
        load_scenes_sam(_scenes(tmp_path))
    settings = _scenes(weights).model_copy(update={"sha256": "1" * 64})
    with pytest.raises(ValueError, match=f"{WEIGHTS_NAME} must have sha256 {'1' * 64}"):
        load_scenes_sam(settings)
