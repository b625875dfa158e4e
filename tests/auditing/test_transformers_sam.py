"""SAMs of transformers as auditors: tiny random ones in local folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import check_annotations, check_auditor, check_auditor_identity

from synthgen.auditing.transformers_sam import load_transformers_sam
from synthgen.config import AuditorConfig
from synthgen.embedded.card import file_digests

LOOSE: dict[str, Any] = {
    "points_per_side": 3,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
}
"""Lets masks of random weights through."""

_TINY_DECODER = {
    "hidden_size": 32,
    "mlp_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_depth": 2,
    "iou_head_hidden_dim": 16,
}


def _tiny_sam(folder: Path) -> None:
    from transformers import SamConfig, SamImageProcessor, SamModel

    vision = {
        "hidden_size": 32,
        "output_channels": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 0,
        "global_attn_indexes": [0],
        "num_pos_feats": 16,
        "mlp_dim": 32,
        "initializer_range": 0.2,
    }
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 8, "mask_input_channels": 8}
    config = SamConfig(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=_TINY_DECODER
    )
    sides = {"height": 64, "width": 64}
    SamModel(config).save_pretrained(folder)
    SamImageProcessor(size={"longest_edge": 64}, pad_size=sides).save_pretrained(folder)


def _tiny_sam2(folder: Path) -> None:
    import transformers
    from transformers import Sam2Config, Sam2Model

    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [4, 4, 2, 2],
        "window_positional_embedding_background_size": [4, 4],
        "global_attention_blocks": [3],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    }
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 8}
    config = Sam2Config(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=_TINY_DECODER
    )
    sides = {"height": 64, "width": 64}
    Sam2Model(config).save_pretrained(folder)
    older = "Sam2ImageProcessorFast"  # before transformers 5.4
    processor = getattr(transformers, "Sam2ImageProcessor", None) or getattr(transformers, older)
    processor(size=sides, mask_size={"height": 16, "width": 16}).save_pretrained(folder)


@pytest.mark.parametrize("save", [_tiny_sam, _tiny_sam2])
def test_transformers_sams_are_auditors(save: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(tmp_path)
    settings = AuditorConfig(checkpoint=str(tmp_path), generator=LOOSE, device="cpu")
    auditor = load_transformers_sam(settings)
    found = check_auditor(auditor)
    assert any(len(annotations) for annotations in found)
    check_auditor_identity(load_transformers_sam, settings, "crop_nms_thresh", 0.5)
    strict = {**LOOSE, "pred_iou_thresh": 1.0}
    none = load_transformers_sam(settings.model_copy(update={"generator": strict}))
    (nothing,) = none.annotate([np.zeros((40, 60, 3), np.uint8)])
    check_annotations(nothing, (40, 60))
    digest = auditor.identity["sha256"]
    assert digest == file_digests(tmp_path)["model.safetensors"]
    with pytest.raises(ValueError, match=f"sha256 {'2' * 64}. Got {digest}"):
        load_transformers_sam(settings.model_copy(update={"sha256": "2" * 64}))


def test_transformers_sams_come_from_folders_of_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="local folder of a SAM, or a hub id"):
        load_transformers_sam(AuditorConfig(checkpoint="facebook/sam-vit-base"))
    with pytest.raises(ValueError, match="Got none in"):
        load_transformers_sam(AuditorConfig(checkpoint=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="must hold a SAM of transformers") as caught:
        load_transformers_sam(AuditorConfig(checkpoint=str(tmp_path), device="cpu"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"box_nms_thresh must be a parameter"):
        load_transformers_sam(
            AuditorConfig(checkpoint=str(tmp_path), generator={"box_nms_thresh": 1})
        )


def _sam3_vision() -> Any:
    from transformers import Sam3VisionConfig, Sam3ViTConfig

    backbone = Sam3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=112,
        patch_size=14,
        window_size=4,
        global_attn_indexes=[1],
        pretrain_image_size=56,
    )
    sizes = [[32, 32], [16, 16], [8, 8]]
    return Sam3VisionConfig(
        backbone_config=backbone, fpn_hidden_size=32, backbone_feature_sizes=sizes
    )


def test_sam3_trackers_annotate_and_concept_models_are_told_apart(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import (
        Sam3Config,
        Sam3ImageProcessor,
        Sam3TrackerConfig,
        Sam3TrackerMaskDecoderConfig,
        Sam3TrackerModel,
        Sam3TrackerProcessor,
        Sam3TrackerPromptEncoderConfig,
    )

    sides = {"height": 112, "width": 112}
    processor = Sam3ImageProcessor(size=sides, mask_size={"height": 32, "width": 32})
    prompt = Sam3TrackerPromptEncoderConfig(
        hidden_size=32, image_size=112, patch_size=14, mask_input_channels=16
    )
    decoder = Sam3TrackerMaskDecoderConfig(
        hidden_size=32,
        mlp_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        iou_head_hidden_dim=32,
    )
    config = Sam3TrackerConfig(
        vision_config=_sam3_vision(), prompt_encoder_config=prompt, mask_decoder_config=decoder
    )
    torch.manual_seed(0)
    Sam3TrackerModel(config).save_pretrained(tmp_path / "tracker")
    Sam3TrackerProcessor(processor).save_pretrained(tmp_path / "tracker")
    settings = AuditorConfig(checkpoint=str(tmp_path / "tracker"), generator=LOOSE, device="cpu")
    auditor = load_transformers_sam(settings)
    assert auditor.identity["model_type"] == "sam3_tracker"
    images = [np.full((64, 64, 3), 128, np.uint8), np.zeros((48, 64, 3), np.uint8)]
    for found, image in zip(auditor.annotate(images), images, strict=True):
        check_annotations(found, image.shape[:2])
    weights = load_file(tmp_path / "tracker/model.safetensors")
    name = next(name for name in weights if "mask_decoder" in name)
    del weights[name]
    save_file(weights, tmp_path / "tracker/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"Got: weights without 1 tensors, such as .*mask_decoder"
    ):
        load_transformers_sam(settings)
    Sam3Config(vision_config=_sam3_vision()).save_pretrained(tmp_path / "concept")
    (tmp_path / "concept/model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Got: a sam3, which wants a text .* Sam3TrackerModel"):
        load_transformers_sam(AuditorConfig(checkpoint=str(tmp_path / "concept")))
