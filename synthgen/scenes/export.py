"""Export: checkpoints to the pipeline folder that ships with the package.

Averaged weights in fp16, in files of at most 15 MB, with a card that says how they were made and
how good they are. The folder loads with `StableDiffusionPipeline.from_pretrained`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from synthgen.scenes import checkpoint
from synthgen.scenes.card import CARD_NAME, file_digests
from synthgen.scenes.classifier import SceneClassifier, save_classifier
from synthgen.scenes.models import build_scheduler, build_text_encoder, build_unet
from synthgen.scenes.recipe_vae import fresh_vae
from synthgen.scenes.tokenizer import load_tokenizer, write_tokenizer
from synthgen.scenes.vocabulary import IMAGE_SIZE

GUIDANCE_SCALE = 4.0
NUM_INFERENCE_STEPS = 25
CURVE_POINTS = 60
"""Points that a loss curve is thinned to."""

MAX_SHARD = "12MB"


def _averaged(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Overwrite a module's trained parameters by averaged ones; all must be there."""
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    missing = names - state.keys()
    if missing:
        raise ValueError(
            f"the checkpoint must hold every parameter. Missing: {sorted(missing)[:3]}."
        )
    module.load_state_dict(dict(state), strict=False)


def assemble(work: Path) -> tuple[StableDiffusionPipeline, dict[str, Any]]:
    """Pipeline of the averaged weights in the checkpoints of `work`, and its recipe.

    Raises:
        FileNotFoundError: If a model was not trained yet.
    """
    tokenizer_dir = work / "tokenizer"
    if not tokenizer_dir.exists():
        write_tokenizer(tokenizer_dir)
    tokenizer = load_tokenizer(tokenizer_dir)
    states = {name: checkpoint.load_state(work / name) for name in ("vae", "ldm")}
    for name, state in states.items():
        if state is None:
            raise FileNotFoundError(
                f"{work / name} must hold a checkpoint. Got none; run "
                f"`python -m synthgen.scenes.train {name} --steps N --work {work}` first."
            )
    (vae_tensors, vae_meta), (ldm_tensors, ldm_meta) = (s for s in states.values() if s)
    vae, unet = fresh_vae(), build_unet()
    text = build_text_encoder(len(tokenizer), tokenizer.eos_token_id)
    _averaged(vae, checkpoint.subset(vae_tensors, "ema_vae."))
    _averaged(unet, checkpoint.subset(ldm_tensors, "ema_unet."))
    _averaged(text, checkpoint.subset(ldm_tensors, "ema_text."))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline, {"vae": _recipe(vae_meta), "ldm": _recipe(ldm_meta)}


def _recipe(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of a training run, with the curve thinned."""
    kept = {key: meta[key] for key in ("step", "grid", "samples", "settings") if key in meta}
    curve = list(meta.get("curve", []))
    stride = max(1, -(-len(curve) // CURVE_POINTS))
    return {**kept, "curve": curve[::stride]}


def export_weights(work: Path, folder: Path) -> None:
    """Write the pipeline, classifier and card of the checkpoints in `work` to `folder`.

    The measured quality of a former card is dropped: measure the new weights.
    """
    pipeline, recipes = assemble(work)
    if folder.exists():
        shutil.rmtree(folder)
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=MAX_SHARD)
    found = checkpoint.load_state(work / "classifier")
    if found is not None:
        classifier = SceneClassifier()
        classifier.load_state_dict(checkpoint.subset(found[0], "model."))
        save_classifier(classifier, folder)
        recipes["classifier"] = _recipe(found[1])
    card = {
        "name": "scenes",
        "license": "Apache-2.0",
        "image_size": IMAGE_SIZE,
        "guidance_scale": GUIDANCE_SCALE,
        "num_inference_steps": NUM_INFERENCE_STEPS,
        "scheduler": "DDIM",
        "seed": recipes["ldm"]["settings"]["seed"],
        "recipe": recipes,
        "quality": {},
        "sha256": file_digests(folder),
    }
    (folder / CARD_NAME).write_text(json.dumps(card, indent=1))
