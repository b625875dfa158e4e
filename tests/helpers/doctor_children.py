"""Runs in a process of its own: batch sizes under a limit on memory that the system enforces."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from synthgen.config import load
from synthgen.lab.doctor.machine import prepare
from synthgen.lab.doctor.probe import probe_batches
from synthgen.lab.doctor.steps import draw_captured, draw_plain
from synthgen.lab.doctor.steps import load as load_step

SPARE_BYTES = 600_000_000


def main(out: Path) -> None:
    config = load(overrides=["num=1", "generation.num_inference_steps=1"])
    examination = prepare("scenes", None, config, None, out, max_batch=256)
    load_step(examination)
    draw_plain(examination)  # threads and kernels are there before the limit
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    probed = probe_batches(examination)
    again = draw_captured(examination)
    print(
        json.dumps({"text": probed.text, "rows": probed.table[1:], "again": again.status == "ok"})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
