"""What an export counts while its samples go by: small, and added up over shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from synthgen.export.duplicates import perceptual_hash
from synthgen.export.format import ExportSample
from synthgen.progress import Progress, report

_COUNTERS = ("splits", "left_out", "images", "instances", "pixels")


@dataclass(slots=True)
class Tally:
    """Counts of some samples."""

    splits: Counter[str] = field(default_factory=Counter)  # samples
    left_out: Counter[str] = field(default_factory=Counter)  # rejected samples by reason
    images: Counter[str] = field(default_factory=Counter)  # with an object of a class
    instances: Counter[str] = field(default_factory=Counter)  # objects of a class
    pixels: Counter[str] = field(default_factory=Counter)  # of a class; masks overlap
    all_pixels: int = 0  # of all images
    hashes: list[tuple[str, int]] = field(default_factory=list)  # perceptual, with their keys

    def watch(
        self,
        samples: Iterable[ExportSample],
        classes: Mapping[int, str],
        progress: Progress = report,
    ) -> Iterator[ExportSample]:
        """The samples, counted as they pass."""
        for sample in samples:
            yield sample
            self.hashes.append((sample.key, perceptual_hash(sample.pixels)))
            self.splits[sample.split] += 1
            self.all_pixels += sample.size[0] * sample.size[1]
            self.images.update({classes[item.class_id] for item in sample.instances})
            for item in sample.instances:
                self.instances[classes[item.class_id]] += 1
                self.pixels[classes[item.class_id]] += int(item.mask.sum())
            progress("samples", count=1)

    def counts(self) -> dict[str, Any]:
        """The counts as a shard's marker holds them."""
        counted = {name: dict(sorted(getattr(self, name).items())) for name in _COUNTERS}
        return {**counted, "all_pixels": self.all_pixels}

    def add(self, counts: Mapping[str, Any]) -> None:
        """Add the counts of a shard's marker.

        >>> tally = Tally(splits=Counter(val=1))
        >>> tally.add({"splits": {"val": 2}})
        >>> tally.splits["val"]
        3
        """
        for name in _COUNTERS:
            getattr(self, name).update(counts.get(name, {}))
        self.all_pixels += counts.get("all_pixels", 0)
