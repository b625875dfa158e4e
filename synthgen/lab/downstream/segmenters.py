"""Downstream segmenters from scratch: the libraries' networks behind one call.

A row of ``registry.DOWNSTREAM_MODELS`` is ``(num_classes) -> nn.Module``; the module maps images
in [-1, 1] to logits of their size. Weights are random: nothing is downloaded, so that what a
network knows it has learned from the labels it was given.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from synthgen.registry import DOWNSTREAM_MODELS, resolve

MIN_BATCH = 2
"""DeepLab's image pooling normalizes over the batch, which needs two images."""


class PixelClassifier(nn.Module):
    """A library's segmentation network, with logits at the size of the image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch cls height width"]:
        """Logits of every class at every pixel; images are sRGB in [-1, 1]."""
        output = self.network(images)
        logits = output["logits"] if "logits" in output else output["out"]
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def build_segmenter(name: str, num_classes: int) -> nn.Module:
    """A fresh network of a row of DOWNSTREAM_MODELS or ``module:attribute``; seed torch first.

    Raises:
        ValueError: For an unknown name, or fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(
            f"A segmenter needs background and at least one class. Got {num_classes} in all."
        )
    network: nn.Module = resolve(name, DOWNSTREAM_MODELS, "model")(num_classes)
    return network


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
