"""Which labels are put beside a dataset: their plan, and the folder that is theirs.

Everything that can be wrong with a request is said here, in one line, before anything is written:
an unfinished dataset, another model, classes that no label can be, an id that is taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from synthgen.auditing.samples import ListedShard, listed_shards
from synthgen.config import ALGORITHM_VERSION, LABELING_VERSION, Config, LabelConfig, digest
from synthgen.dataset.labels import (
    LABELS_SCHEMA_VERSION,
    check_label_id,
    class_ids,
    class_names,
    description_name,
)
from synthgen.dataset.metadata import read_rows
from synthgen.dataset.publish import Storage, clear_disk_errors, dump_json, open_storage
from synthgen.run.classes import check_methods, check_names, check_tokens
from synthgen.run.identity import changed_keys, read_identity
from synthgen.run.lifecycle import read_config
from synthgen.run.replay import check_model
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
    chosen = _first_shards(listed, num)
    check_tokens(config, _prompts(storage, chosen))
    content = _content(storage, config)
    found = digest(content)
    label_id = label_id or f"{_slug(settings.method)}-{found[:8]}"
    _claim(storage, check_label_id(label_id), content)
    other = config.segmentation != standing.segmentation
    stems = tuple(shard.stem for shard in chosen)
    samples = tuple(shard.samples for shard in chosen)
    return LabelPlan(str(out), label_id, config, found, other, stems, samples)


def _first_shards(listed: Sequence[ListedShard], num: int | None) -> list[ListedShard]:
    """The first shards that together hold ``num`` samples; all of them for None."""
    totals = list(accumulate(shard.samples for shard in listed))
    before = [0, *totals[:-1]]
    wanted = totals[-1] if num is None else max(1, num)
    return [shard for shard, made in zip(listed, before, strict=True) if made < wanted]


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
        "labeling": config.labeling.model_dump(mode="json"),
        "segmentation": config.segmentation.model_dump(mode="json"),
        "dataset": identity["digest"],
        "versions": [ALGORITHM_VERSION, LABELING_VERSION],
    }
    return dict(json.loads(json.dumps(content)))


def _claim(storage: Storage, label_id: str, content: Mapping[str, Any]) -> None:
    standing = storage.read(description_name(label_id))
    if standing is not None:
        changed = changed_keys(json.loads(standing).get("settings", {}), content)
        if changed:
            raise ValueError(
                f"The settings must be the ones that the labels {label_id} were begun with. Got "
                f"a change of {', '.join(changed[:8])}. Undo it, or choose another --id."
            )
    tree = {"schema_version": LABELS_SCHEMA_VERSION, "id": label_id, "settings": content}
    with clear_disk_errors(storage, BYTES_PER_SAMPLE, f"the labels {label_id}"):
        storage.publish_bytes(dump_json(tree), description_name(label_id))
        storage.clear_stale_staging()


def _slug(name: str) -> str:
    """A method's name as the beginning of an id.

    >>> _slug("mylab.mod:label_2")
    'mylab-mod-label-2'
    """
    letters = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    return "-".join(letters.replace("-", " ").split())[:60].rstrip("-") or "labels"
