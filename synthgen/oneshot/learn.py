"""Learning parts: text embeddings that make attention light up where an example says (SLiMe, 4.1).

Every random number is a function of seed and step, and so is the order of the examples: a fit that
was interrupted goes on from its folder to the same embeddings, bit for bit. Weights of the model
stay as they are; what learns are the embeddings of the parts, in float32 whatever the model's
precision is. Losses of a model in float16 are scaled on the way back.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, Integer
from safetensors.torch import load, save
from torch import Tensor

from synthgen import progress
from synthgen.config import digest, load_section
from synthgen.diffusion.backbones import origin_of
from synthgen.oneshot.attending import ClassReader, resized
from synthgen.oneshot.augment import augment, change_background, recolor
from synthgen.oneshot.parts import Parts, class_states, fingerprint, place_parts, rgb
from synthgen.oneshot.settings import PartSettings
from synthgen.oneshot.slime import mask_on_grid, slime_losses
from synthgen.segmentation.metrics import class_ious, confusion
from synthgen.storage.publish import Storage, dump_json, open_storage
from synthgen.storage.untrusted import one_line, parse_object
from synthgen.types import IGNORE

CHECKPOINT, STATE = "fit.safetensors", "fit.json"
_SCALE = 2.0**10
"""Of the loss of a model in float16: gradients of single pixels would be zero."""


def learn_parts(
    pipe: Any,
    images: Any,
    masks: Any,
    *,
    names: Sequence[str],
    validation: tuple[Any, Any] | None = None,
    folder: str | Path | None = None,
    save_every: int = 10,
    **settings: Any,
) -> Parts:
    """Learn to find the parts that one or more images are annotated with.

    Args:
        pipe: A Stable Diffusion pipeline of diffusers (`load_model`, or your own).
        images: RGB array of 8 bits or image of PIL, or a list of them, of any sizes.
        masks: Of each image an integer array of its size: 0 background, i the part
            ``names[i - 1]``, 255 not annotated.
        names: Of the parts; at most 76, one less than the text has tokens.
        validation: An image and its mask; the epoch that finds its parts best is kept.
        folder: Where the fit is kept while it runs, to go on after an interruption.
        save_every: Epochs between two states that are kept there.
        settings: Of `PartSettings`: epochs, lr, augmentation, seed, timestep, clusters, ...; what
            is not given is the model card's, or else the paper's.

    Raises:
        ValueError: In one line, for examples that do not fit, or a folder of another fit.
        Stopped: After a stop was requested; call again to go on.

    >>> import numpy as np, synthgen
    >>> pipe, mask = synthgen.load_model(), np.zeros((128, 128), np.uint8)
    >>> image = np.full((128, 128, 3), 60, np.uint8)
    >>> mask[40:80, 40:80], image[40:80, 40:80] = 1, (208, 40, 44)
    >>> parts = synthgen.learn_parts(pipe, image, mask, names=["square"], epochs=2)
    >>> parts, parts(image).class_names
    (Parts square after 2 epochs, ('square',))
    """
    origin = origin_of(pipe)
    of_card = {} if origin is None else dict(origin.card.parts)
    chosen = load_section(PartSettings, **{**of_card, **settings})
    examples = check_examples(images, masks, names)
    held_out = [] if validation is None else check_examples(*validation, names, complete=False)
    fit = Fit(ClassReader(pipe, chosen), examples, held_out, tuple(names), chosen)
    storage = None if folder is None else open_storage(folder)
    if storage is not None:
        fit.go_on(storage)
    return fit.run(storage, save_every)


Example = tuple[Any, Any]
"""Pixels and the class of each."""


class Fit:
    """Embeddings while they are learned.

    Args:
        reader: Of the model.
        examples: Images and masks.
        held_out: One more of them to choose the epoch by, or none.
        names: Of the parts.
        settings: How they are learned.
    """

    def __init__(
        self,
        reader: ClassReader,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        names: tuple[str, ...],
        settings: PartSettings,
    ) -> None:
        if len(names) + 1 > reader.num_tokens:
            raise ValueError(
                f"names must be at most {reader.num_tokens - 1}, a part for each token of a text "
                f"but the first. Got {len(names)}."
            )
        self.reader, self.names, self.settings = reader, names, settings
        self.held_out = held_out
        self.examples = []
        for pixels, mask in examples:
            size = reader.working_size(mask.shape)
            shown = resize_mask(torch.from_numpy(mask.astype(np.int64)), size)
            self.examples.append((resized(pixels, size), shown))
        self.states = class_states(reader, settings, names)
        start = self.states[0, 1 : len(names) + 1].clone()
        self.embeddings = torch.nn.Parameter(start)
        self.optimizer = torch.optim.Adam([self.embeddings], settings.lr)
        self.epoch = 0
        self.losses: list[dict[str, float]] = []
        self.best: tuple[float, Tensor] | None = None
        seen = hashlib.sha256()
        for pixels, mask in (*examples, *held_out):
            seen.update(pixels.tobytes() + mask.astype(np.uint8).tobytes())
        self.identity = digest(
            {
                "settings": settings.model_dump(mode="json"),
                "names": list(names),
                "examples": seen.hexdigest(),
                "model": hashlib.sha256(fingerprint(reader).numpy().tobytes()).hexdigest(),
            }
        )

    def run(self, storage: Storage | None, save_every: int) -> Parts:
        """Learn up to the last epoch; the state is also kept where a stop is requested."""
        try:
            with trainable(self.reader.pipe.unet, self.settings.checkpointing):
                while self.epoch < self.settings.epochs:
                    progress.report("step", step=self.epoch, steps=self.settings.epochs)
                    self.losses.append(self.learn_epoch())
                    last = self.epoch == self.settings.epochs
                    if storage is not None and (self.epoch % save_every == 0 or last):
                        self.keep(storage)
        except progress.Stopped:
            if storage is not None and self.epoch:
                self.keep(storage)
            raise
        found = self.embeddings.detach().clone() if self.best is None else self.best[1]
        return Parts(self.reader.pipe, self.names, found.cpu(), self.settings, tuple(self.losses))

    def learn_epoch(self) -> dict[str, float]:
        """An update by each example, in random order; means of the loss and its terms."""
        settings, num = self.settings, len(self.examples)
        rng = np.random.default_rng([settings.seed, 1, self.epoch])
        rows = [
            self.step(index, self.epoch * num + place)
            for place, index in enumerate(rng.permutation(num).tolist())
        ]
        self.epoch += 1
        row = {name: sum(each[name] for each in rows) / num for name in rows[0]}
        is_time = self.epoch % settings.validate_every == 0 or self.epoch == settings.epochs
        if self.held_out and is_time:
            row["validation"] = self.validate()
            miou = row["validation"]
            progress.report("validation", step=self.epoch, loss=row["loss"], miou=miou)
        return row

    def step(self, index: int, step: int) -> dict[str, float]:
        """One update by a view of an example (eq. 8)."""
        settings = self.settings
        rng = np.random.default_rng([settings.seed, 0, step])
        image01, mask = augment(*self.examples[index], settings.augmentation, rng)
        if rng.random() < settings.recolor:
            image01 = recolor(image01, rng)
        if rng.random() < settings.backgrounds:
            image01 = change_background(image01, mask, rng)
        latents = self.reader.encode(image01)
        timestep = int(rng.integers(settings.timesteps[0], settings.timesteps[1] + 1))
        noise = int(rng.integers(2**62))
        num = len(self.names) + 1
        with torch.enable_grad():
            states = place_parts(self.states, self.embeddings)
            seen = self.reader(latents, timestep, [noise], states, num)
            truth = mask_on_grid(mask, num, (latents.shape[2], latents.shape[3]))
            entropy, squares = slime_losses(seen.cross, seen.was, truth[None].to(latents.device))
            denoising = F.mse_loss(seen.output.float(), seen.target.float())
            loss = entropy + settings.alpha * squares + settings.beta * denoising
            scale = _SCALE if self.reader.dtype == torch.float16 else 1.0
            (gradient,) = torch.autograd.grad(loss * scale, [self.embeddings])
        if not torch.isfinite(gradient).all():
            raise ValueError(
                "the loss must be finite. Got a gradient that is not, in step "
                f"{step}; use model.dtype bfloat16 or float32, or a lower lr."
            )
        self.embeddings.grad = gradient / scale
        if settings.decay:
            share = step / (settings.epochs * len(self.examples))
            self.optimizer.param_groups[0]["lr"] = (
                settings.lr * (1 + math.cos(math.pi * share)) / 2
            )
        self.optimizer.step()
        terms = {"loss": loss, "ce": entropy, "mse": squares, "ldm": denoising}
        return {name: float(value.detach()) for name, value in terms.items()}

    def validate(self) -> float:
        """Mean IoU of the validation example's classes; the best embeddings so far are kept."""
        pixels, mask = self.held_out[0]
        parts = Parts(self.reader.pipe, self.names, self.embeddings.detach(), self.settings)
        found, known = parts(pixels).semantic, mask != IGNORE
        num = len(self.names) + 1
        ious = class_ious(confusion(mask[known], found[known], num))
        score = float(ious[np.unique(mask[known])].mean())
        if self.best is None or score > self.best[0]:
            self.best = score, self.embeddings.detach().clone()
        return score

    def keep(self, storage: Storage) -> None:
        """Write the state of the fit."""
        moments = self.optimizer.state[self.embeddings]
        tensors = {
            "embeddings": self.embeddings.detach(),
            "step": torch.as_tensor(moments["step"]),
        }
        tensors |= {name: moments[name] for name in ("exp_avg", "exp_avg_sq")}
        best = {} if self.best is None else {"best": self.best[1]}
        content = save({k: v.contiguous().cpu() for k, v in (tensors | best).items()})
        about = {
            "identity": self.identity,
            "epoch": self.epoch,
            "best": None if self.best is None else self.best[0],
            "losses": self.losses,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        storage.publish_bytes(content, CHECKPOINT)
        storage.publish_bytes(dump_json(about), STATE)

    def go_on(self, storage: Storage) -> None:
        """Take up the state that is in a folder; one that was cut off between its two files is
        begun again.

        Raises:
            ValueError: If it is of another fit.
        """
        content, about = storage.read(CHECKPOINT), storage.read(STATE)
        if content is None or about is None:
            return
        known = parse_object(about)
        if known.get("identity") != self.identity:
            raise ValueError(
                f"{one_line(storage.root, 80)} must hold a fit of the same examples and settings. "
                "Got another; choose another folder, or delete this one."
            )
        if known["sha256"] != hashlib.sha256(content).hexdigest():
            return
        stored = load(content)
        with torch.no_grad():
            self.embeddings.copy_(stored["embeddings"])
        moments = {name: stored[name] for name in ("step", "exp_avg", "exp_avg_sq")}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {0: moments}, "param_groups": groups})
        self.epoch, self.losses = known["epoch"], known["losses"]
        if "best" in stored:
            self.best = known["best"], stored["best"].to(self.embeddings)


