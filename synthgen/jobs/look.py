"""Photos instead of drawn images: what a model's attention says of them, or why they are none."""

from __future__ import annotations

from collections.abc import Sequence

from synthgen.config import ANNOTATION_STEPS, Config
from synthgen.dataset.photos import PhotoList
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.invert import invert_any
from synthgen.storage.images import decode_photo
from synthgen.types import Failure, Prompt, Sample


def look_at(
    photos: PhotoList,
    backbone: Backbone,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    config: Config,
) -> list[Sample | Failure]:
    """The samples of a batch of prompts that name photos.

    Raises:
        RuntimeError: If a photo is gone, or another one than when the list was made.
        OSError: If a store cannot be reached.
    """
    images, found = {}, dict[int, Sample | Failure]()
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        assert prompt.photo is not None
        try:
            images[index] = decode_photo(photos.read(prompt.photo))
        except ValueError as error:
            found[index] = Failure(prompt, seed, "bad_photo", str(error))
    asked = config.annotation
    made = invert_any(
        backbone,
        list(images.values()),
        [prompts[index] for index in images],
        [seeds[index] for index in images],
        config.generation,
        config.capture,
        strength=asked.strength,
        num_inference_steps=config.generation.num_inference_steps or ANNOTATION_STEPS,
        timestep=asked.timestep,
        labeling=config.labeling,
        noises=asked.noises,
    )
    found.update(zip(images, made, strict=True))
    return [found[index] for index in range(len(prompts))]
