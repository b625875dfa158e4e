"""What must hold after every fault."""

from __future__ import annotations

import tarfile
from pathlib import Path

from tiny_run import tree_hashes

from synthgen import jobs
from synthgen.config import Config
from synthgen.dataset.verify import verify_dataset
from synthgen.storage.publish import STAGING


def check_whole(config: Config, out: Path, expected: dict[str, str]) -> None:
    """A finished dataset: verified, of the expected bytes, no key lost or twice, no orphans."""
    assert verify_dataset(out, deep=True) == []
    assert tree_hashes(out) == expected
    assert keys(out) == [sample.key for spec in jobs.plan(config) for sample in spec.samples]
    removed = jobs.gc(out, orphan_seconds=0.0)
    assert all(name.startswith(STAGING) for name in removed)  # of killed processes
    assert tree_hashes(out) == expected
    assert staged(out) == []


def keys(out: Path) -> list[str]:
    """Keys of all samples, in the order in which tars hold them."""
    found: list[str] = []
    for path in sorted((out / "data").glob("*.tar")):
        with tarfile.open(path) as tar:
            stems = [name.split(".")[0] for name in tar.getnames()]
        found += dict.fromkeys(stems)
    return found


def staged(out: Path) -> list[str]:
    """What stands in the staging folder."""
    folder = out / STAGING
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
