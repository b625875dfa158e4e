"""Diffusion: prompts or images in; images and the attention recorded on the way out.

`cards` and `backbones` know and load the models, `generate` and `invert` run them, `attention`
records (`selection` decides what, `probabilities` computes maps), `heatmaps` turns
cross-attention into maps of classes.
"""

from synthgen.diffusion.attention import Coverage, Recording, record
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.diffusion.cards import Card, find_card, load_cards, model_files, verify_sha256
from synthgen.diffusion.generate import drawn_text, generate, settle
from synthgen.diffusion.invert import invert
from synthgen.diffusion.probabilities import Attribution

__all__ = [
    "Attribution",
    "Backbone",
    "Card",
    "Coverage",
    "Recording",
    "drawn_text",
    "find_card",
    "generate",
    "invert",
    "load_backbone",
    "load_cards",
    "model_files",
    "record",
    "settle",
    "verify_sha256",
]
