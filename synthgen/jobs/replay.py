"""Make one sample again from what the dataset says about it, and compare the bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthgen.config import Config
from synthgen.dataset.changes import changed_keys, list_keys
from synthgen.dataset.labels import class_ids, class_names
from synthgen.dataset.manifest import metadata_name, shard_of, tar_name
from synthgen.dataset.metadata import Row, read_rows
from synthgen.dataset.records import KEY, parse_sample
from synthgen.dataset.shards import BrokenShardError, read_span, scan, spans
from synthgen.jobs.batch import Recipe, make_batch
from synthgen.jobs.identity import (
    check_drawn,
    keep_threads,
    model_content,
    read_config,
    read_identity,
)
from synthgen.storage.publish import Storage, open_storage
from synthgen.storage.redaction import redact_tree
from synthgen.storage.untrusted import one_line, quote
from synthgen.types import PlannedSample


def replay(out: str | Path, key: str) -> dict[str, bool]:
    """Make a sample again, in the company of its batch, and compare each member's hash.

    The prompt file is not needed: the rows in ``metadata`` hold the prompts of the batch.

    Args:
        out: The dataset's folder.
        key: The sample's key.

    Returns:
        For every member, whether it has the same sha256.

    Raises:
        ValueError: If there is no such sample, it had failed, or the model is another one.
    """
    storage = open_storage(out)
    config = read_config(storage)
    rows = _rows_of(storage, key)
    row = next((row for row in rows if row.key == key), None)
    if row is None or row.status != "ok":
        got = f"status {quote(row.status)}, reason {quote(row.reason)}" if row else "none"
        raise ValueError(f"{key} must be a sample of {storage.root}. Got {got}.")
    standing = _read_members(storage, key)
    try:
        made = parse_sample(standing["json"])["provenance"]
        digest, batch_size = str(made["config"]), int(made["batch_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{tar_name(shard_of(key))}: sample {key} must say how it was made. Got "
            f"{one_line(repr(error))}; see 'synthgen verify'."
        ) from None
    check_model(storage, config)
    recipe = Recipe(config, digest, batch_size, class_ids(class_names(storage)))
    again = _make_again(recipe, [other for other in rows if other.batch == row.batch], key)
    return {
        f"{key}.{suffix}": _sha256(standing.get(suffix, b"")) == _sha256(again.get(suffix, b""))
        for suffix in sorted(standing.keys() | again.keys())
    }


def _make_again(recipe: Recipe, rows: Sequence[Row], key: str) -> dict[str, bytes]:
    batch = [PlannedSample(row.key, row.as_prompt, row.image_index, row.seed) for row in rows]
    for made in make_batch(recipe, batch, rows[0].batch):
        if made.row.key == key:
            return dict(made.members or {})
    raise AssertionError("a batch gives one outcome per planned sample")


def _rows_of(storage: Storage, key: str) -> list[Row]:
    if not KEY.fullmatch(key):
        raise ValueError(f"key must be 10 to 20 digits. Got {key!r:.40}.")
    if storage.size(metadata_name(shard_of(key))) is None:
        raise ValueError(f"{key} must be a sample of {storage.root}. Got no such shard.")
    return read_rows(storage, shard_of(key))


def _read_members(storage: Storage, key: str) -> dict[str, bytes]:
    name = tar_name(shard_of(key))
    if storage.size(name) is None:
        raise ValueError(f"{name} must exist. Got none; see 'synthgen verify'.")
    try:
        with storage.open(name) as stream:
            for span in spans(scan(stream)):
                if span.key == key:
                    return read_span(stream, span)
    except BrokenShardError as error:
        raise ValueError(f"{name} must be whole. Got {error}; see 'synthgen verify'.") from None
    raise ValueError(f"{key} must be in {name}. Got none; see 'synthgen verify'.")


def check_model(storage: Storage, config: Config) -> None:
    """Refuse to make samples again with a model that is not the dataset's; keep its threads."""
    standing: Any = read_identity(storage)
    keep_threads(standing)
    check_drawn(standing, storage.root)
    ours = redact_tree(model_content(config.model))
    changed = changed_keys({name: standing["content"].get(name) for name in ours}, ours)
    if changed:
        raise ValueError(
            f"The model must be the one of the dataset. Got a change of {list_keys(changed)}."
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
