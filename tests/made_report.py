"""A small finished dataset with hostile prompts, a failure and an audit, to be reported."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from made_labels import make_labels

from synthgen.bench.made_dataset import make_sample, write_audit, write_dataset
from synthgen.dataset.metadata import Row
from synthgen.types import Verdict

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


CLASS_IDS = {"cat": 1, SCRIPT: 2, "never": 9}


def write_labeled(root: Path) -> Path:
    """Four labeled samples in two shards; the last has no preview; "never" is never found."""
    samples = [make_sample(i, PROMPTS[i], SIZE, preview=i != 3) for i in range(4)]
    labeled = []
    for index, sample in enumerate(samples):
        names = ("cat", SCRIPT, "never")
        prompt = replace(sample.record.prompt, class_names=names)
        record = replace(sample.record, prompt=prompt, class_ids=CLASS_IDS)
        record = replace(record, labels=make_labels(record, names, seed=index))
        labeled.append(replace(sample, record=record))
    write_dataset(root, labeled, len(labeled), shard_size=3)
    table = {0: "background", 255: "ignore"} | {i: name for name, i in CLASS_IDS.items()}
    (root / "classes.json").write_text(json.dumps(table))
    return root


def verdict(index: int) -> Verdict:
    """Of the n-th sample: Top-5 rises, the second is rejected, the third has no boundary F."""
    metrics = {
        "top_1": 0.9,
        "top_5": 0.2 * index + 0.05,
        "chance_top_5": 0.1,
        "boundary_f": math.nan if index == 2 else 0.5,
    }
    return Verdict(index != 1, "low_agreement" if index == 1 else "", metrics)


def write_made_audit(root: Path, audit_id: str = "made-audit", hour: int = 12) -> None:
    """An audit whose auditor sees every third of our masks; its summary is hostile."""
    finished = f"2026-11-21T{hour:02d}:00:00+00:00"
    write_audit(root, audit_id, verdict, finished)
    summary = {"id": audit_id, "note": SCRIPT}
    (root / "audit" / audit_id / "summary.json").write_text(json.dumps(summary))
