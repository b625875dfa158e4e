"""What a dataset says of itself, for one that is drawn and one that is merged alike."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from synthgen.config import Config
from synthgen.dataset.card import class_table, config_yaml, readme
from synthgen.dataset.label_statistics import of_one, rounded_statistics, sum_statistics
from synthgen.dataset.manifest import (
    CARD,
    CLASSES,
    CONFIG,
    IDENTITY,
    MANIFEST,
    ShardRow,
    distinct,
    manifest_of,
    publish_manifest,
    shard_stem,
    tar_name,
)
from synthgen.dataset.metadata import read_rows
from synthgen.dataset.survey import Survey
from synthgen.jobs.identity import check_plan
from synthgen.storage.publish import Storage, dump_json


def publish_description(
    storage: Storage,
    config: Config,
    identity: bytes,
    names: Iterable[str],
) -> None:
    """Write what is known before there are samples; the identity first: it claims the folder.

    Args:
        storage: The dataset.
        config: Its configuration.
        identity: Content of its identity.json.
        names: Of all its classes; the configuration may have pinned their ids.
    """
    storage.publish_bytes(identity, IDENTITY)
    tree = json.loads(identity)
    storage.publish_bytes(config_yaml(config, tree["digest"]).encode("utf-8"), CONFIG)
    storage.publish_bytes(dump_json(class_table(names, config.classes)), CLASSES)
    if storage.size(MANIFEST) is None:
        card = readme(config, tree, [tar_name("train-*")], None)
        storage.publish_bytes(card.encode("utf-8"), CARD)


def publish_totals(
    storage: Storage,
    config: Config,
    identity: Mapping[str, Any],
    found: Survey,
    models: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Publish card and manifest over shards that are all complete; returns the manifest.

    Args:
        storage: The dataset.
        config: Its configuration.
        identity: Content of its identity.json.
        found: Every shard.
        models: Identities of what drew them.

    Raises:
        RuntimeError: If another run has planned more shards meanwhile.
    """
    rows = [found.rows[index] for index in sorted(found.rows)]
    before: Mapping[str, Any] = found.manifest or {}
    environments = [*before.get("environments", []), *map(dict, found.environments)]
    seconds = Counter(before.get("times", {}).get("seconds", {}))
    seconds.update(found.seconds)
    manifest = {
        **manifest_of(rows, distinct(environments), identity["digest"]),
        "models": [dict(model) for model in models],
        "times": {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": dict(seconds),
        },
    }
    if config.labeling.method != "none":
        manifest["labels"] = _label_statistics(storage, rows, before)
    tars = [row["name"] for row in rows if not row["skipped"]]
    labels = rounded_statistics(manifest["labels"]) if "labels" in manifest else None
    card = readme(config, identity, tars, manifest, labels)
    with storage.publishing():
        check_plan(storage, config)
        storage.publish_bytes(card.encode("utf-8"), CARD)
        storage.sync()
        return publish_manifest(storage, manifest)


def _label_statistics(
    storage: Storage, rows: Sequence[ShardRow], before: Mapping[str, Any]
) -> dict[str, Any]:
    """Sums over the labels of all samples; those of the manifest before are gone on with."""
    listed = before.get("shards", [])
    known = before.get("labels") if listed == rows[: len(listed)] else None
    new = rows[len(listed) if known else 0 :]
    counts = (row.labels for item in new for row in read_rows(storage, shard_stem(item["name"])))
    return sum_statistics((of_one(item) for item in counts if item is not None), known)
