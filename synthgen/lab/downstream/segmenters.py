"""Downstream segmenters: the libraries' networks behind one call.

A row of ``registry.DOWNSTREAM_MODELS`` is ``(num_classes) -> nn.Module``; the module maps images
in [-1, 1] to logits of their size. Weights are random: nothing is downloaded, so that what a
network knows it has learned from the labels it was given. Published figures begin with an encoder
that was trained on ImageNet: `build_pretrained` takes one from a folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from synthgen.registry import DOWNSTREAM_MODELS, resolve

MIN_BATCH = 2
"""DeepLab's image pooling normalizes over the batch, which needs two images."""


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of sRGB in [0, 1]: what encoders expect whose folder does not say otherwise."""

Channels = tuple[float, float, float]


class PixelClassifier(nn.Module):
    """A library's segmentation network, with logits at the size of the image.

    Args:
        network: Takes images, gives ``logits`` or ``out``.
        mean: Of the images that it takes, per channel of sRGB in [-1, 1].
        std: Their standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: Channels = (0.0,) * 3, std: Channels = (1.0,) * 3
    ) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch cls height width"]:
        """Logits of every class at every pixel; images are sRGB in [-1, 1]."""
        output = self.network((images - self.mean) / self.std)
        logits = output["logits"] if "logits" in output else output["out"]
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def build_segmenter(name: str, num_classes: int, backbone: str | None = None) -> nn.Module:
    """A fresh network of a row of DOWNSTREAM_MODELS or ``module:attribute``; seed torch first.

    Args:
        name: The row; of no meaning with a backbone.
        num_classes: Classes, with the background.
        backbone: Folder of a trained encoder, see `build_pretrained`.

    Raises:
        ValueError: For an unknown name, fewer than two classes, or a folder without an encoder.
    """
    if num_classes < 2:
        raise ValueError(
            f"A segmenter needs background and at least one class. Got {num_classes} in all."
        )
    if backbone is not None:
        return build_pretrained(backbone, num_classes)
    network: nn.Module = resolve(name, DOWNSTREAM_MODELS, "model")(num_classes)
    return network


def build_pretrained(folder: str | Path, num_classes: int) -> nn.Module:
    """An encoder from a folder, with a head that is not trained yet.

    A SegFormer (``nvidia/mit-b0`` and the like) gets its own head; every other backbone that
    transformers or timm knows (ResNet, ConvNeXt, Swin, DINOv2, …) that of UperNet (Xiao et al.
    2018) on its last four stages, or on four of its blocks. Only safetensors are read.

    Args:
        folder: ``config.json`` and ``model.safetensors`` of transformers or, if timm is
            installed, of timm, as the Hub keeps them.
        num_classes: Classes, with the background.

    Raises:
        ValueError: If the folder is missing, is no encoder, or needs timm and there is none.
    """
    from transformers import (
        SegformerForSemanticSegmentation,
        UperNetConfig,
        UperNetForSemanticSegmentation,
    )

    folder, head = Path(folder), {"num_labels": num_classes}
    safe = {"local_files_only": True, "use_safetensors": True}
    try:
        about = json.loads((folder / "config.json").read_text("utf-8"))
        if about.get("model_type") == "segformer":
            network: nn.Module = SegformerForSemanticSegmentation.from_pretrained(
                folder, **head, **safe, ignore_mismatched_sizes=True
            )
        else:
            encoder = _timm(folder) if "architecture" in about else _transformers(folder, safe)
            config = UperNetConfig(
                backbone_config=encoder.config, use_auxiliary_head=False, **head
            )
            network = UperNetForSemanticSegmentation(config)
            network.backbone = encoder
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"A backbone must be a folder with config.json and model.safetensors of an encoder of "
            f"transformers, or of timm if that is installed. Got {folder}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    mean, std = _normalization(folder, about)
    return PixelClassifier(network, _doubled(mean, shift=-1.0), _doubled(std))


def _transformers(folder: Path, safe: Mapping[str, bool]) -> nn.Module:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(f"{config.model_type} is no backbone of transformers")
    num = len(config.stage_names) - 1  # after the stem: four stages, or blocks of one size
    config.out_indices = [num * (i + 1) // 4 for i in range(4)] if num > 5 else [-4, -3, -2, -1]
    # AutoBackbone.from_pretrained of transformers 5 asks the Hub, even for a folder
    encoder: nn.Module = MODEL_FOR_BACKBONE_MAPPING[type(config)].from_pretrained(
        folder, config=config, **safe
    )
    return encoder


def _timm(folder: Path) -> nn.Module:
    from transformers import AutoBackbone, TimmBackboneConfig

    if not (folder / "model.safetensors").is_file():  # timm would take a pickle
        raise FileNotFoundError("no model.safetensors in it")
    config = TimmBackboneConfig(backbone=f"local-dir:{folder}", out_indices=(-4, -3, -2, -1))
    encoder: nn.Module = AutoBackbone.from_config(config, pretrained=True)
    return encoder


def _normalization(folder: Path, about: Mapping[str, Any]) -> tuple[Channels, Channels]:
    """Mean and standard deviation that an encoder was trained with, of sRGB in [0, 1]."""
    said, beside = about.get("pretrained_cfg", {}), folder / "preprocessor_config.json"
    if beside.is_file():
        processor = json.loads(beside.read_text("utf-8"))
        said = {"mean": processor.get("image_mean"), "std": processor.get("image_std")}
    return tuple(said.get("mean") or IMAGENET_MEAN), tuple(said.get("std") or IMAGENET_STD)


def _doubled(values: Channels, shift: float = 0.0) -> Channels:
    """From [0, 1] to [-1, 1]."""
    first, second, third = (2.0 * value + shift for value in values)
    return first, second, third


def build_segformer(num_classes: int) -> nn.Module:
    """SegFormer (Xie et al. 2021) of about a million parameters, for 128 pixels and a CPU."""
    return _segformer(
        num_classes,
        depths=(1, 1, 2, 1),
        hidden_sizes=(32, 64, 128, 160),
        num_attention_heads=(1, 2, 4, 5),
        mlp_ratios=(2, 2, 2, 2),
        decoder_hidden_size=64,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
    )


def build_segformer_b0(num_classes: int) -> nn.Module:
    """SegFormer-B0: the configuration of Xie et al. 2021, table 6."""
    return _segformer(num_classes)


def build_lraspp(num_classes: int) -> nn.Module:
    """LR-ASPP on MobileNetV3-Large (Howard et al. 2019)."""
    return _torchvision("lraspp_mobilenet_v3_large", num_classes)


def build_deeplab(num_classes: int) -> nn.Module:
    """DeepLabV3 (Chen et al. 2017) on MobileNetV3-Large."""
    return _torchvision("deeplabv3_mobilenet_v3_large", num_classes)


def _torchvision(name: str, num_classes: int) -> nn.Module:
    from torchvision.models import segmentation

    build = getattr(segmentation, name)
    return PixelClassifier(build(weights=None, weights_backbone=None, num_classes=num_classes))


def _segformer(num_classes: int, **changes: object) -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(num_labels=num_classes, **changes)
    network = SegformerForSemanticSegmentation(config)
    for module in network.modules():
        initialize(module)
    return PixelClassifier(network)


def initialize(module: nn.Module) -> None:
    """Weights of variance 1 / fan-in, biases of zero (LeCun et al. 1998, section 4.6).

    The library's standard deviation of .02, meant for weights that are loaded afterwards, makes
    all signals of a narrow network tiny: from scratch it learns foreground, but no class, in
    1,200 steps (mIoU .16 on 200 tuning scenes, with these weights .70).
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
