"""Merging: every sample is there under a new key, unchanged but for class ids, and only once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import tiny_config, tree_hashes, write_prompts
from typer.testing import CliRunner

from synthgen import jobs
from synthgen.cli import app
from synthgen.dataset.labels import class_names
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.metadata import Row, read_rows
from synthgen.dataset.verify import verify_dataset
from synthgen.diffusion import generate as drawing
from synthgen.lab.bench.scale import bench_scale
from synthgen.storage.publish import open_storage
from synthgen.types import Failure, Prompt, Sample

OTHER = (
    {"id": "cat", "prompt": "a cat on the road", "classes": ["cat", "road"]},
    {"id": "dog", "prompt": "a dog", "classes": ["dog"]},
)


@pytest.fixture(scope="module")
def other(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six more images of other prompts in shards of four; one of them failed."""
    folder = tmp_path_factory.mktemp("other")
    prompts = write_prompts(folder / "prompts.jsonl", OTHER)
    config = tiny_config(tiny_pipeline, prompts, "num=6", "dataset.shard_size=4", "seed=3")
    drawn = drawing.generate

    def fail_once(model: Any, prompts: list[Prompt], seeds: list[int], *rest: Any) -> Any:
        outcomes: list[Sample | Failure] = list(drawn(model, prompts, seeds, *rest))
        lost = jobs.sample_seed(3, "dog", 1)
        return [
            Failure(o.prompt, o.seed, "nan_latents", "not a number") if o.seed == lost else o
            for o in outcomes
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "generate", fail_once)
        jobs.generate(config, folder / "other")
    return folder / "other"


