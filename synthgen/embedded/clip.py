"""The embedded CLIP: transformers' class at a size that learns on one core.

Scenes of 128 pixels in patches of 8: 16 x 16 places and one token that stands for the image. Six
blocks, because GEM looks at the last few and wants some before them. Texts of the scenes' grammar.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
)

from synthgen.embedded.card import recipe_dir
from synthgen.embedded.folders import load_network, quiet, refusing
from synthgen.embedded.vocabulary import BACKGROUNDS, IMAGE_SIZE

PATCH, DIM, DEPTH, HEADS, MLP = 8, 160, 6, 5, 640
"""Those of scenes-sam's encoder, which the vision tower may begin with."""

TEXT_DIM, TEXT_DEPTH, TEXT_HEADS = 128, 2, 4
MAX_TOKENS = 48
GEM_SETTINGS = {
    "side": 128,
    "blocks": 1,
    "temperature": 0.1,
    "background": [place.phrase for place in BACKGROUNDS.values()],
    "lead": 0.15,
}
"""What GEM takes on scenes (`synthgen.lab.language`), chosen on tuning scenes: its defaults are of
towers of twelve blocks, thresholds belong to the scale of a model's cosines, and what no class
has is no background where classes are known badly."""

SHIPPED_CLIP = Path(__file__).parent / "weights_clip"


def clip_config(vocabulary: int, end_token: int) -> CLIPConfig:
    """Configuration of the embedded model: 2.3 million parameters, 4.6 MB in fp16.

    Args:
        vocabulary: Number of tokens.
        end_token: Token that ends and pads texts; the start token stands before it.
    """
    text = {
        "vocab_size": vocabulary,
        "hidden_size": TEXT_DIM,
        "intermediate_size": 2 * TEXT_DIM,
        "num_hidden_layers": TEXT_DEPTH,
        "num_attention_heads": TEXT_HEADS,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": end_token - 1,
        "eos_token_id": end_token,
        "pad_token_id": end_token,
    }
    vision = {
        "hidden_size": DIM,
        "intermediate_size": MLP,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
    }
    shared = {"hidden_act": "gelu", "projection_dim": TEXT_DIM}
    return CLIPConfig(
        text_config=text | shared, vision_config=vision | shared, projection_dim=TEXT_DIM
    )


def build_clip(tokenizer: PreTrainedTokenizerBase) -> CLIPModel:
    """Model with fresh weights; seed torch first."""
    with quiet():
        return CLIPModel(clip_config(len(tokenizer), int(tokenizer.eos_token_id)))


def save_clip(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model (fp16 safetensors), configuration, tokenizer and image processor."""
    half = [0.5, 0.5, 0.5]
    sides = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = CLIPImageProcessorPil(
        size=sides, crop_size=sides, do_center_crop=False, image_mean=half, image_std=half
    )
    with quiet():
        model.to(torch.float16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        processor.save_pretrained(folder)


def clip_weights_dir(folder: Path = SHIPPED_CLIP) -> Path:
    """Folder of the embedded CLIP, after comparing its files with the card.

    Raises:
        ValueError: If there is none, or a file is missing or differs.
    """
    return recipe_dir(folder, "clip")


class Clip:
    """A CLIP with its tokenizer and the colors that it was trained in, from a local folder.

    Args:
        folder: In transformers' layout: config.json, safetensors, tokenizer, image processor.
        device: Where it computes.

    Raises:
        ValueError: In one line, if the folder does not hold a complete CLIP.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu") -> None:
        model = load_network(folder, CLIPModel, "clip", "a CLIP")
        with refusing(folder, "a CLIP"), quiet():
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self.model: CLIPModel = model.to(device)
        self.mean, self.std = (
            torch.tensor(of, device=device)[:, None, None]
            for of in (processor.image_mean, processor.image_std)
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    def pixels(
        self, images: Sequence[UInt8[Tensor, "_height _width 3"]], size: tuple[int, int]
    ) -> Float[Tensor, "image 3 height width"]:
        """Images as the model sees them: resized as a whole (bicubic), not cropped."""
        seen = [
            F.interpolate(
                image.to(self.device).permute(2, 0, 1)[None].float() / 255.0,
                size=size,
                mode="bicubic",
                antialias=True,
            ).clamp(0, 1)
            for image in images
        ]
        return (torch.cat(seen) - self.mean) / self.std

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        """Embeddings of texts, of norm 1: the end token's, projected."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        ids = tokens.input_ids.to(self.device)  # causal: what pads comes after what counts
        return F.normalize(self.model.get_text_features(ids).pooler_output, dim=-1)

    @torch.no_grad()
    def images(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image dim"]:
        """Embeddings of images, of norm 1: the class token's, projected."""
        found = self.model.get_image_features(pixels, interpolate_pos_encoding=True)
        return F.normalize(found.pooler_output, dim=-1)
