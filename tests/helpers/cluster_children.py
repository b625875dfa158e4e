"""What workers of a cluster run in tests: a segmenter that notes its process, and may misbehave.

``ORDERS`` names a folder. In it, ``loads/PID`` counts the models that process PID loaded; a file
``kill`` or ``poison`` with a sample's seed makes whoever segments that sample die or fail; so
does ``slay``, but whoever tries again dies, too, and is counted in ``slain``.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from synthgen.config import SegmentationConfig
from synthgen.diffusion import backbones
from synthgen.segmentation.segment import segment_per_head
from synthgen.types import Sample, Segmentation

ORDERS = "SYNTHGEN_TEST_ORDERS"
SEGMENTER = "segmentation.method=cluster_children:segment_as_ordered"


def segment_as_ordered(sample: Sample, config: SegmentationConfig) -> Segmentation:
    """Per-head segmentation, and what the orders say."""
    if folder := os.environ.get(ORDERS):
        _obey(Path(folder), sample.seed)
    return segment_per_head(sample, config)


def _obey(folder: Path, seed: int) -> None:
    (folder / "loads").mkdir(exist_ok=True)
    loads = backbones._load.cache_info().misses
    (folder / "loads" / str(os.getpid())).write_text(str(loads))
    if _concerns(folder / "poison", seed):
        raise RuntimeError(f"poison in sample {seed}")
    if _concerns(folder / "slay", seed):
        with (folder / "slain").open("a") as counted:
            counted.write(f"{os.getpid()}\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if _concerns(folder / "kill", seed):
        (folder / "kill").unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def _concerns(order: Path, seed: int) -> bool:
    return order.exists() and order.read_text() == str(seed)
