"""The embedded promptable segmenter: segment-anything's own classes, small enough to ship.

Nothing is subclassed, so that `SamPredictor` and `SamAutomaticMaskGenerator` run it as they run
the large ones. Images of 128 pixels, patches of 8, a 16x16 grid, masks of 64x64 before they are
enlarged. Training needs many images with many prompts at once, which the package's decoder does
not take; `decode_prompts` hands it each prompt's own image embedding where it adds the dense one.

A folder of weights holds `sam.safetensors` (fp16) and `card.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import Tensor, nn

from synthgen.embedded.card import CARD_NAME, weights_dir
from synthgen.embedded.vocabulary import IMAGE_SIZE

SHIPPED_SAM = Path(__file__).parent / "weights_sam"
WEIGHTS_NAME = "sam.safetensors"

PATCH = 8
GRID = IMAGE_SIZE // PATCH

ENCODER_DIM, ENCODER_DEPTH, ENCODER_HEADS = 160, 6, 5
WINDOW = 8
GLOBAL_BLOCKS = (2, 5)
"""Blocks that attend to the whole grid; the others to windows, at a quarter of the cost."""

DECODER_DIM, DECODER_HEADS, DECODER_MLP = 128, 4, 256
"""Four heads, not SAM's eight: attention runs at half the width, and 16 dimensions a head are
what SAM has too."""

POSITION_SCALE = 1.5
"""Factor on the random frequencies of positions: their kernel is then 7 pixels wide, below one
patch, so that prompts in one patch stay apart; SAM's own 1.0 means 10 pixels here."""

PIXEL_MEAN = PIXEL_STD = 127.5

AUTOMATIC_DEFAULTS: Mapping[str, int | float] = {
    "points_per_side": 16,
    "points_per_batch": 64,
    "pred_iou_thresh": 0.3,
    "stability_score_thresh": 0.5,
    "stability_score_offset": 0.1,
    "box_nms_thresh": 0.8,
}
"""Parameters of automatic mode that differ from SAM's: its logits of parts lie closer to zero and
its own estimates are lower than ViT-H's, so stability is asked for a tenth around zero, not one; a
higher overlap of boxes keeps the head of a face beside the face. On 24 tuning scenes these keep 13
masks each, five of six of them near a true one; asking for less gains at most 0.02 on parts.
"""


def build_scenes_sam() -> Sam:
    """The model with random weights, on the CPU in fp32; about 2.9 M parameters."""
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=IMAGE_SIZE,
            patch_size=PATCH,
            embed_dim=ENCODER_DIM,
            depth=ENCODER_DEPTH,
            num_heads=ENCODER_HEADS,
            out_chans=DECODER_DIM,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=WINDOW,
            global_attn_indexes=GLOBAL_BLOCKS,
        ),
        prompt_encoder=PromptEncoder(DECODER_DIM, (GRID, GRID), (IMAGE_SIZE, IMAGE_SIZE), 16),
        mask_decoder=MaskDecoder(
            transformer_dim=DECODER_DIM,
            transformer=TwoWayTransformer(2, DECODER_DIM, DECODER_HEADS, DECODER_MLP),
            iou_head_hidden_dim=DECODER_DIM,
        ),
        pixel_mean=[PIXEL_MEAN] * 3,
        pixel_std=[PIXEL_STD] * 3,
    )
    sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix *= POSITION_SCALE
    return sam


def freeze_untrained(sam: Sam) -> None:
    """Freeze what no prompt of the recipe reaches: mask prompts and negative points."""
    for part in (sam.prompt_encoder.mask_downscaling, sam.prompt_encoder.point_embeddings[0]):
        part.requires_grad_(False)


def encode_images(
    sam: Sam, images: Float[Tensor, "image 3 height width"]
) -> Float[Tensor, "image dim grid grid"]:
    """Embeddings of square images of the model's size, RGB in 0-255."""
    embeddings: Tensor = sam.image_encoder((images - PIXEL_MEAN) / PIXEL_STD)
    return embeddings


def embed_points(sam: Sam, points_xy: Float[Tensor, "prompt 2"]) -> Float[Tensor, "prompt 2 dim"]:
    """Prompts of one foreground point each, in pixels, with SAM's padding point."""
    labels = torch.ones((len(points_xy), 1), dtype=torch.int, device=points_xy.device)
    sparse, _ = sam.prompt_encoder((points_xy[:, None], labels), None, None)
    return torch.as_tensor(sparse)


def embed_boxes(sam: Sam, boxes_xyxy: Float[Tensor, "prompt 4"]) -> Float[Tensor, "prompt 2 dim"]:
    """Prompts of one box each, corners in pixels."""
    sparse, _ = sam.prompt_encoder(None, boxes_xyxy, None)
    return torch.as_tensor(sparse)


def decode_prompts(
    sam: Sam,
    embeddings: Float[Tensor, "image dim grid grid"],
    sparse: Float[Tensor, "prompt token dim"],
    owner: Int[Tensor, " prompt"],
) -> tuple[Float[Tensor, "prompt 4 low low"], Float[Tensor, "prompt 4"]]:
    """Mask logits and predicted IoU of prompts on several images.

    Args:
        sam: The model.
        embeddings: Of all images.
        sparse: Embedded prompts.
        owner: Image of each prompt.

    Returns:
        Per prompt the single output (0) and the three ambiguous ones (1 to 3).
    """
    no_mask = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    logits, predicted_iou = sam.mask_decoder.predict_masks(
        image_embeddings=torch.zeros_like(embeddings[:1]),
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=embeddings[owner] + no_mask,
    )
    return logits, predicted_iou


def save_sam(sam: Sam, folder: Path) -> None:
    """Write the weights in fp16; the card is the exporter's."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in sam.state_dict().items()}
    save_file(state, folder / WEIGHTS_NAME)


def load_folder(folder: Path = SHIPPED_SAM) -> Sam:
    """The model in a folder of weights whose files are the ones its card names; fp32, CPU.

    Raises:
        FileNotFoundError: If the folder holds no card.
        ValueError: If a file is missing or has another sha256.
    """
    if not (folder / CARD_NAME).exists():
        raise FileNotFoundError(
            f"{folder} must hold the weights of scenes-sam with a {CARD_NAME}. Got none; "
            "reinstall the package, or train them: `python -m synthgen.lab.train sam --steps "
            "N`, then `export-sam`."
        )
    sam = build_scenes_sam()
    state = load_file(weights_dir(folder) / WEIGHTS_NAME)
    sam.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return sam.eval()
