"""A small finished dataset with hostile prompts, a failure and an audit, to be reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthgen.bench.made_dataset import make_sample, write_dataset
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.metadata import Row

SCRIPT = "<script>window.hacked = 1</script><!-- </script> <img src=x onerror='window.hacked=1'>"
RTL = "قطة على سجادة \u202eright to left"
EMOJI = "a 🐈‍⬛ on a \U0001f9f6, \"quoted\" & 'so on'"
PROMPTS = (SCRIPT, RTL, EMOJI, "without a preview", "an ordinary cat")
SIZE = (48, 64)
FAILURE = Row(
    *("0000010099", "failed", "black_image", f"{SCRIPT} is black", "bad", SCRIPT, (), 0, 1, 0)
)


def write_made(root: Path) -> Path:
    """Five samples in two shards; the fourth has no preview."""
    samples = [make_sample(i, prompt, SIZE, preview=i != 3) for i, prompt in enumerate(PROMPTS)]
    write_dataset(root, samples, len(samples), shard_size=3, failures=[FAILURE])
    return root


def write_audit(root: Path, audit_id: str = "made-audit") -> dict[str, dict[str, Any]]:
    """An audit whose auditor sees every third of our masks; returns its rows by key."""
    rows = {}
    for index, sample in enumerate(open_dataset(root)):
        segments = sample["json"]["segments"]
        rows[sample["key"]] = {
            "key": sample["key"],
            "keep": index != 1,
            "reason": "low_agreement" if index == 1 else "",
            "top_1": 0.9,
            "top_5": 0.2 * index + 0.05,
            "chance_top_5": 0.1,
            "boundary_f": float("nan") if index == 2 else 0.5,
            "annotations": [{"segmentation": segment["rle"]} for segment in segments[::3]],
        }
    for shard in ("train-000000", "train-000001"):
        path = root / "audit" / audit_id / f"{shard}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        own = [row for key, row in rows.items() if key.startswith(shard[-6:])]
        pq.write_table(pa.Table.from_pylist(own), path)
    summary = {"note": SCRIPT}
    (root / "audit" / audit_id / "summary.json").write_text(json.dumps(summary))
    return rows
