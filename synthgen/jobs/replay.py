"""Make one sample again from what the dataset says about it, and compare the bytes."""

from __future__ import annotations

from pathlib import Path

from synthgen.dataset.labels import class_ids, class_names
from synthgen.dataset.manifest import metadata_name, shard_of, tar_name
from synthgen.dataset.metadata import read_rows
from synthgen.dataset.records import KEY, parse_sample
from synthgen.dataset.shards import BrokenShardError, read_span, scan, spans
from synthgen.jobs.identity import check_model, read_config, read_identity
from synthgen.storage.publish import Storage, open_storage
from synthgen.storage.untrusted import one_line, quote
from synthgen.types import PlannedSample


def replay(out: str | Path, key: str) -> dict[str, bool]:
    """Make a sample again, in the company of its batch, and compare each member's bytes.

    The prompt file is not needed: the rows in ``metadata`` hold the prompts of the batch.

    Args:
        out: The dataset's folder.
        key: The sample's key.

    Returns:
        For every member, whether it is the same.

    Raises:
        ValueError: If there is no such sample, it had failed, or the model is another one.
    """
    storage = open_storage(out)
    config, identity = read_config(storage), read_identity(storage)
    assert identity is not None
    if not KEY.fullmatch(key):
        raise ValueError(f"key must be 10 to 20 digits. Got {key!r:.40}.")
    if storage.size(metadata_name(shard_of(key))) is None:
        raise ValueError(f"{key} must be a sample of {storage.root}. Got no such shard.")
    rows = read_rows(storage, shard_of(key))
    row = next((row for row in rows if row.key == key), None)
    if row is None or row.status != "ok":
        got = f"status {quote(row.status)}, reason {quote(row.reason)}" if row else "none"
        raise ValueError(f"{key} must be a sample of {storage.root}. Got {got}.")
    existing = _read_members(storage, key)
    try:
        made = parse_sample(existing["json"])["provenance"]
        digest, batch_size = str(made["config"]), int(made["batch_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{tar_name(shard_of(key))}: sample {key} must say how it was made. Got "
            f"{one_line(repr(error))}; see 'synthgen verify'."
        ) from None
    check_model(identity, config, storage.root)
    from synthgen.jobs.batch import Recipe, make_batch  # draws

    recipe = Recipe(config, digest, batch_size, class_ids(class_names(storage)))
    batch = [
        PlannedSample(other.key, other.as_prompt, other.image_index, other.seed)
        for other in rows
        if other.batch == row.batch
    ]
    again = next(m for m in make_batch(recipe, batch, row.batch) if m.row.key == key).members or {}
    return {
        f"{key}.{suffix}": existing.get(suffix) == again.get(suffix)
        for suffix in sorted(existing.keys() | again.keys())
    }


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
