"""Eight samples of the embedded model are what they were when their hashes were written down.

Other processors round differently, so the hashes bind only where they were made; run this file
as a program to write them anew after a change that is meant to change bytes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tarfile
from pathlib import Path

import pytest
import torch

from synthgen import jobs
from synthgen.config import load

HASHES = Path(__file__).with_name("same_bytes.json")
PROMPTS = (
    ("a photo of a red car", ["car"]),
    ("a blue house and a yellow tree", ["house", "tree"]),
    ("a green cup on a table", ["cup"]),
    ("a purple face in front of a brick wall", ["face"]),
)
SETTINGS = (
    *("num=8", "seed=3", "dataset.shard_size=4", "generation.num_inference_steps=6"),
    *("labeling.method=clusters", "model.device=cpu"),
)


def machine() -> str:
    """What the last bits of an image depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[:1]} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"


def eight_hashes(folder: Path) -> dict[str, str]:
    """sha256 of image, masks, hierarchy and labels, by key and kind."""
    rows = [
        {"id": str(index), "prompt": text, "classes": classes}
        for index, (text, classes) in enumerate(PROMPTS)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    jobs.generate(load(overrides=[*SETTINGS, f"prompts={folder}/prompts.jsonl"]), folder / "out")
    found = {}
    for shard in sorted(folder.glob("out/data/*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                content = tar.extractfile(member).read()
                if member.name.endswith(".json"):
                    segments = json.loads(content)["segments"]
                    content = json.dumps(segments, sort_keys=True).encode()
                found[member.name] = hashlib.sha256(content).hexdigest()[:16]
    return found


def test_eight_samples_are_what_they_were(tmp_path: Path) -> None:
    """Images, masks, hierarchies and labels, byte for byte."""
    recorded = json.loads(HASHES.read_text())
    if recorded["machine"] != machine():
        pytest.skip(f"the hashes were made on {recorded['machine']}, this is {machine()}")
    assert eight_hashes(tmp_path) == recorded["hashes"]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        content = {"machine": machine(), "hashes": eight_hashes(Path(scratch))}
    HASHES.write_text(json.dumps(content, indent=1) + "\n")
