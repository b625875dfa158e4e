"""What a dataset says of itself, for one that is drawn and one that is merged alike."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from synthgen.config import Config
from synthgen.dataset.card import class_table, config_yaml, readme
from synthgen.dataset.label_statistics import summarize_counts
from synthgen.dataset.manifest import (
    CARD,
    CLASSES,
    CONFIG,
    IDENTITY,
    Marker,
    build_manifest,
    publish_manifest,
    read_manifest,
    tar_name,
)
from synthgen.dataset.metadata import read_rows
from synthgen.dataset.publish import Storage, dump_json
from synthgen.run.identity import check_plan


def publish_description(
    storage: Storage,
    config: Config,
    identity: bytes,
    names: Iterable[str],
    shards: Sequence[str],
) -> None:
    """Write what is known before there are samples; the identity first: it claims the folder.

    Args:
        storage: The dataset.
        config: Its configuration.
        identity: Content of its identity.json.
        names: Of all its classes; the configuration may have pinned their ids.
        shards: File stems of the planned shards.
    """
    storage.publish_bytes(identity, IDENTITY)
    tree = json.loads(identity)
    storage.publish_bytes(config_yaml(config, tree["digest"]).encode("utf-8"), CONFIG)
    storage.publish_bytes(dump_json(class_table(names, config.classes)), CLASSES)
    if read_manifest(storage) is None:
        card = readme(config, tree, [tar_name(shard) for shard in shards], None)
        storage.publish_bytes(card.encode("utf-8"), CARD)


def publish_conclusion(
    storage: Storage,
    config: Config,
    identity: Mapping[str, Any],
    markers: Sequence[Marker],
    models: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Publish card and manifest over shards that are all complete; returns the manifest.

    Args:
        storage: The dataset.
        config: Its configuration.
        identity: Content of its identity.json.
        markers: Of every shard, in order.
        models: Identities of what drew them.

    Raises:
        RuntimeError: If another run has planned more shards meanwhile.
    """
    times = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": dict(sum((Counter(marker.seconds) for marker in markers), Counter())),
    }
    manifest = build_manifest(markers, identity["digest"], models, times)
    tars = [tar_name(marker.name) for marker in markers if not marker.skipped]
    card = readme(config, identity, tars, manifest, _label_statistics(storage, config, markers))
    with storage.publishing():
        check_plan(storage, config)
        storage.publish_bytes(card.encode("utf-8"), CARD)
        storage.sync()
        return publish_manifest(storage, manifest)


def _label_statistics(
    storage: Storage, config: Config, markers: Sequence[Marker]
) -> dict[str, Any] | None:
    """Statistics over the labels of all samples, from the rows in ``metadata``."""
    if config.labeling.method == "none":
        return None
    rows = (row for marker in markers for row in read_rows(storage, marker.name))
    return summarize_counts(row.labels for row in rows if row.labels is not None)
