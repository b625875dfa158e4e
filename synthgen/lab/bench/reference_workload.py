"""A fixed piece of work, timed again and again: how fast is this machine at this moment?

The cores of a shared machine are fast in one minute and slow in the next. What took as many
yardsticks before and after has stayed as fast, whatever the clock says.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from synthgen.config import Config
from synthgen.lab.bench.fake_model import draw
from synthgen.segmentation.segment import segment_sample
from synthgen.types import Prompt, Sample

SAMPLES = 4


class Yardstick:
    """Segments the same planted samples, on one thread.

    Args:
        config: How; the work is that of every run of this configuration.
    """

    def __init__(self, config: Config) -> None:
        prompts = [Prompt("yardstick", "a yardstick")] * SAMPLES
        made = draw(prompts, range(SAMPLES), config.generation)
        self._samples = [sample for sample in made if isinstance(sample, Sample)]
        self._config = config.segmentation

    def seconds(self) -> float:
        """Seconds of CPU that the work takes now."""
        with _one_thread():
            started = time.process_time()
            for sample in self._samples:
                segment_sample(sample, self._config)
            return time.process_time() - started


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
