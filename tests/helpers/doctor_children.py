"""Runs in a process of its own: batch sizes under a limit on memory that the system enforces."""

from __future__ import annotations

import json
import resource
from pathlib import Path

from synthgen.config import load
from synthgen.diffusion.backbones import load_backbone
from synthgen.jobs.plan import plan
from synthgen.lab.doctor.batch_sizes import largest_batch
from synthgen.lab.doctor.examine import draw_captured, draw_plain

SPARE_BYTES = 600_000_000


def main() -> None:
    config = load(overrides=["num=1", "generation.num_inference_steps=1"])
    model, (samples,) = load_backbone(config.model), [spec.samples for spec in plan(config)]
    plain, _ = draw_plain(model, config, [samples])  # threads and kernels are there now
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _, probed = largest_batch(model, config, samples, 256)
    _, again = draw_captured(model, config, [samples], plain)
    print(
        json.dumps({"text": probed.text, "rows": probed.table[1:], "again": again.status == "ok"})
    )


if __name__ == "__main__":
    main()
