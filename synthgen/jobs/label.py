"""Labels beside a finished dataset: its samples are made again, and only labels are kept.

    begin → label_shard for every shard, in any order, anywhere → conclude

A sample's attention reaches no disk, but the sample is a function of its row in ``metadata``: it
is denoised again in the company of its batch, and labeled only if its image, and with the same ks
its masks, come out byte for byte as they stand in ``data``, which is never written. A shard's
labels are done if and only if their marker carries the hash of the data tar and the size of the
tar of labels; killed anywhere, the next run goes on. Labels equal those that
``labeling.method`` puts into the tars while a dataset is made.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synthgen.config import LabelConfig
from synthgen.dataset.label_statistics import LabelCounts, summarize_counts
from synthgen.dataset.labels import (
    LabelMarker,
    class_ids,
    class_names,
    is_labeled,
    labels_marker_bytes,
    labels_marker_name,
    labels_tar_name,
    read_labels_marker,
    summarize_labels,
    summary_name,
)
from synthgen.dataset.listed import ListedShard, listed_shards
from synthgen.dataset.manifest import read_marker
from synthgen.dataset.metadata import Row, read_rows
from synthgen.dataset.records import IMAGE_OPTIONS
from synthgen.dataset.shards import read_span, scan, spans, whole_tar
from synthgen.jobs.batch import Made, Recipe, make_batch
from synthgen.jobs.identity import keep_threads, read_identity
from synthgen.jobs.label_plan import BYTES_PER_SAMPLE, LabelPlan, begin
from synthgen.progress import Progress, report
from synthgen.storage.publish import Storage, explain_disk_errors, open_storage, sha256_file
from synthgen.storage.seal import sealed_json
from synthgen.types import PlannedSample

__all__ = ["LabelPlan", "begin", "conclude", "label", "label_shard", "side_members"]


def label(
    out: str | Path,
    settings: LabelConfig,
    ks: Sequence[int] | None = None,
    label_id: str | None = None,
    num: int | None = None,
    progress: Progress = report,
) -> dict[str, Any]:
    """Label a finished dataset, or finish labels that were cut off.

    Args:
        out: The dataset's folder or URL.
        settings: Method, text, thresholds, refiner.
        ks: Other numbers of clusters than the dataset's; the labels then bring their masks.
        label_id: Name of the labels; None: the method's name and a hash of all settings.
        num: Label whole shards until this many samples; None: all.
        progress: Told about samples and shards; may raise, to stop.

    Returns:
        The content of ``summary.json``.

    Raises:
        ValueError: In one line, if there is no finished dataset, its classes cannot be labeled,
            a sample does not come out as it stands, or the id belongs to other labels.
    """
    plan = begin(out, settings, ks, label_id, num)
    for shard in plan.shards:
        label_shard(plan, shard, progress)
    return conclude(plan)


def label_shard(plan: LabelPlan, shard: str, progress: Progress = report) -> LabelMarker:
    """Label one shard, or find that it was; any number may do so at once.

    Returns:
        The marker of its labels, which are published.
    """
    storage = open_storage(plan.out)
    listed = next(item for item in listed_shards(storage) if item.stem == shard)
    standing = read_labels_marker(storage, plan.label_id, shard)
    labeled = is_labeled(storage, plan.label_id, standing, listed.sha256)
    if standing is not None and labeled and standing.digest == plan.digest:
        progress("shard", name=shard, planned=listed.samples, reused=True)
        return standing
    keep_threads(read_identity(storage) or {"environments": []})
    needed = BYTES_PER_SAMPLE * listed.samples
    with explain_disk_errors(storage, needed, f"the labels of {shard}"):
        marker = _label(storage, plan, listed, progress)
    progress("shard", name=shard, planned=listed.samples, reused=False)
    return marker


def conclude(plan: LabelPlan) -> dict[str, Any]:
    """Publish the statistics of labels once every planned shard is done; returns them.

    Raises:
        RuntimeError: If shards are missing; they are named.
    """
    storage = open_storage(plan.out)
    listed = {item.stem: item for item in listed_shards(storage)}
    markers = {stem: read_labels_marker(storage, plan.label_id, stem) for stem in plan.shards}
    missing = [
        stem
        for stem, marker in markers.items()
        if not is_labeled(storage, plan.label_id, marker, listed[stem].sha256)
    ]
    if missing:
        raise RuntimeError(
            f"Every shard must be labeled before labels are concluded. Got {len(missing)} "
            f"missing ({', '.join(missing[:5])}). Run the same command again."
        )
    done = [marker for marker in markers.values() if marker is not None]
    summary = summarize_labels(plan.label_id, done)
    storage.sync()
    storage.publish_bytes(sealed_json(summary), summary_name(plan.label_id))
    return summary


def _label(
    storage: Storage, plan: LabelPlan, listed: ListedShard, progress: Progress
) -> LabelMarker:
    """Make a shard's samples again, publish their labels, then the marker."""
    started = time.perf_counter()
    counts: list[LabelCounts] = []
    with storage.staging() as folder:
        with whole_tar(folder / "labels.tar") as writer:
            for made, members in _labeled(storage, plan, listed):
                writer.write(made.row.key, members)
                assert made.row.labels is not None
                counts.append(made.row.labels)
                progress("samples", count=1)
        with (folder / "labels.tar").open("rb") as stream:
            sha256, num_bytes = sha256_file(stream), stream.tell()
        name = labels_tar_name(plan.label_id, listed.stem)
        storage.publish(folder / "labels.tar", name)
    marker = LabelMarker(
        name=listed.stem,
        digest=plan.digest,
        tar_sha256=listed.sha256,
        sha256=sha256,
        bytes=num_bytes,
        samples=len(counts),
        statistics=summarize_counts(counts),
        seconds=round(time.perf_counter() - started, 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.publish_bytes(
        labels_marker_bytes(marker), labels_marker_name(plan.label_id, listed.stem)
    )
    return marker


def _labeled(
    storage: Storage, plan: LabelPlan, listed: ListedShard
) -> Iterator[tuple[Made, dict[str, bytes]]]:
    """The samples of a shard made again, with the members of their labels, in order."""
    marker = read_marker(storage, listed.stem)
    if marker is None:
        raise ValueError(
            f"{listed.name} must have a marker. Got none that can be read; see 'synthgen verify'."
        )
    rows = read_rows(storage, listed.stem, marker)
    ids = class_ids(class_names(storage))
    recipe = Recipe(plan.config, marker.config, marker.batch_size, ids)
    with storage.open(listed.name) as stream:
        if sha256_file(stream) != listed.sha256:
            raise ValueError(
                f"{listed.name} must be the tar that the manifest lists. Got another sha256; "
                f"see 'synthgen verify'."
            )
        places = {span.key: span for span in spans(scan(stream))}
        for number, batch in _batches(rows).items():
            planned = [PlannedSample(r.key, r.as_prompt, r.image_index, r.seed) for r in batch]
            for made in make_batch(recipe, planned, number):
                if made.row.key in places:
                    standing = read_span(stream, places[made.row.key])
                    yield made, side_members(made, standing, plan.other_masks)


def _batches(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Rows by the number of the batch they were made in, failed ones included."""
    batches: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        batches[row.batch].append(row)
    return dict(batches)


def side_members(made: Made, standing: Mapping[str, bytes], other_masks: bool) -> dict[str, bytes]:
    """Members of a sample's labels, once it is certain that it is the sample that stands there.

    Args:
        made: The sample, made again.
        standing: Its members in ``data``.
        other_masks: Masks are not those of the dataset, and are kept.

    Raises:
        ValueError: If it came out as another sample.
    """
    key, members = made.row.key, made.members
    images = IMAGE_OPTIONS.keys() & standing.keys()
    alike = {*images, *(() if other_masks else ("mask.png",))}
    if members is None or any(members.get(name) != standing[name] for name in alike):
        got = made.row.message if members is None else "other bytes"
        raise ValueError(
            f"Sample {key} must come out as it stands to be labeled. Got {got}; use the "
            f"versions, device and dtype in identity.json, or make the dataset again."
        )
    info = json.loads(members["json"])
    segments = info["segments"]
    if not other_masks:
        segments = [
            {name: item[name] for name in ("id", "label", "label_score")} for item in segments
        ]
    tree = {
        "key": key,
        "segments": segments,
        "not_found": info["not_found"],
        "instances": info["instances"],
    }
    text = json.dumps(tree, ensure_ascii=False, allow_nan=False)
    chosen = {"json": text.encode("utf-8"), "sem.png": members["sem.png"]}
    return {**chosen, "mask.png": members["mask.png"]} if other_masks else chosen
