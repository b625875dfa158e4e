"""The examples, run on a small dataset; and what they rely on in ``open_dataset``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_export import add_audit, make_dataset
from torch.utils.data import DataLoader

import synthgen
from synthgen.jobs import export

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("examples") / "data"
    make_dataset(out, num=8, shard_size=2)
    add_audit(out, "mine", {"0000000000"})
    return out


@pytest.fixture(autouse=True)
def beside_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def test_plain_pytorch_learns(world: Path) -> None:
    losses = importlib.import_module("plain_pytorch").train(str(world), steps=24)
    assert len(losses) == 24
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:2])


def test_lightning_style_learns_from_what_an_audit_keeps(world: Path) -> None:
    example = importlib.import_module("lightning_style")
    torch.manual_seed(0)
    data = example.DatasetModule(str(world), audited="mine")
    assert sum(len(images) for images, _ in data.train_dataloader()) == 7
    losses = example.fit(example.SegmentationModule(data.num_classes), data, max_steps=24)
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:2])


def test_the_hugging_face_trainer_runs_and_saves(world: Path, tmp_path: Path) -> None:
    example = importlib.import_module("hf_trainer")
    losses = example.train(str(world), tmp_path / "out", steps=12)
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < np.mean(losses[:2])
    again = type(example.make_model({0: "background", 1: "car"})).from_pretrained(tmp_path / "out")
    assert again.config.id2label[1] == "car"


# --- what they rely on --------------------------------------------------------------------------


def key_of(sample: dict[str, Any]) -> str:
    return str(sample["key"])


def keys_of(world: Path, workers: int = 0, **given: Any) -> list[str]:
    dataset = synthgen.open_dataset(world, masks=False, transform=key_of, **given)
    fresh = "spawn" if workers else None  # a fork would inherit what other tests left behind
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=fresh
    )
    return list(loader)


def test_a_transform_sees_every_sample_and_gives_what_it_returns(world: Path) -> None:
    plain = [sample["key"] for sample in synthgen.open_dataset(world)]
    assert keys_of(world) == plain
    sizes = list(
        synthgen.open_dataset(world, audited="mine", transform=lambda s: (s["verdict"].keep, None))
    )
    assert sizes == [(True, None)] * 7


def test_a_stream_has_a_length(world: Path, tiny_dataset: Path) -> None:
    assert len(synthgen.open_dataset(world)) == 8
    assert len(synthgen.open_dataset(world, audited="mine")) == 7
    assert len(synthgen.open_dataset(world, audited="mine", keep_only=False)) == 8
    assert len(synthgen.open_dataset(world / "data/train-000001.tar")) == 2
    loader = DataLoader(synthgen.open_dataset(world), batch_size=None)
    assert len(loader) == len(list(loader)) == 8
    for split in ("train", "val"):
        stream = synthgen.open_dataset(tiny_dataset, split=split, shares="0.5/0.5")
        assert len(stream) == sum(1 for _ in stream)
    with pytest.raises(TypeError, match=r"cannot be counted: metadata.* must exist"):
        len(synthgen.open_dataset(world, split="train"))


def test_a_stream_splits_as_exports_do(world: Path, tmp_path: Path) -> None:
    export(world, tmp_path / "out", "ade", split="0.5/0.3/0.2")
    folders = {"train": "training", "val": "validation", "test": "test"}
    sides = {}
    for name, folder in folders.items():
        given = {"split": name, "shares": "0.5/0.3/0.2"}
        stored = (tmp_path / "out/images" / folder).glob("*")
        sides[name] = keys_of(world, **given)
        assert sides[name] == sorted(path.stem for path in stored)
        kept = [key for key in sides[name] if key != "0000000000"]
        assert keys_of(world, audited="mine", **given) == kept
        inside = [key for key in sides[name] if key.startswith("000001")]
        assert keys_of(world / "data/train-000001.tar", **given) == inside
        assert len(synthgen.open_dataset(world / "data/train-000001.tar", **given)) == len(inside)
    assert sorted(key for keys in sides.values() for key in keys) == keys_of(world)
    assert sum(map(bool, sides.values())) > 1
    both = [keys_of(world, split=name) for name in ("train", "val")]
    assert sorted(both[0] + both[1]) == keys_of(world), "nine in ten, if nothing is said"
    with pytest.raises(ValueError, match=r"split must be one of train, val with .* Got 'test'"):
        synthgen.open_dataset(world, split="test")
    with pytest.raises(ValueError, match=r"split must be one to three positive shares"):
        synthgen.open_dataset(world, split="train", shares="0.9/0.2")


def test_nodes_and_workers_share_the_shards(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = keys_of(world)
    shuffled = keys_of(world, shuffle=8, seed=3)
    assert sorted(shuffled) == everything != shuffled
    assert sorted(keys_of(world, workers=2)) == everything
    monkeypatch.setenv("WORLD_SIZE", "2")
    for given in ({}, {"shuffle": 8, "seed": 3}):
        parts = []
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            parts.append(keys_of(world, workers=2 if given else 0, **given))
        assert len(parts[0]) == len(parts[1]) == 4
        assert sorted(parts[0] + parts[1]) == everything


def test_every_epoch_has_another_order_and_equal_seeds_equal_ones(world: Path) -> None:
    dataset = synthgen.open_dataset(world, masks=False, shuffle=8, seed=1, transform=key_of)
    fresh = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"}
    loader = DataLoader(dataset, batch_size=None, **fresh)
    epochs = [list(loader) for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1
    again = synthgen.open_dataset(world, masks=False, shuffle=8, seed=1, transform=key_of)
    assert list(again) == epochs[0]
