"""Growing a dataset by whole shards; what was published stays, byte for byte.

The n-th extension is a function of the dataset alone: prompts go on where they stopped, each
prompt with its next image, so that seeds are fresh and every image keeps its identity. The
configuration on the disk is the intent (``extended`` shards), the manifest the commit, and
``.synthgen/extended.json`` says how far the caller knows of it: killed before, the next call
finishes that extension instead of beginning another. Each extension
publishes a version of the manifest, which ``open_dataset(out, version=n)`` holds on to.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synthgen.config import Config, load_section
from synthgen.dataset.manifest import CONFIG, read_manifest
from synthgen.jobs.generate import generate
from synthgen.jobs.identity import read_config, read_identity
from synthgen.progress import Progress, report
from synthgen.storage.publish import Storage, dump_json, open_storage
from synthgen.storage.untrusted import one_line, parse_object

TOLD = ".synthgen/extended.json"

LEAST_WEIGHT = 0.05
"""Of a class that a segmenter knows: it must not be forgotten."""

logger = logging.getLogger(__name__)


def extend(
    out: str | Path,
    shards: int,
    config: Config | None = None,
    strict: bool = False,
    progress: Progress = report,
    weights: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Add whole shards to a dataset, or finish what was begun; returns the new manifest.

    Args:
        out: The dataset's folder or URL.
        shards: How many to add.
        config: See ``extension``.
        strict: Refuse other library versions, device or dtype.
        progress: Told about samples and shards.
        weights: See ``extension``.
    """
    with extension(out, shards, config, weights=weights) as extended:
        return generate(extended, out, strict, progress)


@contextmanager
def extension(
    out: str | Path,
    shards: int,
    config: Config | None = None,
    until: int | None = None,
    weights: Mapping[str, float] | None = None,
) -> Iterator[Config]:
    """The configuration to generate with; until the block ends no other extension may begin.

    An unfinished dataset or extension comes back as it is, to be finished first. On an object
    store, where there is no lock, two at once make the same shards once.

    Args:
        out: The dataset's folder or URL.
        shards: How many to add.
        config: Where there is no dataset yet, begins it. Otherwise it must be the dataset's; it
            says where prompts and model lie now. None: the dataset's own.
        until: Never add beyond so many extended shards, those that an earlier try of the same run
            was to reach. None: a first try.
        weights: By class, how often it is drawn in these shards and all later ones, up to other
            weights; see `balanced_prompt`. None: as before.

    Raises:
        ValueError: If there is no dataset and no configuration, ``num`` is another one, or a
            weight is not above 0.
        RuntimeError: If another process extends the dataset right now.
    """
    if shards < 1:
        raise ValueError(f"shards must be at least 1. Got {shards}.")
    storage = open_storage(out)
    if config is None:
        read_config(storage)  # no dataset: say so before a folder is made
    with storage.locked("extend", "extend a dataset"):
        extended = _extended(storage, shards, config, until, weights)
        yield extended
        _tell(storage, extended.extended)


def _extended(
    storage: Storage,
    shards: int,
    config: Config | None,
    until: int | None,
    weights: Mapping[str, float] | None,
) -> Config:
    told = _told(storage)
    if config is not None and (read_identity(storage) is None or storage.read(CONFIG) is None):
        _tell(storage, -1 if told is None else told)
        return config
    existing = read_config(storage)
    found = config or existing
    if found.num != existing.num:
        raise ValueError(
            f"num must stay what the dataset was begun with, {existing.num}: its shards are "
            f"numbered behind it. Got {found.num}."
        )
    manifest = read_manifest(storage)
    unfinished = manifest is None or manifest["totals"]["planned"] != existing.planned
    if told is None:  # of another release, or a copy without what is hidden
        _tell(storage, existing.extended)
    elif not unfinished and existing.extended > told:
        logger.warning("An earlier run was cut off when all was there: it is ended, none added.")
        unfinished = True
    added = 0 if unfinished else shards
    if until is not None:
        added = max(0, min(added, until - existing.extended))
    balance = existing.balance
    if weights and added:
        heaviest = max(weights.values())
        relative = {name: round(weight / heaviest, 4) for name, weight in sorted(weights.items())}
        balance = {**balance, existing.extended: relative}
    elif weights:
        logger.warning("What was cut off is ended first, as it was begun; extend again after it.")
    tree = {**found.model_dump(), "extended": existing.extended + added, "balance": balance}
    return load_section(Config, **tree)


def weights_by_score(run: str | Path) -> dict[str, float]:
    """How often classes should be drawn for a segmenter: 1 - IoU, and at least `LEAST_WEIGHT`.

    Args:
        run: Folder of ``synthgen train``: its segmenter.json has the IoU of each class.

    Raises:
        ValueError: If there is none.
    """
    path = Path(run) / "segmenter.json"
    try:
        ious = parse_object(path.read_bytes())["scores"]["class_iou"]
        found = {name: 1.0 - float(iou) for name, iou in ious.items() if name != "background"}
        if not found or not all(0.0 <= weight <= 1.0 for weight in found.values()):
            raise ValueError("no IoU of 0 to 1 per class")
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Classes must be balanced by a folder of 'synthgen train', which has the IoU of each "
            f"class. Got {path}: {one_line(error, 80)}."
        ) from None
    return {name: max(weight, LEAST_WEIGHT) for name, weight in found.items()}


def _told(storage: Storage) -> int | None:
    """Extended shards when an extension last said that it is done; -1 before the dataset was."""
    try:
        found = parse_object(storage.read(TOLD) or b"")["extended"]
    except (ValueError, KeyError):
        return None
    return found if isinstance(found, int) else None


def _tell(storage: Storage, extended: int) -> None:
    storage.publish_bytes(dump_json({"extended": extended}), TOLD)
