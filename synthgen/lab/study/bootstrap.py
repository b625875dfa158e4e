"""Which differences are real: paired bootstrap over images.

Two rows saw the same images, so their difference is taken per image and averaged; images are then
drawn with replacement and the mean taken again. The interval holds the middle 95 % of those means
(percentile bootstrap, Efron & Tibshirani 1993, section 13.3). It says what another draw of images
might give, not what another model would.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

DRAWS = 10_000
LEVEL = 0.95

FEW = 20
"""With fewer images the percentiles lie too close to the mean: intervals are hints then."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference and where the middle 95 % of its redraws lie; NaN where unknown."""

    mean: float
    low: float
    high: float

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if np.isnan(self.mean):
            return "–"
        mean, low, high = (round(value, 3) + 0.0 for value in (self.mean, self.low, self.high))
        return f"{mean:+.3f}" if np.isnan(low) else f"{mean:+.3f} [{low:.3f}, {high:.3f}]"


def paired_intervals(
    ours: Float[np.ndarray, "row image"], reference: Float[np.ndarray, " image"]
) -> tuple[Interval, ...]:
    """Mean difference of each row to the reference over the images, with its interval.

    All rows are redrawn with the same images from one seed. Images where anything is NaN are
    left out; with fewer than two there is no interval.

    >>> str(paired_intervals(np.array([[0.5, 0.75, 1.0]]), np.array([0.25, 0.5, 0.75]))[0])
    '+0.250 [0.250, 0.250]'
    """
    differences = ours - reference
    differences = differences[:, np.isfinite(differences).all(0)]
    num = differences.shape[1]
    if num == 0:
        return (Interval(np.nan, np.nan, np.nan),) * len(differences)
    means = differences.mean(1)
    if num == 1:
        return tuple(Interval(float(mean), np.nan, np.nan) for mean in means)
    redrawn = redraws(num) @ differences.T / num
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(redrawn, (tail, 1 - tail), axis=0)
    rows = zip(means.tolist(), low.tolist(), high.tolist(), strict=True)
    return tuple(Interval(*row) for row in rows)


@functools.lru_cache(maxsize=4)
def redraws(num: int) -> Float[np.ndarray, "draw image"]:
    """How often each of ``num`` images is in each redraw; every row sums to ``num``."""
    rng = np.random.default_rng(0)
    counts: Float[np.ndarray, "draw image"] = rng.multinomial(
        num, np.full(num, 1 / num), size=DRAWS
    ).astype(np.float64)
    counts.flags.writeable = False  # every comparison shares them
    return counts
