"""The embedded Mask2Former: transformers' class at a size that learns on two cores.

The backbone is a small ResNet of basic blocks instead of a Swin: the class builds any backbone
that `AutoBackbone` knows, and from scratch a convolutional one learns sooner. Masks have stride 4.
Every pixel has a class: the background is one, so that a class id is a value of `Scene.semantic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    ResNetConfig,
)

from synthgen.embedded.card import recipe_dir
from synthgen.embedded.folders import load_network, quiet, refusing
from synthgen.embedded.vocabulary import CLASSES, IMAGE_SIZE

LABELS: tuple[str, ...] = ("background", *CLASSES)
"""Name of each class id."""

SIZE_DIVISOR = 32
"""Stride of the coarsest features; images are resized to multiples of it."""

LONGEST_EDGE = 8 * IMAGE_SIZE
SHIPPED_M2F = Path(__file__).parent / "weights_m2f"


def m2f_config() -> Mask2FormerConfig:
    """Configuration of the embedded model: 1.5 million parameters, 3.1 MB in fp16.

    A scene holds at most five classes, so 20 queries leave room; 512 points a mask are half of
    the positions of its logits. Three masked-attention layers look once at each feature level.
    """
    backbone = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 192],
        depths=[2, 2, 2, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=128,
        encoder_layers=1,
        decoder_layers=4,
        num_attention_heads=4,
        dim_feedforward=128,
        num_queries=20,
        train_num_points=512,
        id2label=dict(enumerate(LABELS)),
        label2id={name: number for number, name in enumerate(LABELS)},
    )


def build_m2f() -> Mask2FormerForUniversalSegmentation:
    """Model with fresh weights; seed torch first."""
    with quiet():
        return Mask2FormerForUniversalSegmentation(m2f_config())


def build_processor() -> Mask2FormerImageProcessorPil:
    """Image processor that leaves scenes at their size and maps 0-255 to [-1, 1]."""
    return Mask2FormerImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE, "longest_edge": LONGEST_EDGE},
        size_divisor=SIZE_DIVISOR,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        num_labels=len(LABELS),
    )


def save_m2f(model: Mask2FormerForUniversalSegmentation, folder: Path) -> None:
    """Write model (fp16 safetensors), configuration and image processor."""
    with quiet():
        model.to(torch.float16).save_pretrained(folder)
        build_processor().save_pretrained(folder)


def m2f_weights_dir(folder: Path = SHIPPED_M2F) -> Path:
    """Folder of the embedded Mask2Former, after comparing its files with the card.

    Raises:
        ValueError: If there is none, or a file is missing or differs.
    """
    return recipe_dir(folder, "m2f")


def load_m2f(
    folder: Path,
) -> tuple[Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil]:
    """Model (fp32, for inference) and image processor of a folder in transformers' layout.

    Nothing but safetensors is read, nothing is fetched, and no code of the folder is run.

    Raises:
        ValueError: In one line, if the folder does not hold a complete Mask2Former.
    """
    noun = "a Mask2Former"
    model = load_network(folder, Mask2FormerForUniversalSegmentation, "mask2former", noun)
    with refusing(folder, noun), quiet():
        processor = Mask2FormerImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return model, processor


def class_scores(
    masks: Float[Tensor, "query coarse_height coarse_width"],
    classes: Float[Tensor, "query cls_and_none"],
    size: tuple[int, int],
) -> Float[Tensor, "cls height width"]:
    """Score of each class at each pixel: sum over the queries of class times mask probability.

    Args:
        masks: Logits of the queries' masks.
        classes: Logits of the queries' classes, the last of which is "no object".
        size: Height and width of the image; logits are resized to it bilinearly.
    """
    logits = F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]
    probability = classes.softmax(-1)[:, :-1]
    return torch.einsum("qc,qhw->chw", probability, logits.sigmoid())


@torch.no_grad()
def predict_scores(
    model: Mask2FormerForUniversalSegmentation,
    processor: Mask2FormerImageProcessorPil,
    images: Sequence[UInt8[np.ndarray, "height width 3"]],
) -> list[Float[Tensor, "cls height width"]]:
    """Class scores of images of one size, at that size, on the CPU; see `class_scores`."""
    size = images[0].shape[:2]
    inputs = processor(images=list(images), input_data_format="channels_last", return_tensors="pt")
    output = model(pixel_values=inputs["pixel_values"].to(model.device))
    pairs = zip(output.masks_queries_logits, output.class_queries_logits, strict=True)
    return [class_scores(masks, classes, size).cpu() for masks, classes in pairs]
