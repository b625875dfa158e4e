"""Backbones: attention processors, LoRA, identity, compilation, threads."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from drawn_samples import CAPTURE, CAR, DOG, FAST, images, samples
from safetensors.torch import save_file

from synthgen.config import CaptureConfig, LabelConfig, ModelConfig
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.diffusion.cards import only_variant
from synthgen.diffusion.generate import generate
from synthgen.types import Sample


@pytest.mark.parametrize("attention", ["sliced", "fused"])
def test_processors_draw_the_same_and_are_recorded(
    backbone: Backbone, tiny_pipeline: Path, attention: str
) -> None:
    other = load_backbone(ModelConfig(card=str(tiny_pipeline), attention=attention))
    assert other is not backbone
    capture, labeling = CaptureConfig(layers="all"), LabelConfig(method="argmax", text="prompt")
    drawn = ([CAR, DOG], [1, 2], FAST, capture, labeling)
    expected, found = samples(generate(backbone, *drawn)), samples(generate(other, *drawn))
    assert np.abs(images(found).astype(int) - images(expected)).max() <= 1
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one.heatmaps.values, two.heatmaps.values)
        for layer, value in one.features.values.items():
            reference = two.features.values[layer]
            torch.testing.assert_close(value, reference, atol=1e-4, rtol=1e-4)


def test_lora_is_merged_and_part_of_the_identity(
    backbone: Backbone, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """Also under fused projections, which read the weights and would miss a wrapper."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        tiny_pipeline, safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    pipeline.unet.add_adapter(
        LoraConfig(
            r=4, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]
        )
    )
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(pipeline.unet))
    path = tmp_path / "pytorch_lora_weights.safetensors"
    wrapped = Backbone(pipeline, backbone.card, {}, backbone.device, backbone.dtype)
    expected = samples(generate(wrapped, [CAR], [1], FAST, CAPTURE))[0]
    plain = samples(generate(backbone, [CAR], [1], FAST, CAPTURE))[0]
    for attention in ("default", "fused"):
        config = ModelConfig(card=str(tiny_pipeline), lora=str(path), attention=attention)
        merged = load_backbone(config)
        assert len(merged.identity["lora"]) == 64
        found = samples(generate(merged, [CAR], [1], FAST, CAPTURE))[0]
        for layer, value in found.features.values.items():
            torch.testing.assert_close(
                value, expected.features.values[layer], atol=1e-4, rtol=1e-4
            )
            assert not torch.allclose(value, plain.features.values[layer], atol=1e-2)
    for bad in (tmp_path / "none.safetensors", tiny_pipeline / "model_index.json"):
        with pytest.raises(ValueError, match=r"model\.lora must be an existing"):
            load_backbone(ModelConfig(card=str(tiny_pipeline), lora=str(bad)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": [32, 64, 64, 64]}, "size mismatch for down_blocks"),
        ({"cross_attention_dim": 48}, "size mismatch for down_blocks"),
        ({"transformer_layers_per_block": 2}, "of whose 192 layers the model has 96"),
        ({}, "of whose 96 layers the model has 0"),
    ],
)
def test_a_lora_of_another_model_is_refused_in_one_line(
    tiny_pipeline: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    """diffusers prints hundreds of lines, or leaves out what the model has not."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    settings = dict(diffusers.UNet2DConditionModel.load_config(tiny_pipeline / "unet"))
    unet = diffusers.UNet2DConditionModel.from_config(settings | changes)
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"]))
    layers = get_peft_model_state_dict(unet)
    prefix = "unet" if changes else "prior"
    tensors = {f"{prefix}.{name}": value.contiguous() for name, value in layers.items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    capfd.readouterr()
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(
            ModelConfig(card=str(tiny_pipeline), lora=str(tmp_path / "lora.safetensors"))
        )
    assert "\n" not in str(caught.value)
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_backbones_are_loaded_once_and_know_their_weights(
    backbone: Backbone, tiny_pipeline: Path
) -> None:
    assert load_backbone(ModelConfig(card=str(tiny_pipeline))) is backbone
    assert backbone.identity["id"] == "local"
    assert len(backbone.identity["sha256"]) > 3
    assert str(tiny_pipeline) not in str(backbone.identity)
    assert (backbone.device.type, backbone.dtype) == ("cpu", torch.float32)
    assert not backbone.pipeline.unet.training
    half = load_backbone(ModelConfig(card=str(tiny_pipeline), dtype="bfloat16", vae_tiling=True))
    assert half.pipeline.unet.dtype == torch.bfloat16
    assert half.pipeline.vae.use_tiling
    (sample,) = samples(generate(half, [CAR], [1], FAST, CAPTURE, LabelConfig(method="propagate")))
    assert next(iter(sample.features.values.values())).dtype == torch.float32
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"model\.device must be present"):
            load_backbone(ModelConfig(card=str(tiny_pipeline), device="cuda"))


def test_compiled_parts_hold_no_hooked_module(tiny_pipeline: Path) -> None:
    """Compilation itself needs a compiler; what matters here is what is asked for."""
    compiled = load_backbone(ModelConfig(card=str(tiny_pipeline), compile=True))
    parts = [m for m in compiled.pipeline.unet.modules() if m._compiled_call_impl is not None]
    assert {type(part).__name__ for part in parts} == {"ResnetBlock2D", "FeedForward"}
    assert not any("attn" in name for part in parts for name, _ in part.named_modules())


def test_threads_that_share_a_backbone_do_not_mix_their_captures(backbone: Backbone) -> None:
    expected = samples(generate(backbone, [CAR], [1], FAST, CAPTURE))[0]
    found: list[Sample] = []

    def work(seed: int) -> None:
        found.extend(samples(generate(backbone, [CAR], [seed], FAST, CAPTURE)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for sample in found:
        if sample.seed == 1:
            assert np.array_equal(sample.image, expected.image)
            for layer, value in sample.features.values.items():
                assert torch.equal(value, expected.features.values[layer])


def test_a_folder_of_one_variant_only_is_loaded_and_hashed(tmp_path: Path) -> None:
    from tiny import tiny_pipeline_parts

    pipeline = diffusers.StableDiffusionPipeline(
        **tiny_pipeline_parts(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(tmp_path, variant="fp16")
    loaded = load_backbone(ModelConfig(card=str(tmp_path)))
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in loaded.identity["sha256"]
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(loaded.pipeline.unet.state_dict()[name], tensor)
    weights = tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.bf16.safetensors"))
    with pytest.raises(ValueError, match=r"plain weights or one variant\. Got bf16, fp16"):
        only_variant(tmp_path)
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.safetensors"))
    assert only_variant(tmp_path) is None
