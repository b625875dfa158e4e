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
from jaxtyping import Float, Int

from synthgen.dataset.label_statistics import merge_statistics, summarize_counts
from synthgen.dataset.metadata import Row
from synthgen.report.labels import ReadSample

MAX_FAILURES = 200  # rows of the table; all are counted
EDGES: Mapping[str, Float[np.ndarray, " edge"]] = {
    "num_masks": np.arange(0.0, 66.0, 3.0),
    "coverage": np.linspace(0.0, 1.0, 21),
    "areas": np.logspace(-4.0, 0.0, 21),
    "seconds": np.logspace(-2.0, 3.0, 21),
}
"""Limits of the bins: masks per image, share of each image that lies in any mask, share of the
image that each mask takes, seconds per sample (generated and segmented)."""


def count_bins(
    values: Iterable[float], edges: Float[np.ndarray, " edge"]
) -> Int[np.ndarray, " bin"]:
    """Values in each bin; NaN is left out, and what is outside goes to the outermost bins.

    >>> count_bins([0.5, 7.0, float("nan")], np.array([0.0, 1.0, 2.0])).tolist()
    [1, 1]
    """
    array = np.asarray(list(values), dtype=np.float64)
    kept = np.clip(array[np.isfinite(array)], edges[0], edges[-1])
    return np.histogram(kept, edges)[0].astype(np.int64)


@dataclass(slots=True)
class Overview:
    """Counts and histograms over all samples."""

    keys: dict[str, list[str]] = field(default_factory=dict)  # of samples that exist, per shard
    failures: list[Row] = field(default_factory=list)  # the first ones
    reasons: Counter[str] = field(default_factory=Counter)  # why samples failed
    classes: Counter[str] = field(default_factory=Counter)  # samples whose prompt names a class
    labels: Counter[str] = field(default_factory=Counter)  # masks of a label
    # of the labels of each shard's tar, where samples are labeled
    statistics: list[Mapping[str, Any]] = field(default_factory=list)
    num_labeled: int = 0  # samples that show a class of their prompt
    bins: dict[str, Int[np.ndarray, " bin"]] = field(  # counts by the names of EDGES
        default_factory=lambda: {name: count_bins((), edges) for name, edges in EDGES.items()}
    )

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
        self._count("num_masks", (float(row.num_segments) for row in made))
        self._count("seconds", (row.seconds_generate + row.seconds_segment for row in made))

    def add_sample(self, sample: ReadSample) -> None:
        """Count the masks of a sample, and whether it shows a class of its prompt."""
        info, pixels = sample.info, sample.info["height"] * sample.info["width"]
        self._count("areas", (segment["area"] / pixels for segment in info["segments"]))
        self._count("coverage", [sample.coverage])
        self.labels.update(s["label"] for s in info["segments"] if s["label"])
        found = "not_found" in info and set(info["classes"]) - set(info["not_found"])
        self.num_labeled += bool(found)

    def _count(self, name: str, values: Iterable[float]) -> None:
        self.bins[name] += count_bins(values, EDGES[name])

    @property
    def num_samples(self) -> int:
        """Samples that exist."""
        return sum(len(keys) for keys in self.keys.values())


def class_table(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Statistics of shards as the page shows them; None where nothing is labeled.

    Returns:
        ``images`` with labels; ``rows``: name, images, share of all pixels, mean score and "not
        found" of every class, the largest first; ``background`` and ``undecided``: shares of all
        pixels.

    Raises:
        ValueError: If they are none of ours.
    """
    try:
        merged = merge_statistics(parts)
        counted = sum(row["pixels"] for row in merged["classes"].values())
        total = max(1, counted + merged["background"] + merged["undecided"])
        rows = [
            (name, row["images"], row["pixels"] / total, row["score"], row["not_found"])
            for name, row in merged["classes"].items()
        ]
        shares = {name: merged[name] / total for name in ("background", "undecided")}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Statistics of labels must be ours. Got {error!r:.100}.") from None
    if not merged["images"]:
        return None
    rows.sort(key=lambda row: (-row[2], row[0]))
    return {"images": merged["images"], "rows": rows, **shares}
