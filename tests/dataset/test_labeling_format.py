"""Labels as they stand in tars and side folders, and what readers make of them."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_dataset import make_sample, write_dataset
from made_labels import CLASS_IDS, make_labeled, write_side_labels
from PIL import Image
from tiny_run import vouch_again

from synthgen.dataset.labels import class_names, label_ids, labels_tar_name
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.records import (
    decode_sample,
    describe_labels,
    encode_image,
    encode_record,
    semantic_ids,
)
from synthgen.dataset.verify import verify_dataset
from synthgen.dataset.verify_samples import verify_sample
from synthgen.labeling.instances import find_instances
from synthgen.types import LabelMap


def flood(semantic: np.ndarray) -> list[tuple[int, frozenset[tuple[int, int]]]]:
    """Components by hand: a stack of neighbors, pixel by pixel."""
    height, width = semantic.shape
    seen, found = set(), []
    for start in np.ndindex(height, width):
        label = int(semantic[start])
        if label in (0, 255) or start in seen:
            continue
        stack, pixels = [start], set()
        while stack:
            y, x = stack.pop()
            if (y, x) in pixels or semantic[y, x] != label:
                continue
            pixels.add((y, x))
            around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            stack += [(a, b) for a, b in around if 0 <= a < height and 0 <= b < width]
        seen |= pixels
        found.append((label, frozenset(pixels)))
    return found


def test_instances_are_the_connected_components_and_their_mean_scores() -> None:
    rng = np.random.default_rng(3)
    semantic = rng.choice([0, 1, 2, 255], (12, 17), p=[0.4, 0.25, 0.25, 0.1]).astype(np.uint8)
    scores = rng.random((12, 17))
    none = np.zeros(0)
    labels = LabelMap(("a", "b"), semantic, scores, none.astype(np.uint8), none, ())
    found = find_instances(labels, min_area=3 / semantic.size)
    expected = {item for item in flood(semantic) if len(item[1]) >= 3}
    assert {
        (item.label, frozenset(map(tuple, np.argwhere(item.mask).tolist()))) for item in found
    } == expected
    assert any(len(pixels) < 3 for _, pixels in flood(semantic))
    for item in found:
        assert item.score == pytest.approx(
            np.mean([scores[y, x] for y, x in np.argwhere(item.mask)])
        )
    areas = [int(item.mask.sum()) for item in found]
    assert areas == sorted(areas, reverse=True)


def test_a_labeled_record_comes_back_with_its_labels() -> None:
    record = make_labeled("0000000003", seed=3)
    labels = record.labels
    assert labels is not None
    members = encode_record(record, "png")
    assert members == encode_record(record, "png")
    sample = decode_sample(record.key, members)
    names = {0: 0, 255: 255, 1: CLASS_IDS["cat"], 2: CLASS_IDS["dog"]}
    expected = np.vectorize(names.__getitem__)(labels.semantic)
    np.testing.assert_array_equal(sample["semantic"], expected)
    words = {0: "background", 255: "", 1: "cat", 2: "dog"}
    for segment, label, score in zip(
        sample["json"]["segments"], labels.mask_labels, labels.mask_scores, strict=True
    ):
        assert segment["label"] == words[int(label)]
        assert segment["label_score"] == pytest.approx(score, abs=1e-4)
    assert sample["json"]["not_found"] == ["dog"]
    assert (
        sum(item["area"] for item in sample["json"]["instances"]) <= (labels.semantic == 1).sum()
    )
    assert list(verify_sample("x", record.key, members, deep=True)) == []
    with Image.open(io.BytesIO(members["sem.png"])) as image:
        assert (image.mode, image.format) == ("L", "PNG")


def test_verify_names_labels_that_contradict_each_other_and_ids_that_no_class_has() -> None:
    record = make_labeled("0000000003", seed=3)
    members = encode_record(record, "png")
    for table, kinds in (({1: "car", 2: "cat"}, []), ({1: "car", 3: "dog"}, ["bad id"])):
        found = verify_sample("x", record.key, members, deep=False, names=table)
        assert [problem.kind for problem in found] == kinds
    info = json.loads(members["json"])
    info["not_found"] = ["cat"]
    info["segments"][0]["label"] = "zebra"
    broken = {**members, "json": json.dumps(info).encode()}
    messages = [problem.message for problem in verify_sample("x", record.key, broken, deep=False)]
    assert messages == [
        "'zebra' is no class of the prompt",
        "'cat' has an instance and is not found",
    ]


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    """A made dataset of 5 samples in 2 shards with side labels ``hand``."""
    samples = [make_sample(i, "a cat", (24, 32), preview=False) for i in range(3)]
    write_dataset(tmp_path / "out", samples, 5, shard_size=3)
    table = {"0": "background", "1": "cat", "2": "<b>dog</b>", "255": "ignore"}
    (tmp_path / "out" / "classes.json").write_text(json.dumps(table))
    vouch_again(tmp_path / "out")
    write_side_labels(tmp_path / "out", "hand", _side(tmp_path / "out"))
    return tmp_path / "out"


def _side(out: Path) -> dict[str, dict[str, dict[str, bytes]]]:
    members: dict[str, dict[str, dict[str, bytes]]] = {}
    for sample in open_dataset(out, masks=False):
        members.setdefault(f"train-{sample['key'][:6]}", {})[sample["key"]] = _labels_of(sample)
    return members


def _labels_of(sample: dict) -> dict[str, bytes]:
    height, width = sample["mask"].shape
    num = len(sample["json"]["segments"])
    semantic = np.full((height, width), 1, np.uint8)
    semantic[:8] = 0
    scores, ones = np.full((height, width), 0.75), np.ones(num)
    labels = LabelMap(("cat",), semantic, scores, ones.astype(np.uint8), ones, ())
    info = {"key": sample["key"], **describe_labels(labels)}
    ids = semantic_ids(labels, {"cat": 1})
    return {"json": json.dumps(info).encode(), "sem.png": encode_image(ids, "png")}


def test_side_labels_are_read_beside_the_dataset(labeled: Path) -> None:
    plain = list(open_dataset(labeled))
    found = list(open_dataset(labeled, labels="hand"))
    assert label_ids(labeled) == ["hand"]
    assert class_names(labeled)[1] == "cat"
    assert [sample["key"] for sample in found] == [sample["key"] for sample in plain]
    for before, after in zip(plain, found, strict=True):
        assert "semantic" not in before
        np.testing.assert_array_equal(after["semantic"][:8], 0)
        np.testing.assert_array_equal(after["semantic"][8:], 1)
        np.testing.assert_array_equal(before["masks"], after["masks"])
        assert {item["label"] for item in after["json"]["segments"]} == {"cat"}
        assert [item["label"] for item in after["json"]["instances"]] == ["cat"]
        unlabeled = [
            {**item, "label": "", "label_score": 0.0} for item in after["json"]["segments"]
        ]
        assert unlabeled == before["json"]["segments"]


def test_labels_are_shuffled_with_their_samples_and_survive_pickling(labeled: Path) -> None:
    pipeline = pickle.loads(pickle.dumps(open_dataset(labeled, labels="hand", shuffle=4)))
    found = list(pipeline)
    assert sorted(sample["key"] for sample in found) == [
        sample["key"] for sample in open_dataset(labeled)
    ]
    assert all("semantic" in sample for sample in found)


def test_unknown_ids_unknown_labels_and_broken_tars_are_refused(labeled: Path) -> None:
    with pytest.raises(ValueError, match=r"labels must be the id of labels of .*there: hand"):
        open_dataset(labeled, labels="foot")
    with pytest.raises(ValueError, match="joined by single"):
        open_dataset(labeled, labels="../hand")
    table = {"0": "background", "255": "ignore"}
    (labeled / "classes.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"sem.png must hold ids of classes.json. Got \[1\]"):
        list(open_dataset(labeled, labels="hand"))
    shutil.copy(
        labeled / labels_tar_name("hand", "train-000001"),
        labeled / labels_tar_name("hand", "train-000000"),
    )
    with pytest.raises(ValueError, match=r"about every shard|tar of its marker"):
        list(open_dataset(labeled, labels="hand"))
    (labeled / labels_tar_name("hand", "train-000000")).unlink()
    with pytest.raises(ValueError, match="Got none of train-000000 as it stands"):
        open_dataset(labeled, labels="hand")


def test_verify_finds_changed_bytes_and_unknown_ids_of_labels(labeled: Path) -> None:
    assert verify_dataset(labeled, deep=True) == []
    names = json.loads((labeled / "classes.json").read_text())
    (labeled / "classes.json").write_text(json.dumps({"0": "background", "255": "ignore"}))
    vouch_again(labeled)
    found = verify_dataset(labeled, deep=True)
    assert {problem.kind for problem in found} == {"bad id"}
    assert found[0].where.startswith(labels_tar_name("hand", "train-000000"))
    (labeled / "classes.json").write_text(json.dumps(names))
    vouch_again(labeled)
    path = labeled / labels_tar_name("hand", "train-000000")
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    (problem,) = verify_dataset(labeled)
    assert problem.kind == "wrong hash"
    assert "remove labels/hand/train-000000.json and run 'synthgen label --id hand'" in str(
        problem
    )


def test_labels_of_another_sample_are_refused(labeled: Path) -> None:
    members = _side(labeled)
    keys = list(members["train-000000"])
    swapped = {keys[0]: members["train-000000"][keys[1]]}
    write_side_labels(labeled, "swapped", {**members, "train-000000": swapped})
    with pytest.raises(ValueError, match=f"Labels of sample {keys[0]} must be readable"):
        next(iter(open_dataset(labeled, labels="swapped")))
