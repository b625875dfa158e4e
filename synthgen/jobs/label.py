"""Labels beside a finished dataset: its samples are made again, and only labels are kept.

A sample's attention reaches no disk, but the sample is a function of its row in ``metadata``: it
is denoised again in the company of its batch, and labeled only if its image, and with the same ks
its masks, come out byte for byte as they are in ``data``, which is never written. Labels equal
those that ``labeling.method`` puts into the tars while a dataset is made. Everything that can be
wrong with a request is said in one line before anything is written.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synthgen.config import ALGORITHM_VERSION, LABELING_VERSION, Config, LabelConfig, digest
from synthgen.dataset.label_statistics import LabelCounts, summarize_counts
from synthgen.dataset.labels import (
    LABELS,
    LABELS_SCHEMA_VERSION,
    LabelMarker,
    class_ids,
    class_names,
    labels_marker_bytes,
    labels_marker_name,
    labels_tar_name,
    summarize_labels,
)
from synthgen.dataset.manifest import read_marker
from synthgen.dataset.metadata import Row, read_rows
from synthgen.dataset.records import IMAGE_OPTIONS, dump_sample
from synthgen.dataset.shards import read_span, scan, spans, whole_tar
from synthgen.jobs.classes import check_methods, check_names, check_tokens
from synthgen.jobs.identity import check_model, keep_threads, read_config, read_identity
from synthgen.jobs.job import Done, SideJob
from synthgen.progress import Progress, report
from synthgen.storage.publish import sha256_file
from synthgen.types import PlannedSample, Prompt

_BYTES_PER_SAMPLE = 10_000  # a semantic map, and labels of about 40 masks


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
            a sample comes out as another one, or the id belongs to other labels.
    """
    return LabelJob(out, settings, ks, label_id, num).run(progress)


