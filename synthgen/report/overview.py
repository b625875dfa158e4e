"""What a whole dataset looks like in numbers, gathered one shard at a time.

Everything is a count or a histogram with fixed bins, so memory does not grow with the dataset;
only the keys of its samples, and as many failures as a page can show, are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from synthgen.dataset.label_statistics import summarize_counts
from synthgen.dataset.metadata import Row
from synthgen.dataset.records import decode_image, parse_sample
from synthgen.report.labels import Labels

MAX_FAILURES = 200  # rows of the table; all are counted
MASK_EDGES = np.arange(0.0, 66.0, 3.0)
SHARE_EDGES = np.linspace(0.0, 1.0, 21)
AREA_EDGES = np.logspace(-4.0, 0.0, 21)
SECONDS_EDGES = np.logspace(-2.0, 3.0, 21)


@dataclass(slots=True)
class Histogram:
    """Counts per bin, added to bit by bit; values outside go to the outermost bins.

    Args:
        edges: Limits of the bins, ascending.

    Attributes:
        counts: Values in each bin so far.
    """

    edges: Float[np.ndarray, " edge"]
    counts: Int[np.ndarray, " bin"] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.edges) - 1, dtype=np.int64)

    def add(self, values: Shaped[np.ndarray, " value"] | Iterable[float]) -> None:
        """Count values; NaN is left out.

        >>> histogram = Histogram(np.array([0.0, 1.0, 2.0]))
        >>> histogram.add([0.5, 7.0, float("nan")])
        >>> histogram.counts.tolist(), histogram.words
        ([1, 1], '2 values, most often 0 to 1 (1)')
        """
        array = np.asarray(list(values), dtype=np.float64)
        kept = np.clip(array[np.isfinite(array)], self.edges[0], self.edges[-1])
        self.counts += np.histogram(kept, self.edges)[0]

    @property
    def words(self) -> str:
        """How many values, and where the most common bin is."""
        total, peak = int(self.counts.sum()), int(self.counts.argmax())
        low, high = self.edges[peak : peak + 2]
        common = f"most often {low:.3g} to {high:.3g} ({int(self.counts[peak]):,})"
        return f"{total:,} values, {common}" if total else "no values"


@dataclass(slots=True)
class Overview:
    """Counts and histograms over all samples.

    Args:
        keys: Keys of the samples that exist, per shard.
        failures: The first rows that failed.
        reasons: Failed samples per reason.
        classes: Samples per class named in their prompts.
        labels: Masks per label, where masks are labeled.
        statistics: Statistics of the labels of each shard's tar, where samples are labeled.
        num_labeled: Samples that show a class of their prompt.
        num_masks: Masks per image.
        coverage: Share of each image that lies in any mask.
        areas: Share of the image that each mask takes.
        seconds: Seconds per sample, generated and segmented.
    """

    keys: dict[str, list[str]] = field(default_factory=dict)
    failures: list[Row] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    statistics: list[Mapping[str, Any]] = field(default_factory=list)
    num_labeled: int = 0
    num_masks: Histogram = field(default_factory=lambda: Histogram(MASK_EDGES))
    coverage: Histogram = field(default_factory=lambda: Histogram(SHARE_EDGES))
    areas: Histogram = field(default_factory=lambda: Histogram(AREA_EDGES))
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS_EDGES))

    def add_rows(self, shard: str, rows: Iterable[Row]) -> None:
        """Count the planned samples of a shard."""
        made = []
        for row in rows:
            if row.status == "ok":
                made.append(row)
                self.classes.update(dict.fromkeys(row.classes, 1))
            else:
                self.reasons[row.reason] += 1
                if len(self.failures) < MAX_FAILURES:
                    self.failures.append(row)
        self.keys[shard] = [row.key for row in made]
        self.statistics.append(summarize_counts(row.labels for row in made if row.labels))
        self.num_masks.add(float(row.num_segments) for row in made)
        self.seconds.add(row.seconds_generate + row.seconds_segment for row in made)

    def add_sample(self, sample: ReadSample) -> None:
        """Count the masks of a sample, and whether it shows a class of its prompt."""
        info, pixels = sample.info, sample.info["height"] * sample.info["width"]
        self.areas.add(segment["area"] / pixels for segment in info["segments"])
        self.labels.update(s["label"] for s in info["segments"] if s["label"])
        self.coverage.add([sample.coverage])
        found = "not_found" in info and set(info["classes"]) - set(info["not_found"])
        self.num_labeled += bool(found)

    @property
    def num_samples(self) -> int:
        """Samples that exist."""
        return sum(len(keys) for keys in self.keys.values())


@dataclass(frozen=True, slots=True)
class ReadSample:
    """What is read of every sample.

    Args:
        info: Content of its json.
        coverage: Share of its pixels in any mask.
        semantic: Its semantic map; None without labels.
    """

    info: Mapping[str, Any]
    coverage: float
    semantic: UInt8[np.ndarray, "_height _width"] | None


def read_sample(key: str, members: Mapping[str, bytes], labels: Labels) -> ReadSample:
    """What the page needs of a sample, whether it is shown or only counted.

    Args:
        key: Its key.
        members: Its tar members; the image is not read.
        labels: The labels to show.

    Raises:
        ValueError: If a member is missing or broken; the message names the key.
    """
    try:
        info = parse_sample(members["json"])
        mask = decode_image(members["mask.png"], "L")
        if info["height"] * info["width"] != mask.size or info["num_segments"] != len(
            info["segments"]
        ):
            raise ValueError("a json that does not describe its mask.png")
        info, mask, semantic = labels.relabel(members, {**info, "key": key}, mask)
        return ReadSample(info, float((mask > 0).mean()), semantic)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Sample {key} must be readable. Got {error!r:.200}; see 'synthgen verify'."
        ) from None
