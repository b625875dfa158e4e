"""A dataset from prompts or photographs in one call, for programs and notebooks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from synthgen import jobs
from synthgen.config import Config, describe
from synthgen.jobs.plan import prompts_of
from synthgen.storage.untrusted import one_line
from synthgen.storage.urls import scheme_of
from synthgen.types import Prompt


def generate(
    prompts: str | Path | Sequence[str | Prompt],
    out: str | Path,
    *,
    num: int | None = None,
    classes: Sequence[str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Make a dataset in this process, or finish one that was cut off.

    Args:
        prompts: A packaged list (scenes, voc), a file of prompts, or texts and `Prompt` objects,
            which are kept beside the dataset as ``OUT.prompts.jsonl``.
        out: Folder of the dataset; a URL only for prompts of a file.
        num: Images; None: one for each prompt of a list, or else 64.
        classes: Names that are labeled where a prompt speaks of them.
        settings: Other settings by section: ``labeling={"method": "clusters"}``,
            ``generation={"num_inference_steps": 10}``, ``model={"card": "sd21"}``, ``seed=1``.

    Returns:
        The dataset's manifest.

    Raises:
        ValueError: In one line, for a prompt, a setting or a folder that is not right.

    >>> import tempfile, synthgen
    >>> prompts, out = ["a red car", "a blue house"], f"{tempfile.mkdtemp()}/toys"
    >>> manifest = synthgen.generate(prompts, out, generation={"num_inference_steps": 2})
    >>> manifest["totals"]["planned"]
    2
    """
    source = str(prompts)
    if not isinstance(prompts, str | Path):
        if "://" in str(out):
            raise ValueError(f"prompts must be a file for {one_line(out)}. Got a list.")
        every = [Prompt("", one) if isinstance(one, str) else one for one in prompts]
        rows = [_row(prompt) for prompt in every]
        num, source = num or len(rows), f"{Path(out).absolute()}.prompts.jsonl"
        Path(source).parent.mkdir(parents=True, exist_ok=True)
        Path(source).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = {"num": num, "classes": None if classes is None else list(classes)}
    return jobs.generate(_config({**settings, "prompts": source}, given), out)


def annotate(
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    captions: str | Path | None = None,
    classes: Sequence[str] | None = None,
    num: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Make a dataset of images that you have, or finish one that was cut off.

    Args:
        images: Files, folders, patterns, URLs, tars, COCO files, data sets of Hugging Face on a
            disk; one or several. What cannot be read becomes a failed row.
        out: Folder or URL of the dataset.
        captions: File with a text of each image: a table or JSON lines with ``image``, or COCO's;
            ``blip`` or ``blip:FOLDER``: BLIP writes it first, ``OUT.captions.jsonl``; the one
            that the model's card names, or that of the folder.
        classes: Names that are labeled: those that a caption speaks of, or all without a caption.
            None: those that the images' own list gives.
        num: The first so many images; None: all.
        settings: Other settings by section: ``annotation={"timestep": 100, "noises": 4}``,
            ``model={"card": "sd21"}``, ``seed=1``.

    Returns:
        The dataset's manifest.

    Raises:
        ValueError: In one line, for a source, a setting or a folder that is not right.

    >>> import tempfile, numpy as np, synthgen
    >>> from PIL import Image
    >>> folder = tempfile.mkdtemp()
    >>> pixels = np.zeros((64, 96, 3), dtype=np.uint8)
    >>> pixels[20:50, 30:70] = 255, 0, 0
    >>> Image.fromarray(pixels).save(f"{folder}/car.png")
    >>> manifest = synthgen.annotate(folder, f"{folder}/out", classes=["car"])
    >>> manifest["totals"]["samples"]
    1
    """
    given = {"num": num, "classes": None if classes is None else list(classes)}
    several = [images] if isinstance(images, str | Path) else list(images)
    config = _config(settings, given)
    captions = described(several, out, captions, config)
    return jobs.generate(annotating(config, several, captions), out)


def described(
    images: Sequence[str | Path],
    out: str | Path,
    captions: str | Path | None,
    config: Config,
) -> str | Path | None:
    """The file of the captions that were asked for, which BLIP may have to write.

    Raises:
        ValueError: In one line, if there is no BLIP, or no folder to write beside.
    """
    name, _, model = str(captions).partition(":")
    if captions is None or name != "blip":
        return captions
    if scheme_of(str(out)) is not None:
        raise ValueError(
            f"Captions by BLIP stand beside a local folder. Got {one_line(out)}; write them with "
            f"'synthgen prompts caption', and give that file."
        )
    from synthgen.diffusion.cards import find_card
    from synthgen.jobs.prompt_lists import caption

    model = model or find_card(config.model.card)[0].captions
    path = f"{Path(out).absolute()}.captions.jsonl"
    caption([*map(str, images)], path, model=model, classes=config.classes)
    return path


def annotating(
    config: Config, images: Sequence[str | Path], captions: str | Path | None = None
) -> Config:
    """The configuration with photos in place of prompts, all of them unless it has a number.

    Where there are classes they are labeled, unless it says how or that they are not.

    Args:
        config: Other settings.
        images: See `annotate`.
        captions: See `annotate`.

    Raises:
        ValueError: In one line, for a source that is none.
    """
    tree = config.model_dump()
    tree["annotation"]["images"] = [_absolute(source) for source in images]
    tree["annotation"]["captions"] = None if captions is None else _absolute(captions)
    found = _config(tree)
    prompts = prompts_of(found)
    changes: dict[str, Any] = {}
    if "num" not in config.model_fields_set:
        changes["num"] = len(prompts)
    if (
        prompts.class_names or config.classes
    ) and "method" not in config.labeling.model_fields_set:
        changes["labeling"] = found.labeling.model_copy(update={"method": "clusters"})
    return found.model_copy(update=changes)


def _absolute(source: str | Path) -> str:
    """A URL as it is, a path from the root: what looks again may run elsewhere."""
    return str(source) if scheme_of(str(source)) else str(Path(source).absolute())


def _config(tree: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a tree, and of what else is given."""
    more = {key: value for key, value in (given or {}).items() if value is not None}
    try:
        return Config.model_validate({**tree, **more})
    except ValidationError as error:
        raise ValueError(describe(error)) from None


def _row(prompt: Prompt) -> dict[str, Any]:
    """A line of a prompt file; ids and classes only where they are given."""
    row: dict[str, Any] = {"prompt": prompt.text}
    if prompt.id:
        row["id"] = prompt.id
    if prompt.class_names:
        row["classes"] = list(prompt.class_names)
    return row