@contextmanager
def trainable(unet: Any, checkpointing: bool) -> Iterator[None]:
    """The UNet without gradients of its own and, if asked for, with checkpointed blocks."""
    wanted = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    mode = unet.training
    for parameter in wanted:
        parameter.requires_grad_(False)
    unet.eval()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        unet.train(mode)
        if checkpointing:
            unet.disable_gradient_checkpointing()


def resize_mask(
    mask: Int[Tensor, "height width"], size: tuple[int, int]
) -> Int[Tensor, "out_height out_width"]:
    """Nearest neighbors; a part of a pixel that would be lost keeps one."""
    if tuple(mask.shape) == size:
        return mask
    found = F.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
    for cls in set(torch.unique(mask).tolist()) - set(torch.unique(found).tolist()):
        y, x = (mask == cls).nonzero()[0].tolist()
        found[y * size[0] // mask.shape[0], x * size[1] // mask.shape[1]] = cls
    return found


def check_examples(
    images: Any, masks: Any, names: Sequence[str], complete: bool = True
) -> list[Example]:
    """Images and masks as arrays.

    Args:
        images: One or several.
        masks: Of each image.
        names: Of the parts.
        complete: Every part must occur.

    Raises:
        ValueError: In one line, for what does not fit.
    """
    several = isinstance(images, Sequence)
    pairs = list(zip(images, masks, strict=False)) if several else [(images, masks)]
    if not pairs or (several and len(images) != len(masks)):
        raise ValueError(f"images must be one or more, each with a mask. Got {len(pairs)}.")
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"names must be of one or more parts, each once. Got {list(names)!r:.80}."
        )
    found = [check_example(image, mask, names, i) for i, (image, mask) in enumerate(pairs)]
    held = set(np.unique(np.concatenate([np.unique(mask) for _, mask in found])).tolist())
    if complete:
        for number, name in enumerate(names, start=1):
            if number not in held:
                raise ValueError(
                    f"every part must occur in a mask. Got no pixel of {name!r:.60} (class "
                    f"{number}); leave it out, or add an example that has it."
                )
    return found


