"""Which labels are put beside a dataset: their plan, and the folder that is theirs.

Everything that can be wrong with a request is said here, in one line, before anything is written:
an unfinished dataset, another model, classes that no label can be, an id that is taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen.config import ALGORITHM_VERSION, LABELING_VERSION, Config, LabelConfig, digest
from synthgen.dataset.labels import (
    LABELS,
    LABELS_SCHEMA_VERSION,
    class_ids,
    class_names,
)
from synthgen.dataset.listed import ListedShard, first_shards, listed_shards
from synthgen.dataset.metadata import read_rows
from synthgen.jobs.classes import check_methods, check_names, check_tokens
from synthgen.jobs.identity import read_config, read_identity
from synthgen.jobs.replay import check_model
from synthgen.storage.publish import Storage, open_storage
from synthgen.types import Prompt

BYTES_PER_SAMPLE = 10_000  # a semantic map, and labels of about 40 masks


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """Labels that were begun: what a worker needs to label a shard.

    Args:
        out: The dataset's folder or URL.
        label_id: Their name in ``labels/``.
        config: The dataset's configuration with the labels' settings and ks in it.
        digest: Of all that determines the labels but the tars.
        other_masks: The ks are not the dataset's, so masks are kept too.
        shards: File stems of the shards to label.
        samples: Samples in each of them.
    """

    out: str
    label_id: str
    config: Config
    digest: str
    other_masks: bool
    shards: tuple[str, ...]
    samples: tuple[int, ...]


def begin(
    out: str | Path,
    settings: LabelConfig,
    ks: Sequence[int] | None = None,
    label_id: str | None = None,
    num: int | None = None,
) -> LabelPlan:
    """Claim a folder for labels, or check that the ones there are of the same settings.

    Args:
        out: The dataset's folder or URL.
        settings: Method, text, thresholds, refiner.
        ks: Other numbers of clusters than the dataset's; the labels then bring their masks.
        label_id: Name of the labels; None: the method's name and a hash of all settings.
        num: Label whole shards until this many samples; None: all.

    Raises:
        ValueError: In one line, before anything is written, if there is no finished dataset, its
            classes cannot be labeled, or the id belongs to other labels.
    """
    storage = open_storage(out)
    listed = listed_shards(storage)
    if settings.method == "none":
        raise ValueError("method must be a labeler. Got 'none'; see 'synthgen label --help'.")
    check_methods(settings)
    check_names(class_ids(class_names(storage)))
    standing = read_config(storage)
    check_model(storage, standing)
    config = _with_labels(standing, settings, ks)
    chosen = first_shards(listed, num)
    check_tokens(config, _prompts(storage, chosen))
    content = _content(storage, config)
    found = digest(content)
    label_id = label_id or LABELS.id_for(settings.method, found)
    LABELS.claim(storage, label_id, content, LABELS_SCHEMA_VERSION)
    other = config.segmentation != standing.segmentation
    stems = tuple(shard.stem for shard in chosen)
    samples = tuple(shard.samples for shard in chosen)
    return LabelPlan(str(out), label_id, config, found, other, stems, samples)


def _prompts(storage: Storage, shards: Sequence[ListedShard]) -> list[Prompt]:
    """The different prompts of the samples of some shards."""
    rows = (row for shard in shards for row in read_rows(storage, shard.stem))
    return list({row.prompt_id: row.as_prompt for row in rows if row.status == "ok"}.values())


def _with_labels(config: Config, settings: LabelConfig, ks: Sequence[int] | None) -> Config:
    """A dataset's configuration with other labels, and with other ks where they are given."""
    tree = config.model_dump(mode="json") | {"labeling": settings.model_dump(mode="json")}
    if ks is not None:
        tree["segmentation"]["clusters"]["ks"] = list(ks)
    return Config.model_validate(tree)


def _content(storage: Storage, config: Config) -> dict[str, Any]:
    """All that determines labels but the tars: what their digest covers."""
    identity: Any = read_identity(storage)
    content = {
        "labeling": config.labeling.digest_settings(),
        "segmentation": config.segmentation.model_dump(mode="json"),
        "dataset": identity["digest"],
        "versions": [ALGORITHM_VERSION, LABELING_VERSION],
    }
    return dict(json.loads(json.dumps(content)))