@pytest.fixture(scope="module")
def merged(tiny_dataset: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "both"
    jobs.merge([tiny_dataset, other], out)
    return out


def rows(out: Path) -> list[Row]:
    storage = open_storage(out)
    stems = sorted(path.stem for path in (out / "metadata").iterdir())
    return [row for stem in stems for row in read_rows(storage, stem)]


def test_every_sample_is_there_once_and_is_what_it_was(
    merged: Path, tiny_dataset: Path, other: Path
) -> None:
    assert verify_dataset(merged, deep=True) == []
    sources = {
        json.loads((d / "identity.json").read_text())["digest"]: d for d in (tiny_dataset, other)
    }
    old = {
        (digest, sample["key"]): sample
        for digest, out in sources.items()
        for sample in open_dataset(out)
    }
    origins = {row.key: row.origin for row in rows(merged) if row.origin}
    seen = set()
    for sample in open_dataset(merged):
        origin = origins[sample["key"]]
        before = old[origin.dataset, origin.key]
        seen.add((origin.dataset, origin.key))
        assert {**sample["json"], "key": origin.key} == before["json"]
        assert all(np.array_equal(sample[n], before[n]) for n in ("image", "mask", "masks"))
    assert seen == old.keys()
    assert len(seen) == 13


def test_shards_that_were_copied_say_nothing_about_making_them(merged: Path) -> None:
    with pytest.raises(ValueError, match=r"At least 2 shards .* Got 0 "):
        bench_scale(merged)


def test_failed_samples_and_shard_sizes_are_kept(merged: Path) -> None:
    totals = json.loads((merged / "manifest.json").read_text())
    assert [row["planned"] for row in totals["shards"]] == [3, 3, 2, 4, 2]
    assert totals["totals"]["reasons"] == {"nan_latents": 1}
    failed = [row for row in rows(merged) if row.status == "failed"]
    assert [(row.key, row.origin.key) for row in failed if row.origin] == [
        ("0000030003", "0000000003")
    ]
    status = jobs.status(merged)
    assert (status.finalized, status.complete_shards, status.planned) == (True, 5, 14)


def test_classes_are_those_of_all_and_the_card_loads(merged: Path) -> None:
    assert list(class_names(merged).values()) == [
        *("background", "car", "cat", "dog", "road", "tree", "ignore")
    ]
    from datasets import load_dataset

    stream = load_dataset(str(merged), split="train", streaming=True)
    assert sum(1 for _ in stream) == 13


def test_previews_come_along(merged: Path, tiny_dataset: Path) -> None:
    from synthgen.dataset.previews import read_previews

    old, new = read_previews(tiny_dataset), read_previews(merged)
    assert old
    assert all(np.array_equal(new[key][k], old[key][k]) for key in old for k in old[key])
    assert len(new) > len(old)


def test_lost_markers_come_back_and_lost_rows_from_the_sources(
    merged: Path, tiny_dataset: Path, other: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(merged, tmp_path / "out")
    shutil.rmtree(out / "stats")
    assert jobs.gc(out, orphan_seconds=0.0) == []
    assert verify_dataset(out, deep=True) == []
    shutil.rmtree(out / "stats")
    shutil.rmtree(out / "metadata")
    assert jobs.gc(out, orphan_seconds=0.0) == []
    assert not (out / "metadata").exists()  # where its samples came from is not in the tars
    (out / "previews" / "train-000000.tar").unlink()
    jobs.merge([tiny_dataset, other], out)
    assert tree_hashes(out) == tree_hashes(merged)
    assert verify_dataset(out, deep=True) == []


def test_labeled_datasets_get_common_class_ids(tiny_pipeline: Path, tmp_path: Path) -> None:
    labeling = ("labeling.method=clusters", "labeling.presence=0.05", "num=3")
    outs = []
    for name, prompts in (("a", None), ("b", OTHER)):
        path = tmp_path / f"{name}.jsonl"
        write_prompts(path, *([prompts] if prompts else []))
        outs.append(tmp_path / name)
        jobs.generate(tiny_config(tiny_pipeline, path, *labeling), outs[-1])
    jobs.merge(outs, tmp_path / "both")
    assert verify_dataset(tmp_path / "both", deep=True) == []

    def named(out: Path) -> list[list[str]]:
        names = class_names(out)
        maps = [sample["semantic"] for sample in open_dataset(out)]
        return [[names[int(i)] for i in ids.flat] for ids in maps]

    assert named(tmp_path / "both") == [*named(outs[0]), *named(outs[1])]
    assert "Background:" in (tmp_path / "both" / "README.md").read_text()


def test_what_cannot_be_merged_is_said_in_one_line(
    tiny_dataset: Path, other: Path, merged: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    prompts = tiny_dataset.parent / "prompts.jsonl"
    webp = tmp_path / "webp"
    jobs.generate(tiny_config(tiny_pipeline, prompts, "num=1", "dataset.image_format=webp"), webp)
    unfinished = shutil.copytree(other, tmp_path / "unfinished")
    (unfinished / "manifest.json").unlink()
    copy = shutil.copytree(tiny_dataset, tmp_path / "copy")
    for sources, said in (
        ([tiny_dataset], "at least two"),
        ([tiny_dataset, webp], "equal dataset.image_format. Got jpg"),
        ([tiny_dataset, unfinished], "finished to be merged"),
        ([tiny_dataset, copy], "different ones"),
        ([tiny_dataset, tmp_path / "nothing"], "must be a dataset"),
    ):
        with pytest.raises(ValueError, match=said) as refusal:
            jobs.merge(sources, tmp_path / "out")
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="another dataset"):
        jobs.merge([other, tiny_dataset], merged)
    assert not (tmp_path / "out").exists()


def test_a_broken_source_is_found(tiny_dataset: Path, other: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(other, tmp_path / "broken")
    tar = broken / "data" / "train-000001.tar"
    content = bytearray(tar.read_bytes())
    content[2000] ^= 1
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-000001\.tar must be the file that the manifest"):
        jobs.merge([tiny_dataset, broken], tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_nothing_is_drawn_for_a_merged_dataset(merged: Path) -> None:
    with pytest.raises(ValueError, match="was merged from out, other"):
        jobs.extend(merged, 1)
    with pytest.raises(ValueError, match="was merged from out, other"):
        jobs.replay(merged, "0000000000")


@pytest.mark.parametrize("out", ["both", "memory://both"])
def test_the_command_merges_and_says_so(
    out: str, tiny_dataset: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["merge", str(tiny_dataset), str(other), "--out", out])
    assert done.exit_code == 0, done.output
    assert "13 samples, 5 shards" in done.output
    assert verify_dataset(out, deep=True) == []
    assert [path.name for path in tmp_path.iterdir()] == ([] if "://" in out else ["both"])
