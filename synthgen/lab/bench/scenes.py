"""How good the embedded world is: reconstruction, and whether generated objects are recognized.

Figures of `synthgen bench scenes`: all on seeds or prompts that no recipe and no choice has seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from synthgen.embedded.card import SHIPPED, read_card, weights_dir
from synthgen.embedded.mask2former import load_m2f, m2f_weights_dir, predict_scores
from synthgen.embedded.vocabulary import CLASSES, COLORS, VALIDATION_SEEDS
from synthgen.lab.processes import in_processes
from synthgen.lab.train.classifier import classify, load_classifier, single_object_accuracy
from synthgen.lab.train.latents import image_to_unit
from synthgen.lab.train.models import load_pipeline
from synthgen.lab.world.captions import ObjectPhrase, parse_caption
from synthgen.lab.world.corpus import render_corpus
from synthgen.lab.world.render import Scene, render

PROMPT_OFFSET = 50_000
"""Prompts come from the validation seeds from here on, apart from the scenes that are rendered."""

DRAWN_AT_ONCE = 10  # images
LEAST_PIXELS = 80
"""Pixels of a class from which it counts as present; the smallest whole object has 400."""

NUM_RENDERED = 400  # scenes that the classifier is checked on


def held_out_scenes(
    num: int, num_objects: int = 1, seeds: Sequence[int] = VALIDATION_SEEDS
) -> list[Scene]:
    """Scenes of held-out seeds, whose objects are all of different classes."""
    scenes = (render(seed, num_objects) for seed in seeds[PROMPT_OFFSET:])
    distinct = (s for s in scenes if len({o.class_name for o in s.objects}) == num_objects)
    return list(islice(distinct, num))


@torch.no_grad()
def reconstruction_psnr(pipeline: StableDiffusionPipeline, num: int = 64) -> float:
    """Mean PSNR in dB of encoding and decoding validation scenes."""
    values = []
    for first in range(0, num, 8):
        seeds = VALIDATION_SEEDS[first : min(first + 8, num)]
        pixels = torch.from_numpy(np.stack([render(seed).image for seed in seeds]))
        images = image_to_unit(pixels)
        decoded = pipeline.vae.decode(pipeline.vae.encode(images).latent_dist.mode()).sample
        error = (decoded.clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4
        values += [-10 * math.log10(e) for e in error.tolist()]
    return float(np.mean(values))


@torch.no_grad()
def generate_images(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    num_inference_steps: int,
    guidance_scale: float,
    seed: int = 0,
) -> Float[Tensor, "batch 3 height width"]:
    """One image per prompt in [-1, 1], with one generator per sample."""
    images = []
    for first in range(0, len(prompts), DRAWN_AT_ONCE):
        part = prompts[first : first + DRAWN_AT_ONCE]
        rngs = [torch.Generator().manual_seed(seed + first + i) for i in range(len(part))]
        out = pipeline(
            part,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=rngs,
            output_type="pt",
        )
        images.append(out.images.float() * 2 - 1)
    return torch.cat(images)


def _generate_part(
    folder: Path, prompts: list[str], steps: int, scale: float, seed: int
) -> Float[np.ndarray, "batch 3 height width"]:
    """What one process generates, on one thread."""
    torch.set_num_threads(1)
    return generate_images(load_pipeline(folder), prompts, steps, scale, seed).numpy()


def prompt_accuracy(
    images: Float[Tensor, "batch 3 height width"], prompts: list[str], folder: Path
) -> tuple[float, float]:
    """Shares of images whose prompted class, and one of whose prompted colors, are recognized."""
    wanted: list[ObjectPhrase] = [parse_caption(prompt).objects[0] for prompt in prompts]
    classes, colors = classify(load_classifier(folder), images)
    names = tuple(COLORS)
    class_hits = [CLASSES[c] == item.class_name for c, item in zip(classes, wanted, strict=True)]
    color_hits = [names[k] in item.colors for k, item in zip(colors, wanted, strict=True)]
    return float(np.mean(class_hits)), float(np.mean(color_hits))


def detect(
    images: Float[Tensor, "batch 3 height width"], prompts: list[str]
) -> tuple[float, float, float]:
    """What the embedded Mask2Former sees of the prompted objects.

    An object is present if its class covers `LEAST_PIXELS`, and has its color if most pixels of
    its class are closest to a color that the prompt gives it.

    Returns:
        Shares of images that show all of their objects, of objects that are present, and of
        present objects that have their color.
    """
    model, processor = load_m2f(m2f_weights_dir())
    pixels = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    palette = np.array(list(COLORS.values()), np.float32)
    names = tuple(COLORS)
    whole: list[bool] = []
    present: list[bool] = []
    bound: list[bool] = []
    for image, prompt in zip(pixels.numpy(), prompts, strict=True):
        semantic = predict_scores(model, processor, [image])[0].argmax(0).numpy()
        nearest = ((image[..., None, :] - palette) ** 2).sum(-1).argmin(-1)
        seen = []
        for item in parse_caption(prompt).objects:
            inside = semantic == CLASSES.index(item.class_name) + 1
            seen.append(bool(inside.sum() >= LEAST_PIXELS))
            if seen[-1]:
                most = np.bincount(nearest[inside], minlength=len(names)).argmax()
                bound.append(names[most] in item.colors)
        whole.append(all(seen))
        present += seen
    return float(np.mean(whole)), float(np.mean(present)), float(np.mean(bound or [False]))


def bench_scenes(num: int = 200, weights: Path = SHIPPED, workers: int = 2) -> dict[str, float]:
    """Quality of the embedded world on held-out seeds.

    Args:
        num: Images to generate from prompts of one, of two and of three objects each.
        weights: Pipeline folder.
        workers: Processes that generate.

    Returns:
        `vae_psnr` in dB, `class_accuracy` and `color_accuracy` of generated images with one
        object, `classifier_accuracy` on rendered ones; for each number of objects, what `detect`
        says of generated images and, as ceiling, of rendered ones.
    """
    card = read_card(weights_dir(weights))
    steps, scale = card["num_inference_steps"], card["guidance_scale"]
    figures: dict[str, float] = {}
    for number in (3, 2, 1):
        scenes = held_out_scenes(num, number)
        prompts = [scene.caption for scene in scenes]
        share = -(-len(prompts) // workers)
        jobs = [
            (weights, prompts[first : first + share], steps, scale, first)
            for first in range(0, len(prompts), share)
        ]
        images = torch.from_numpy(np.concatenate(in_processes(_generate_part, jobs, workers)))
        rendered_images = image_to_unit(torch.from_numpy(np.stack([s.image for s in scenes])))
        for kind, shown in (("", images), ("rendered_", rendered_images)):
            seen = zip(("all", "each", "color"), detect(shown, prompts), strict=True)
            figures |= {f"{kind}{name}_of_{number}": share for name, share in seen}
    class_accuracy, color_accuracy = prompt_accuracy(images, prompts, weights)
    rendered = render_corpus(NUM_RENDERED, 1.0, VALIDATION_SEEDS.start)
    classifier_accuracy, _ = single_object_accuracy(load_classifier(weights), rendered)
    figures |= {
        "class_accuracy": class_accuracy,
        "color_accuracy": color_accuracy,
        "classifier_accuracy": classifier_accuracy,
    }
    psnr = round(reconstruction_psnr(load_pipeline(weights)), 3)
    return {"vae_psnr": psnr, **{name: round(share, 4) for name, share in figures.items()}}
