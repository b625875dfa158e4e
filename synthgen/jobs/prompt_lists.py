"""Prompt lists out of what there is: captions of photographs by BLIP, lists of even classes.

Both write JSON lines that every other part reads: as prompts of images to draw, and with the name
of an image as captions of images to annotate.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from synthgen.dataset.photos import PhotoList, open_photos
from synthgen.dataset.split import assign_split, parse_split
from synthgen.diffusion.cards import Card
from synthgen.progress import Progress, report
from synthgen.prompts import attribution_text, mentioned_classes, open_prompts
from synthgen.storage.images import decode_photo
from synthgen.storage.publish import open_storage
from synthgen.storage.untrusted import one_line, parse_object
from synthgen.types import Prompt

BLIP, SCENES_BLIP = Card.model_fields["captions"].default, "scenes-blip"
"""BLIP of Li et al. (ICML 2022), which BL and Dataset Diffusion take their captions from; and the
embedded one, which knows drawn scenes alone."""

_WRITE_EVERY = 64  # batches; what a kill costs


def caption(
    images: Sequence[str],
    out: str | Path,
    *,
    model: str = BLIP,
    classes: Collection[str] | None = None,
    batch_size: int = 8,
    device: str = "auto",
    max_new_tokens: int = 40,
    progress: Progress = report,
) -> dict[str, int]:
    """Write a line of JSON for each image: ``image``, ``sha256``, ``prompt``, ``classes``.

    What the file has of the same images is kept, so that a run goes on where one was cut off.

    Args:
        images: See `synthgen.annotate`.
        out: The file.
        model: Folder of a BLIP for captions in transformers' layout, its hub id, or scenes-blip.
        classes: Names that are noted where a caption speaks of them; None: those of the images.
        batch_size: Images at once.
        device: auto, cpu, cuda or mps.
        max_new_tokens: Longest caption.
        progress: Told about images; may raise, to stop.

    Returns:
        ``images``, ``captions``, ``kept`` of these from before, ``failed``.

    Raises:
        ValueError: In one line, for images or a model that are not there.
    """
    photos = open_photos(images, None, classes)
    path, prompts = Path(out), list(photos.prompts)
    known = _read_captions(path)
    asked = [p for p in prompts if _photo_key(p) not in known]
    kept = len(prompts) - len(asked)
    describe = captioner(model, device, max_new_tokens) if asked else None
    path.parent.mkdir(parents=True, exist_ok=True)
    progress("samples", count=kept)
    for number, start in enumerate(range(0, len(asked), batch_size), start=1):
        batch = list(_decoded(photos, asked[start : start + batch_size]))
        if batch:
            assert describe is not None
            texts = describe([pixels for _, pixels in batch])
            for (prompt, _), text in zip(batch, texts, strict=True):
                known[_photo_key(prompt)] = text
        if number % _WRITE_EVERY == 0:
            _write_captions(path, prompts, known, classes)
        progress("samples", count=len(asked[start : start + batch_size]))
    written = _write_captions(path, prompts, known, classes)
    failed = len(prompts) - written
    return {"images": len(prompts), "captions": written, "kept": kept, "failed": failed}


def _photo_key(prompt: Prompt) -> tuple[str, str]:
    assert prompt.photo is not None
    return prompt.photo.name, prompt.photo.sha256


def _decoded(
    photos: PhotoList, prompts: Sequence[Prompt]
) -> Iterator[tuple[Prompt, UInt8[np.ndarray, "height width 3"]]]:
    """The images that can be read; the others are warned of."""
    for prompt in prompts:
        assert prompt.photo is not None
        try:
            yield prompt, decode_photo(photos.read(prompt.photo))
        except ValueError as error:
            warnings.warn(f"No caption of {prompt.photo.name!r:.80}: {error}", stacklevel=2)


def _read_captions(path: Path) -> dict[tuple[str, str], str]:
    """Captions in a file of ours by name and hash; lines of others are left out."""
    known: dict[tuple[str, str], str] = {}
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            row = parse_object(line)
            known[str(row["image"]), str(row["sha256"])] = str(row["prompt"])
        except (KeyError, ValueError):
            continue
    return known


def _write_captions(
    path: Path,
    prompts: Sequence[Prompt],
    known: Mapping[tuple[str, str], str],
    classes: Collection[str] | None,
) -> int:
    lines = []
    for prompt in prompts:
        key = _photo_key(prompt)
        if text := known.get(key, ""):
            names = prompt.class_names
            names = mentioned_classes(text, tuple(classes)) if classes else names
            row: dict[str, Any] = {"image": key[0], "sha256": key[1], "prompt": text}
            row |= {"classes": list(names)} if names or classes else {}
            lines.append(json.dumps(row, ensure_ascii=False))
    content = "".join(f"{line}\n" for line in lines)
    open_storage(path.absolute().parent).publish_bytes(content.encode("utf-8"), path.name)
    return len(lines)


def captioner(model: str, device: str = "cpu", max_new_tokens: int = 40) -> Any:
    """A function of RGB arrays that gives a text of each; arguments as of `caption`."""
    import torch
    from huggingface_hub import constants
    from transformers import BlipForConditionalGeneration, BlipProcessor

    from synthgen.devices import pick_device

    if model == SCENES_BLIP:
        from synthgen.embedded.blip import blip_weights_dir

        model = str(blip_weights_dir())
    place: dict[str, Any] = {"local_files_only": Path(model).is_dir() or constants.HF_HUB_OFFLINE}
    try:
        processor = BlipProcessor.from_pretrained(model, **place)
        network = BlipForConditionalGeneration.from_pretrained(
            model, use_safetensors=True, dtype=torch.float32, **place
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"--model must be the folder of a BLIP for captions, or its hub id. Got "
            f"{one_line(model, 80)}: {one_line(error, 120)}"
        ) from None
    where = pick_device(device, "device")
    network = network.eval().requires_grad_(False).to(where)

    def describe(pictures: Sequence[UInt8[np.ndarray, "_height _width 3"]]) -> list[str]:
        pixels = processor.image_processor(list(pictures), return_tensors="pt").to(where)
        with torch.no_grad():
            tokens = network.generate(**pixels, max_new_tokens=max_new_tokens, do_sample=False)
        texts = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join("".join(c for c in t if c.isprintable()).split()) for t in texts]

    return describe


def build(
    source: str,
    out: str | Path,
    *,
    num: int | None = None,
    classes: Collection[str] | None = None,
    append_classes: bool = False,
    held_out: float = 0.0,
) -> dict[str, Any]:
    """Write a list of prompts whose classes come as evenly as those of a source allow.

    Equal prompts are one, with a ``count``. The class that has come least often is next, with
    its next prompt in the order of the source; a prompt counts for all its classes. Prompts
    without a class are left out.

    Args:
        source: Any prompt source: COCO's ``captions.json+instances.json``, a table, …
        out: A file ``NAME.jsonl``; what is held out goes to ``NAME.held-out.jsonl``.
        num: Prompts of both; None: all.
        classes: Names to look for in captions that say nothing of classes.
        append_classes: Texts become "caption; class, class" (Dataset Diffusion).
        held_out: Share of the texts, by their hash, that is held out.

    Returns:
        ``read``, ``equal``, ``without_class``, ``written``, ``held_out``, ``classes`` (counts).

    Raises:
        ValueError: In one line, for a source or a share that is none.
    """
    share = parse_split(f"{1 - held_out:.6f}/{held_out:.6f}") if held_out else None
    prompts = open_prompts(source, classes)
    counts = Counter((prompt.text, prompt.class_names) for prompt in prompts)
    named = [key for key in counts if key[1]]
    chosen = evenly([names for _, names in named], len(named) if num is None else num)
    rows = defaultdict[str, list[dict[str, Any]]](list)
    shown: Counter[str] = Counter()
    for text, names in (named[index] for index in chosen):
        drawn = f"{text}; {attribution_text(names)}" if append_classes else text
        row = {"prompt": drawn, "classes": list(names), "count": counts[text, names]}
        side = "train" if share is None else assign_split(text, share)
        rows[side].append(row)
        shown.update(names)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {"train": path, "val": path.with_suffix(f".held-out{path.suffix}")}
    for side, file in files.items():
        if side == "train" or share is not None:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows[side])
            storage = open_storage(file.absolute().parent)
            storage.publish_bytes("".join(lines).encode("utf-8"), file.name)
    return {
        "read": len(prompts),
        "equal": len(prompts) - len(counts),
        "without_class": len(counts) - len(named),
        "written": len(rows["train"]),
        "held_out": len(rows["val"]),
        "classes": dict(sorted(shown.items())),
    }


def evenly(names: Sequence[Sequence[str]], num: int) -> list[int]:
    """The first ``num`` of rows in an order in which classes come as evenly as they can.

    >>> evenly([["cat"], ["cat"], ["cat"], ["dog"], ["dog", "cat"]], 3)
    [0, 3, 1]
    """
    waiting: defaultdict[str, deque[int]] = defaultdict(deque)
    for index, own in enumerate(names):
        for name in own:
            waiting[name].append(index)
    counts = dict.fromkeys(sorted(waiting), 0)
    chosen: list[int] = []
    taken = set[int]()
    while counts and len(chosen) < num:
        name = min(counts, key=lambda each: counts[each])
        while waiting[name] and waiting[name][0] in taken:
            waiting[name].popleft()
        if not waiting[name]:
            del counts[name]
            continue
        index = waiting[name].popleft()
        chosen.append(index)
        taken.add(index)
        for own in {*names[index]} & counts.keys():
            counts[own] += 1
    return chosen
