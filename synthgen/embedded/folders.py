"""Networks in folders of transformers' layout: what is read, and how others are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging

_UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(SafetensorError, StrictDataclassError),
)
"""What transformers raises for configurations and weights that are not right."""


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no warnings of what was built on purpose."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def refusing(folder: Path, noun: str) -> Iterator[None]:
    """Whatever is wrong with a folder's files becomes one line, a ValueError."""
    try:
        yield
    except _UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{folder} must hold {noun} (config, safetensors, processor). Got: {reason}."
        ) from None


def load_network(folder: Path, network: Any, kind: str, noun: str) -> Any:
    """A network of transformers in a local folder, fp32, for inference.

    Nothing but safetensors is read, nothing is fetched, and no code of the folder is run.

    Args:
        folder: Of config.json and safetensors.
        network: Its class.
        kind: The ``model_type`` that the configuration must name.
        noun: How a message calls it, with its article.

    Raises:
        ValueError: In one line, if the folder holds something else or is not complete.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"{noun} folder must hold config.json. Got none in {folder}.")
    with refusing(folder, noun), quiet():
        stored = json.loads(config.read_text(encoding="utf-8"))
        found = stored.get("model_type") if isinstance(stored, dict) else None
        if found != kind:
            raise ValueError(f"model_type {found!r}")
        model, report = network.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    absent = set(report["missing_keys"]) & {name for name, _ in model.named_parameters()}
    if absent:
        raise ValueError(
            f"the weights in {folder} must be complete. Missing: {min(absent)} "
            f"({len(absent)} in all); fetch them again."
        )
    return model.eval().requires_grad_(False)