class LabelJob(SideJob[LabelMarker]):
    """Labels a finished dataset; see ``label``."""

    name, folder, schema_version = "label", LABELS, LABELS_SCHEMA_VERSION

    def __init__(
        self,
        out: str | Path,
        settings: LabelConfig,
        ks: Sequence[int] | None = None,
        label_id: str | None = None,
        num: int | None = None,
    ) -> None:
        super().__init__(out, num)
        if settings.method == "none":
            raise ValueError("method must be a labeler. Got 'none'; see 'synthgen label --help'.")
        if settings.parts is not None:
            raise ValueError(
                "method must be a labeler of words here. Got 'parts', whose classes a dataset has "
                "from its beginning: synthgen generate --parts DIR."
            )
        check_methods(settings)
        check_names(class_ids(class_names(self.storage)))
        drawn, identity = read_config(self.storage), read_identity(self.storage)
        assert identity is not None
        check_model(identity, drawn, self.storage.root)
        self.config = _with_labels(drawn, settings, ks)
        check_tokens(self.config, self._prompts())
        content = {
            "labeling": self.config.labeling.digest_settings(),
            "segmentation": self.config.segmentation.model_dump(mode="json"),
            "dataset": identity["digest"],
            "versions": [ALGORITHM_VERSION, LABELING_VERSION],
        }
        self.content = json.loads(json.dumps(content))
        self.result_id = label_id or LABELS.id_for(settings.method, digest(self.content))
        self.other_masks = self.config.segmentation != drawn.segmentation

    def _prompts(self) -> list[Prompt]:
        """The different prompts of the samples."""
        rows = (row for shard in self.listed for row in read_rows(self.storage, shard))
        return list({row.prompt_id: row.as_prompt for row in rows if row.status == "ok"}.values())

    def needs(self, shard: str) -> tuple[int, int, str]:
        """Samples, bytes and name of a shard's labels."""
        samples = self.listed[shard].samples
        return samples, _BYTES_PER_SAMPLE * samples, f"the labels of {shard}"

    def make(self, shard: str, progress: Progress) -> LabelMarker:
        """Make a shard's samples again, publish their labels, then the marker."""
        keep_threads(read_identity(self.storage) or {"environments": []})
        started, counts = time.perf_counter(), list[LabelCounts]()
        with self.storage.staging() as folder:
            with whole_tar(folder / "labels.tar") as writer:
                for key, members, counted in self._labeled(shard):
                    writer.write(key, members)
                    counts.append(counted)
                    progress("samples", count=1)
            with (folder / "labels.tar").open("rb") as stream:
                sha256, num_bytes = sha256_file(stream), stream.tell()
            self.storage.publish(folder / "labels.tar", labels_tar_name(self.result_id, shard))
        marker = LabelMarker(
            name=shard,
            digest=self.digest,
            tar_sha256=self.listed[shard].sha256,
            sha256=sha256,
            bytes=num_bytes,
            samples=len(counts),
            statistics=summarize_counts(counts),
            seconds=round(time.perf_counter() - started, 3),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        name = labels_marker_name(self.result_id, shard)
        self.storage.publish_bytes(labels_marker_bytes(marker), name)
        return marker

    def _labeled(self, shard: str) -> Any:
        """Key, members and counts of the labels of a shard's samples, in order."""
        from synthgen.jobs.batch import Recipe, make_batch

        storage, listed = self.storage, self.listed[shard]
        marker = read_marker(storage, shard)
        if marker is None:
            raise ValueError(
                f"{listed.name} must have a marker. Got none that can be read; see 'synthgen "
                f"verify'."
            )
        batches: defaultdict[int, list[Row]] = defaultdict(list)  # failed ones included
        for row in read_rows(storage, shard, marker):
            batches[row.batch].append(row)
        ids = class_ids(class_names(storage))
        recipe = Recipe(self.config, marker.config, marker.batch_size, ids)
        with storage.open(listed.name) as stream:
            if sha256_file(stream) != listed.sha256:
                raise ValueError(
                    f"{listed.name} must be the tar that the manifest lists. Got another sha256; "
                    f"see 'synthgen verify'."
                )
            places = {span.key: span for span in spans(scan(stream))}
            for number, batch in batches.items():
                planned = [PlannedSample(r.key, r.as_prompt, r.image_index, r.seed) for r in batch]
                for made in make_batch(recipe, planned, number):
                    if made.row.key in places:
                        existing = read_span(stream, places[made.row.key])
                        yield made.row.key, self._members(made, existing), made.row.labels

    def _members(self, made: Any, existing: Mapping[str, bytes]) -> dict[str, bytes]:
        """Members of a sample's labels, once it is certain that it is the sample in ``data``.

        Raises:
            ValueError: If it came out as another sample.
        """
        key, members, info = made.row.key, made.members, made.info
        images = IMAGE_OPTIONS.keys() & existing.keys()
        alike = {*images, *(() if self.other_masks else ("mask.png",))}
        if members is None or any(members.get(name) != existing[name] for name in alike):
            got = made.row.message if members is None else "other bytes"
            raise ValueError(
                f"Sample {key} must come out as it is in data to be labeled. Got {got}; use the "
                f"versions, device and dtype in identity.json, or make the dataset again."
            )
        segments = info["segments"]
        if not self.other_masks:
            kept = ("id", "label", "label_score")
            segments = [{name: segment[name] for name in kept} for segment in segments]
        tree = {"key": key, "segments": segments}
        tree |= {name: info[name] for name in ("not_found", "instances")}
        chosen = {"json": dump_sample(tree), "sem.png": members["sem.png"]}
        return {**chosen, "mask.png": members["mask.png"]} if self.other_masks else chosen

    def row(self, done: Done[LabelMarker]) -> dict[str, Any]:
        """What a table says of a shard."""
        classes = done.marker.statistics["classes"].values()
        found = sum(row["images"] > 0 for row in classes)
        return {"samples": done.marker.samples, "classes": found, "bytes": done.marker.bytes}

    def summarize(self, markers: Sequence[LabelMarker]) -> dict[str, Any]:
        """The statistics of all labels."""
        return summarize_labels(self.result_id, markers)


def _with_labels(config: Config, settings: LabelConfig, ks: Sequence[int] | None) -> Config:
    """A dataset's configuration with other labels, and with other ks where they are given."""
    tree = config.model_dump(mode="json") | {"labeling": settings.model_dump(mode="json")}
    if ks is not None:
        tree["segmentation"]["clusters"]["ks"] = list(ks)
    return Config.model_validate(tree)
