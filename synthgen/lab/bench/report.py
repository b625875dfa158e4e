"""The report of many samples: seconds, peak memory, size of the page.

The bars of issue 3: 1,000 samples within 1 GB, 60 of them on a page of at most 15 MB. Measured
in a process of its own, so that its peak is the report's; the peak of the imports alone stands
beside it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from synthgen.lab.bench.made_dataset import make_sample, write_dataset
from synthgen.lab.memory import peak_bytes
from synthgen.lab.processes import in_processes

SIZE = (512, 512)  # SD 2.1-base
COPIES_OF = 4
SHOWN = 60


def bench_report(num: int = 1000, quick: bool = False) -> dict[str, Any]:
    """Time and peak memory of the report of a made dataset of 512 x 512 images.

    Args:
        num: Samples; copies of four different ones, each with 43 clusters and a preview.
        quick: 20 samples of 64 x 64.

    Returns:
        ``samples``, ``shown``, ``seconds``, ``peak_mb`` (resident, of the whole process),
        ``imports_mb`` (the part that is there before the first sample is read), ``page_mb``.
    """
    num, size = (20, (64, 64)) if quick else (num, SIZE)
    samples = [make_sample(seed, f"made sample {seed}", size) for seed in range(COPIES_OF)]
    with tempfile.TemporaryDirectory(prefix="synthgen-") as folder:
        write_dataset(Path(folder) / "made", samples, num)
        (measured,) = in_processes(_measure, [(folder,)], workers=1)
    return {"samples": num, "shown": min(num, SHOWN), **measured}


def _measure(folder: str) -> dict[str, float]:
    from synthgen.report.page import write_report

    imports, started = peak_bytes(), time.perf_counter()
    page = Path(folder) / "index.html"
    write_report(Path(folder) / "made", num=SHOWN, out=page)
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "peak_mb": round(peak_bytes() / 1e6, 1),
        "imports_mb": round(imports / 1e6, 1),
        "page_mb": round(page.stat().st_size / 1e6, 2),
    }
