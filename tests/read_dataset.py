"""Read a finished dataset with the tools its users have; called by the tests and by CI.

python tests/read_dataset.py DIR
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


def read_webdataset(root: Path) -> int:
    """Plain webdataset with its own decoders; mask ids must survive."""
    import webdataset as wds

    shards = sorted(str(path) for path in (root / "data").glob("*.tar"))
    count = 0
    for sample in wds.WebDataset(shards, shardshuffle=False).decode("rgb8"):
        info = sample["json"]
        assert sample["jpg"].shape == (info["height"], info["width"], 3)
        mask = sample["mask.png"]
        ids = set(np.unique(mask[..., 0] if mask.ndim == 3 else mask).tolist())
        assert ids <= {0, *(segment["id"] for segment in info["segments"])}
        count += 1
    return count


def read_datasets(root: Path, streaming: bool) -> int:
    """Hugging Face datasets, by the card in the dataset's README."""
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset(str(root), split="train", streaming=streaming, cache_dir=cache)
        count = 0
        for row in rows:
            info = row["json"] if isinstance(row["json"], dict) else json.loads(row["json"])
            assert row["jpg"].size == (info["width"], info["height"])
            assert row["mask.png"].mode == "L"
            count += 1
        return count


def read_dataloader(root: Path) -> int:
    """A PyTorch DataLoader with two workers over ``synthgen.open_dataset``."""
    import torch

    import synthgen

    dataset = synthgen.open_dataset(str(root))
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    keys = [sample["key"] for sample in loader]
    assert len(keys) == len(set(keys)), "two workers must not read one sample twice"
    return len(keys)


def read_pycocotools(root: Path) -> int:
    """Every RLE decodes with pycocotools to a mask of the area and box that the json says."""
    import webdataset as wds
    from pycocotools import mask as coco

    shards = sorted(str(path) for path in (root / "data").glob("*.tar"))
    count = 0
    for sample in wds.WebDataset(shards, shardshuffle=False):
        for segment in json.loads(sample["json"])["segments"]:
            assert int(coco.area(segment["rle"])) == segment["area"]
            assert coco.toBbox(segment["rle"]).astype(int).tolist() == segment["bbox_xywh"]
        count += 1
    return count


READERS: dict[str, Callable[[Path], int]] = {
    "webdataset": read_webdataset,
    "datasets": lambda root: read_datasets(root, streaming=False),
    "datasets streaming": lambda root: read_datasets(root, streaming=True),
    "DataLoader, 2 workers": read_dataloader,
    "pycocotools": read_pycocotools,
}


def main(root: Path) -> None:
    """Read ``root`` with every reader; the counts must equal the manifest's."""
    samples = json.loads((root / "manifest.json").read_text())["totals"]["samples"]
    for name, read in READERS.items():
        count = read(root)
        assert count == samples, f"{name} must read {samples} samples. Got {count}."
        print(f"{name:>22}  {count} samples")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
