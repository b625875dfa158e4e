"""One flipped bit in any file of a dataset is named by ``verify --deep``, and raises nothing."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from fault_table import Faults
from tiny_run import tiny_config, write_prompts

from synthgen import jobs
from synthgen.config import LabelConfig, load_audit
from synthgen.dataset.verify import verify_dataset
from synthgen.jobs.audit import audit
from synthgen.jobs.label import label

KINDS = {
    *("README.md", "classes.json", "config.yaml", "identity.json", "manifest.json", "manifests"),
    *("data", "stats", "metadata", "previews"),
    *("audit.json", "labels.json", "summary.json", "audit", "labels"),
}


@pytest.fixture(scope="module")
def whole(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labeled, with labels beside it, audited, and extended once."""
    folder = tmp_path_factory.mktemp("damaged")
    prompts = write_prompts(folder / "prompts.jsonl")
    settings = ("num=2", "dataset.shard_size=2", "dataset.preview_every=2")
    config = tiny_config(tiny_pipeline, prompts, *settings, "labeling.method=clusters")
    jobs.generate(config, folder / "out")
    jobs.extend(folder / "out", 1)
    label(folder / "out", LabelConfig(method="argmax"), label_id="side")
    audit(folder / "out", load_audit(["auditor.name=halves:load_halves"]), "halves")
    assert verify_dataset(folder / "out", deep=True) == []
    return folder / "out"


def files(out: Path) -> list[str]:
    names = (p.relative_to(out).as_posix() for p in sorted(out.rglob("*")) if p.is_file())
    return [name for name in names if not name.startswith(".synthgen/")]


@pytest.mark.parametrize("flips", [1, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_a_flipped_bit_is_named(flips: int, whole: Path, tmp_path: Path, faults: Faults) -> None:
    out, rng = shutil.copytree(whole, tmp_path / "out"), random.Random(flips)
    names = files(out)
    assert {n.split("/")[0] for n in names} | {n.split("/")[-1] for n in names} >= KINDS
    for name in names:
        content = (out / name).read_bytes()
        for _ in range(flips):
            damaged, bit = bytearray(content), rng.randrange(8 * len(content))
            damaged[bit // 8] ^= 1 << bit % 8
            (out / name).write_bytes(damaged)
            faults.inject("a flipped bit in a file of a dataset")
            found = {problem.where.split()[0] for problem in verify_dataset(out, deep=True)}
            assert name in found, (name, bit, found)
            faults.survive()
        (out / name).write_bytes(content)
    assert verify_dataset(out, deep=True) == []
