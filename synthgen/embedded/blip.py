"""The embedded BLIP: transformers' class for captions, at a size that learns on one core.

Scenes of 128 pixels in patches of 16, a tower of scenes-clip's size; words of the scenes' grammar,
a token each.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from synthgen.embedded.card import recipe_dir
from synthgen.embedded.clip import DEPTH, DIM, HEADS, MLP
from synthgen.embedded.folders import quiet
from synthgen.embedded.vocabulary import IMAGE_SIZE

PATCH = 16
TEXT_DIM, TEXT_DEPTH, TEXT_HEADS, TEXT_MLP = 128, 3, 4, 384
MAX_TOKENS = 64
SHIPPED_BLIP = Path(__file__).parent / "weights_blip"

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
"""Tokens of BLIP's tokenizer; captions begin with the last one and end with [SEP]."""


def blip_config(vocabulary: int) -> BlipConfig:
    """Configuration of the embedded model: 2.7 million parameters, 5.5 MB in fp16."""
    text = {
        "hidden_size": TEXT_DIM,
        "intermediate_size": TEXT_MLP,
        "num_attention_heads": TEXT_HEADS,
        "vocab_size": vocabulary,
        "num_hidden_layers": TEXT_DEPTH,
        "encoder_hidden_size": DIM,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "label_smoothing": 0.0,
        "bos_token_id": SPECIAL.index("[DEC]"),
        "eos_token_id": SPECIAL.index("[SEP]"),
        "sep_token_id": SPECIAL.index("[SEP]"),
        "pad_token_id": SPECIAL.index("[PAD]"),
    }
    vision = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "hidden_size": DIM,
        "intermediate_size": MLP,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
    }
    return BlipConfig(text_config=text, vision_config=vision, projection_dim=TEXT_DIM)


def build_blip(vocabulary: int) -> BlipForConditionalGeneration:
    """Model with fresh weights; seed torch first."""
    return BlipForConditionalGeneration(blip_config(vocabulary))


def build_blip_tokenizer(words: list[str], folder: Path) -> BertTokenizer:
    """A tokenizer of whole words, whose vocabulary is written to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in (*SPECIAL, *words)))
    return BertTokenizer(str(path), bos_token=SPECIAL[-1])


def save_blip(model: BlipForConditionalGeneration, words: list[str], folder: Path) -> None:
    """Write model (fp16 safetensors), configuration, tokenizer and image processor."""
    half = [0.5, 0.5, 0.5]
    sides = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = BlipImageProcessor(size=sides, image_mean=half, image_std=half)
    with quiet():
        model.to(torch.float16).save_pretrained(folder)
        BlipProcessor(images, build_blip_tokenizer(words, folder)).save_pretrained(folder)


def blip_weights_dir(folder: Path = SHIPPED_BLIP) -> Path:
    """Folder of the embedded BLIP, after comparing its files with the card.

    Raises:
        ValueError: If there is none, or a file is missing or differs.
    """
    return recipe_dir(folder, "blip")
