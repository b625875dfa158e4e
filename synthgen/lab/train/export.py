"""Export: checkpoints to the folders of weights that ship with the package.

Averaged weights in fp16, in files of at most 15 MB, with a card that says how they were made; the
measured quality of a former card is dropped: measure the new weights. The diffusion model's
folder loads with `StableDiffusionPipeline.from_pretrained`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from synthgen.embedded.blip import SHIPPED_BLIP, SPECIAL, build_blip, save_blip
from synthgen.embedded.card import CARD_NAME, draft_of, file_digests, read_card, thinned
from synthgen.embedded.clip import GEM_SETTINGS, SHIPPED_CLIP, build_clip, save_clip
from synthgen.embedded.mask2former import SHIPPED_M2F, build_m2f, save_m2f
from synthgen.embedded.sam import SHIPPED_SAM, build_scenes_sam, save_sam
from synthgen.embedded.vocabulary import IMAGE_SIZE
from synthgen.lab.train.checkpoint import load_state, require_state, subset
from synthgen.lab.train.classifier import SceneClassifier, load_classifier, save_classifier
from synthgen.lab.train.models import (
    build_scheduler,
    build_text_encoder,
    build_unet,
    load_pipeline,
)
from synthgen.lab.train.sam_prompts import LEVELS
from synthgen.lab.train.tokenizer import caption_words, load_tokenizer, write_tokenizer
from synthgen.lab.train.vae import fresh_vae

GUIDANCE_SCALE = 4.0
NUM_INFERENCE_STEPS = 25
MAX_SHARD = "12MB"


def export_weights(work: Path, folder: Path) -> None:
    """Write pipeline, classifier and card of the checkpoints in `work` to `folder`.

    Models without a checkpoint stay as they are in `folder`, so that training one of them further
    needs nothing of the others.

    Raises:
        FileNotFoundError: If a model is in neither.
    """
    tokenizer_dir = work / "tokenizer"
    if not tokenizer_dir.exists():
        write_tokenizer(tokenizer_dir)
    tokenizer = load_tokenizer(tokenizer_dir)
    classifier = SceneClassifier()
    pipeline = StableDiffusionPipeline(
        vae=fresh_vae(),
        text_encoder=build_text_encoder(len(tokenizer), tokenizer.eos_token_id),
        tokenizer=tokenizer,
        unet=build_unet(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    modules: dict[str, dict[str, nn.Module]] = {
        "vae": {"ema_vae": pipeline.vae},
        "ldm": {"ema_unet": pipeline.unet, "ema_text": pipeline.text_encoder},
        "classifier": {"model": classifier},
    }
    recipes = {name: _fill(own, work / name, folder) for name, own in modules.items()}
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.to(torch.float16)
    about = {
        "guidance_scale": GUIDANCE_SCALE,
        "num_inference_steps": NUM_INFERENCE_STEPS,
        "scheduler": "DDIM",
        "seed": recipes["ldm"]["settings"]["seed"],
        "recipe": recipes,
    }
    with draft_of(folder) as draft:
        pipeline.save_pretrained(draft, safe_serialization=True, max_shard_size=MAX_SHARD)
        save_classifier(classifier, draft)
        _write_card(draft, "scenes", about)


def _fill(modules: Mapping[str, nn.Module], checkpoint_dir: Path, shipped: Path) -> dict[str, Any]:
    """Load modules from a checkpoint or else from the shipped weights; returns their recipe."""
    recipe = checkpoint_dir.name
    if load_state(checkpoint_dir) is None and (shipped / CARD_NAME).exists():
        existing = load_pipeline(shipped)
        former = {"ema_vae": existing.vae, "ema_unet": existing.unet}
        former |= {"ema_text": existing.text_encoder, "model": load_classifier(shipped)}
        for name, module in modules.items():
            module.load_state_dict(former[name].state_dict())
        kept: dict[str, Any] = read_card(shipped)["recipe"][recipe]
        return kept
    tensors, meta = require_state(checkpoint_dir, recipe)
    for name, module in modules.items():
        _load_trained(module, subset(tensors, name))
    return _recipe(meta)


def _load_trained(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Overwrite a module's trained parameters; all must be there."""
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    if missing := names - state.keys():
        raise ValueError(
            f"the checkpoint must hold every parameter. Missing: {sorted(missing)[:3]}."
        )
    module.load_state_dict(dict(state), strict=False)


def export_m2f(work: Path, folder: Path = SHIPPED_M2F) -> None:
    """Write weights and card of the checkpoint in `work/m2f` to `folder`.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    tensors, meta = require_state(work / "m2f", "m2f")
    model = build_m2f()
    model.load_state_dict(subset(tensors, "model") | subset(tensors, "ema"))
    with draft_of(folder) as draft:
        save_m2f(model, draft)
        about = {"seed": meta["settings"]["seed"], "recipe": _recipe(meta)}
        _write_card(draft, "scenes-m2f", about)


def export_sam(work: Path, folder: Path = SHIPPED_SAM) -> None:
    """Write weights and card of the checkpoint in `work/sam` to `folder`.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    tensors, meta = require_state(work / "sam", "sam")
    sam = build_scenes_sam()
    sam.load_state_dict(subset(tensors, "model.sam") | subset(tensors, "ema_sam"))
    about = {
        "outputs": ["box", *LEVELS],
        "untrained": "mask prompts and negative points",
        "num_parameters": sum(p.numel() for p in sam.parameters()),
        "seed": meta["settings"]["seed"],
        "recipe": _recipe(meta),
    }
    with draft_of(folder) as draft:
        save_sam(sam, draft)
        _write_card(draft, "scenes-sam", about)


def export_clip(work: Path, folder: Path = SHIPPED_CLIP) -> None:
    """Write weights and card of the checkpoint in `work/clip` to `folder`.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    tensors, meta = require_state(work / "clip", "clip")
    tokenizer = load_tokenizer(work / "tokenizer")
    model = build_clip(tokenizer)
    model.load_state_dict(subset(tensors, "model") | subset(tensors, "ema"))
    about = {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "gem": GEM_SETTINGS,
        "seed": meta["settings"]["seed"],
        "recipe": _recipe(meta),
    }
    with draft_of(folder) as draft:
        save_clip(model, tokenizer, draft)
        _write_card(draft, "scenes-clip", about)


def export_blip(work: Path, folder: Path = SHIPPED_BLIP) -> None:
    """Write weights and card of the checkpoint in `work/blip` to `folder`.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    tensors, meta = require_state(work / "blip", "blip")
    words = caption_words()
    model = build_blip(len(SPECIAL) + len(words))
    model.load_state_dict(subset(tensors, "model") | subset(tensors, "ema"))
    about = {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "seed": meta["settings"]["seed"],
        "recipe": _recipe(meta),
    }
    with draft_of(folder) as draft:
        save_blip(model, words, draft)
        _write_card(draft, "scenes-blip", about)


def _recipe(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of a training run and what it began with, with the curve thinned."""
    names = ("start", "step", "grid", "samples", "settings")
    kept = {key: meta[key] for key in names if meta.get(key) is not None}
    return {**kept, "curve": thinned(meta.get("curve", []))}


def _write_card(folder: Path, name: str, about: Mapping[str, Any]) -> None:
    card = {"name": name, "license": "Apache-2.0", "image_size": IMAGE_SIZE, **about}
    card |= {"quality": {}, "sha256": file_digests(folder)}
    (folder / CARD_NAME).write_text(json.dumps(card, indent=1))
