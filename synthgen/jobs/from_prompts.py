"""A dataset from prompts in one call, for programs and notebooks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from synthgen import jobs
from synthgen.config import Config, describe
from synthgen.storage.untrusted import one_line
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
    tree = {**settings, **{key: value for key, value in given.items() if value is not None}}
    try:
        config = Config.model_validate({**tree, "prompts": source})
    except ValidationError as error:
        raise ValueError(describe(error)) from None
    return jobs.generate(config, out)


def _row(prompt: Prompt) -> dict[str, Any]:
    """A line of a prompt file; ids and classes only where they are given."""
    row: dict[str, Any] = {"prompt": prompt.text}
    if prompt.id:
        row["id"] = prompt.id
    if prompt.class_names:
        row["classes"] = list(prompt.class_names)
    return row