def check_example(image: Any, mask: Any, names: Sequence[str], index: int) -> Example:
    """One image and its mask as arrays."""
    pixels = rgb(image)
    classes: Integer[np.ndarray, "height width"] = np.asarray(mask)
    which = "the mask" if index == 0 else f"mask {index + 1}"
    if classes.ndim != 2 or classes.dtype.kind not in "iu":
        raise ValueError(
            f"{which} must be an array of class numbers, of height x width. Got "
            f"{classes.dtype} of shape {classes.shape}."
        )
    if classes.shape != pixels.shape[:2]:
        raise ValueError(
            f"{which} must have the size of its image, {pixels.shape[0]} x {pixels.shape[1]} "
            f"pixels. Got {classes.shape[0]} x {classes.shape[1]}."
        )
    known = np.unique(classes)
    unnamed = [v for v in known.tolist() if v != IGNORE and not 0 <= v <= len(names)]
    if unnamed:
        raise ValueError(
            f"{which} must hold 0 (background), 1 to {len(names)} ({', '.join(names):.60}) and "
            f"255 (not annotated). Got {unnamed[0]}; name it, or make it one of these."
        )
    if known.tolist() == [IGNORE]:
        raise ValueError(f"{which} must annotate something. Got 255 (not annotated) everywhere.")
    return pixels, classes.astype(np.uint8)
