"""Export: checkpoints to the pipeline folder that ships with the package.

Averaged weights in fp16, in files of at most 15 MB, with a card that says how they were made and
how good they are. The folder loads with `StableDiffusionPipeline.from_pretrained`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from synthgen.embedded.card import CARD_NAME, draft_of, file_digests, read_card, thinned
from synthgen.embedded.vocabulary import IMAGE_SIZE
from synthgen.lab.bench.scenes import load_pipeline
from synthgen.lab.train import checkpoint
from synthgen.lab.train.classifier import SceneClassifier, load_classifier, save_classifier
from synthgen.lab.train.models import build_scheduler, build_text_encoder, build_unet
from synthgen.lab.train.recipe_vae import fresh_vae
from synthgen.lab.train.tokenizer import load_tokenizer, write_tokenizer

GUIDANCE_SCALE = 4.0
NUM_INFERENCE_STEPS = 25
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


def assemble(work: Path, shipped: Path) -> tuple[StableDiffusionPipeline, dict[str, Any]]:
    """Pipeline of the averaged weights in the checkpoints of `work`, and its recipe.

    A model without a checkpoint is taken from the `shipped` folder, so that training one of them
    further needs nothing of the others.

    Raises:
        FileNotFoundError: If a model is in neither.
    """
    tokenizer_dir = work / "tokenizer"
    if not tokenizer_dir.exists():
        write_tokenizer(tokenizer_dir)
    tokenizer = load_tokenizer(tokenizer_dir)
    text = build_text_encoder(len(tokenizer), tokenizer.eos_token_id)
    pipeline = StableDiffusionPipeline(
        vae=fresh_vae(),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=build_unet(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    parts = {
        "vae": {"ema_vae.": pipeline.vae},
        "ldm": {"ema_unet.": pipeline.unet, "ema_text.": pipeline.text_encoder},
    }
    recipes = {name: _fill(modules, work / name, shipped) for name, modules in parts.items()}
    return pipeline, recipes


def _fill(modules: Mapping[str, nn.Module], checkpoint_dir: Path, shipped: Path) -> dict[str, Any]:
    """Load modules from a checkpoint or else from the shipped weights; returns their recipe."""
    found = checkpoint.load_state(checkpoint_dir)
    if found is not None:
        for prefix, module in modules.items():
            _averaged(module, checkpoint.subset(found[0], prefix))
        return _recipe(found[1])
    recipe = checkpoint_dir.name
    if not (shipped / CARD_NAME).exists():
        raise FileNotFoundError(
            f"{checkpoint_dir} must hold a checkpoint. Got none; run `python -m "
            f"synthgen.lab.train {recipe} --steps N --work {checkpoint_dir.parent}` first."
        )
    standing = load_pipeline(shipped)
    former = {"ema_vae.": standing.vae, "ema_unet.": standing.unet}
    former["ema_text."] = standing.text_encoder
    for prefix, module in modules.items():
        module.load_state_dict(former[prefix].state_dict())
    kept: dict[str, Any] = read_card(shipped)["recipe"][recipe]
    return kept


def _recipe(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of a training run, with the curve thinned."""
    kept = {key: meta[key] for key in ("step", "grid", "samples", "settings") if key in meta}
    return {**kept, "curve": thinned(meta.get("curve", []))}


def export_weights(work: Path, folder: Path) -> None:
    """Write pipeline, classifier and card of the checkpoints in `work` to `folder`.

    Models without a checkpoint stay as they are in `folder`. The measured quality of a former
    card is dropped: measure the new weights.
    """
    pipeline, recipes = assemble(work, folder)
    classifier, recipes["classifier"] = _classifier(work / "classifier", folder)
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.to(torch.float16)
    with draft_of(folder) as draft:
        pipeline.save_pretrained(draft, safe_serialization=True, max_shard_size=MAX_SHARD)
        save_classifier(classifier, draft)
        (draft / CARD_NAME).write_text(json.dumps(_card(recipes, draft), indent=1))


def _classifier(checkpoint_dir: Path, shipped: Path) -> tuple[SceneClassifier, dict[str, Any]]:
    """The classifier of the checkpoint, or else the shipped one, with its recipe."""
    found = checkpoint.load_state(checkpoint_dir)
    if found is None:
        return load_classifier(shipped), read_card(shipped)["recipe"]["classifier"]
    classifier = SceneClassifier()
    classifier.load_state_dict(checkpoint.subset(found[0], "model."))
    return classifier, _recipe(found[1])


def _card(recipes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {
        "name": "scenes",
        "license": "Apache-2.0",
        "image_size": IMAGE_SIZE,
        "guidance_scale": GUIDANCE_SCALE,
        "num_inference_steps": NUM_INFERENCE_STEPS,
        "scheduler": "DDIM",
        "seed": recipes["ldm"]["settings"]["seed"],
        "recipe": dict(recipes),
        "quality": {},
        "sha256": file_digests(folder),
    }
