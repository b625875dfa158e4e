"""A run whose clock jumps whenever it reports; started as a program of its own, under libfaketime.

Arguments: the configuration, the output, the file that tells libfaketime the time. Prints how
often the clock jumped, and what the clean-up found to remove while a shard was in flight.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from synthgen import jobs
from synthgen.config import load

JUMPS = ("+3d", "-400d", "+0", "+36000d", "-2h", "+10s")


def main(source: str, out: str, clock: str) -> None:
    """Make the dataset while the clock jumps."""
    torch.set_num_threads(1)
    jumps, seen, removed = 0, set[int](), list[str]()

    def jump(event: str, **_fields: Any) -> None:
        nonlocal jumps
        Path(clock).write_text(f"{JUMPS[jumps % len(JUMPS)]}\n")
        jumps += 1
        seen.add(time.gmtime().tm_year)
        if event == "samples":
            removed.extend(jobs.gc(out))

    jobs.generate(load(Path(source)), out, progress=jump)
    print(json.dumps({"jumps": jumps, "years": sorted(seen), "removed": removed}))


if __name__ == "__main__":
    main(*sys.argv[1:])
