"""Encoders that were trained elsewhere: whose weights and colors they are, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
import transformers
from transformers import (
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    SegformerConfig,
    SegformerModel,
)
from typer.testing import CliRunner

from synthgen.cli import app, main
from synthgen.lab.downstream.segmenters import build_segmenter
from synthgen.lab.downstream.trainer import load_averaged


def save_resnet(folder: Path) -> torch.Tensor:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    encoder = ResNetModel(ResNetConfig(**sizes, layer_type="basic"))
    encoder.save_pretrained(folder)
    return encoder.embedder.embedder.convolution.weight


def save_dinov2(folder: Path) -> torch.Tensor:
    sizes = {"hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2}
    encoder = Dinov2Model(Dinov2Config(**sizes, image_size=28))
    encoder.save_pretrained(folder)
    return encoder.embeddings.patch_embeddings.projection.weight


def save_segformer(folder: Path) -> torch.Tensor:
    encoder = SegformerModel(
        SegformerConfig(
            hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1]
        )
    )
    encoder.save_pretrained(folder)
    return next(p for p in encoder.parameters() if p.ndim == 4)


def save_timm(folder: Path) -> torch.Tensor:
    encoder = timm.create_model("test_resnet", pretrained=False)
    timm.models.save_for_hf(encoder, folder, safe_serialization=True)
    weight: torch.Tensor = (
        encoder.conv1[0].weight
        if isinstance(encoder.conv1, torch.nn.Sequential)
        else encoder.conv1.weight
    )
    return weight


@pytest.mark.parametrize("save", [save_resnet, save_dinov2, save_segformer, save_timm])
def test_a_network_begins_with_the_weights_of_a_folder(save, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    first = save(tmp_path / "encoder")
    torch.manual_seed(0)
    network = build_segmenter("segformer", 5, str(tmp_path / "encoder"))
    assert any(torch.equal(weight, first) for weight in network.parameters())
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    logits = network(images)
    assert logits.shape == (2, 5, 64, 96)
    logits.sum().backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if "proj.weight" in n)


def test_images_reach_an_encoder_in_the_colors_that_it_knows(tmp_path: Path) -> None:
    save_resnet(tmp_path)
    about = {"image_mean": [0.5, 0.25, 0.0], "image_std": [0.5, 0.25, 1.0]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    network = build_segmenter("segformer", 2, str(tmp_path)).eval()
    seen: list[torch.Tensor] = []
    network.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.tensor([0.2, 0.4, 0.6])[None, :, None, None].expand(1, 3, 64, 64)
    network(image * 2 - 1)
    expected = torch.tensor([(0.2 - 0.5) / 0.5, (0.4 - 0.25) / 0.25, 0.6])
    assert torch.allclose(seen[0][0, :, 3, 3], expected, atol=1e-6)


def test_what_is_no_encoder_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").mkdir()
    transformers.CLIPTextConfig().save_pretrained(tmp_path / "text")
    (tmp_path / "bare").mkdir()
    transformers.ResNetConfig().save_pretrained(tmp_path / "bare")  # no weights
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "config.json").write_text('{"architecture": "test_resnet"}')
    torch.save({}, tmp_path / "pickle" / "pytorch_model.bin")
    for name in ("missing", "text", "bare", "pickle"):
        with pytest.raises(ValueError, match="A backbone must be a folder") as caught:
            build_segmenter("segformer", 2, str(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    command = ["train", "scenes", "--val", "scenes", "--backbone", str(tmp_path / "missing")]
    monkeypatch.setattr(sys, "argv", ["synthgen", *command, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        main()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert "A backbone must be a folder" in line
    assert not (tmp_path / "run").exists()


def test_training_begins_with_a_backbone_and_its_result_is_loaded(tmp_path: Path) -> None:
    save_resnet(tmp_path / "encoder")
    command = ["train", "scenes", "--val", "scenes", "--num", "4", "--val-num", "2", "--device"]
    command += ["cpu", "--backbone", str(tmp_path / "encoder"), "--out", str(tmp_path / "run")]
    command += ["--set", "steps=2", "--set", "batch=2", "--set", "size=64"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    model, meta = load_averaged(tmp_path / "run" / "checkpoint")
    assert meta["identity"]["settings"]["backbone"] == str(tmp_path / "encoder")
    assert "UperNet" in type(model.network).__name__
