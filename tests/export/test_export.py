"""The engine of exports: what is taken, split, resumed, refused; hashes and outlines."""

from __future__ import annotations

import json
import shutil
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from made_export import NAMES, add_audit, draw, make_dataset, make_members, tree
from made_labels import write_side_labels
from PIL import Image
from truth_world import write_shard
from typer.testing import CliRunner

from synthgen.cli import app
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.manifest import build_manifest, publish_manifest
from synthgen.dataset.split import assign_split, parse_split
from synthgen.export.checksums import verify_export
from synthgen.export.contours import outline, trace_rings
from synthgen.export.format import Exporter, ExportSample, File, Row
from synthgen.export.statistics import MAX_DISTANCE, count_near_duplicates, perceptual_hash
from synthgen.jobs import export
from synthgen.progress import Stopped
from synthgen.prompts.class_list import read_classes
from synthgen.registry import EXPORTERS
from synthgen.storage.publish import open_storage

FORMATS = tuple(EXPORTERS)


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten labeled samples in three shards; copy it to change it."""
    out = tmp_path_factory.mktemp("export-world") / "data"
    make_dataset(out)
    return out


@pytest.fixture
def world(small_world: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_world, tmp_path / "data")


def splits_of(out: Path) -> dict[str, list[str]]:
    """Keys per split of a COCO export."""
    found = {}
    for path in sorted((out / "annotations").iterdir()):
        images = json.loads(path.read_text())["images"]
        name = path.stem.removeprefix("instances_")
        found[name] = [Path(image["file_name"]).stem for image in images]
    return found


# --- what is taken ------------------------------------------------------------------------------


def test_splits_hold_every_sample_once_and_no_prompt_twice(world: Path, tmp_path: Path) -> None:
    done = export(world, tmp_path / "out", "coco", split="0.5/0.3/0.2")
    found = splits_of(tmp_path / "out")
    prompts = {sample["key"]: sample["prompt"] for sample in open_dataset(world)}
    assert sorted(key for keys in found.values() for key in keys) == sorted(prompts)
    seen = {split: {prompts[key] for key in keys} for split, keys in found.items()}
    assert sum(len(texts) for texts in seen.values()) == len(set(prompts.values()))
    assert {split: len(keys) for split, keys in found.items() if keys} == done["counts"]["splits"]
    assert len(done["counts"]["splits"]) > 1
    for split, keys in found.items():
        files = {path.stem for path in (tmp_path / "out" / split).glob("*.jpg")}
        assert files == set(keys)


def test_shares_are_met_on_average_and_a_split_does_not_depend_on_others() -> None:
    shares = parse_split("0.7/0.2/0.1")
    counts = Counter(assign_split(f"prompt {n}", shares) for n in range(4000))
    assert counts["train"] == pytest.approx(2800, abs=120)
    assert counts["test"] == pytest.approx(400, abs=80)
    more_train = parse_split("0.8/0.2")
    for number in range(300):  # who is in train stays there when train's share grows
        if assign_split(f"prompt {number}", shares) == "train":
            assert assign_split(f"prompt {number}", more_train) == "train"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        *(
            ({"split": text}, "split must be one to three positive shares")
            for text in ("", "0.9", "0.9/0.2", "a/b", "-0.1/1.1", "1/0", "0.4/0.3/0.2/0.1")
        ),
        ({"min_label_score": -0.1}, "min_label_score is not valid: .* greater than or equal to 0"),
        ({"min_label_score": float("nan")}, "min_label_score is not valid: .* finite number"),
        ({"min_area": -1.0}, r"min_area is not valid: .* Got -1"),
        ({"masks": "everything"}, r"masks is not valid: .*'labeled' or 'all'. Got 'everything'"),
        ({"segmentation": "rles"}, r"one of polygon, rle, rle-list\. Got 'rles'\. Did you mean"),
        ({"format": "voc", "segmentation": "rle"}, r"segmentation must be given with .* coco\."),
        ({"format": "voc", "masks": "all"}, r"masks=all must be with .* may overlap\. Got voc"),
        ({"format": "cocco"}, r"format must be one of ade, coco.*Did you mean 'coco'"),
        ({"format": "builtins:str"}, r"have the methods shard, finish.* Got 'builtins:str'"),
        ({"keep_only": False}, "keep_only=false has no effect without audited"),
        ({"audited": "other"}, r"Got 'other'; there: no audits\.$"),
        ({"labels": "other"}, r"Got 'other'; there: no"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    given: dict[str, Any], words: str, small_world: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        export(small_world, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_verdicts_are_honored_or_only_told(world: Path, tmp_path: Path) -> None:
    rejected = {"0000000001", "0000020000"}
    add_audit(world, "mine", rejected)
    kept = export(world, tmp_path / "kept", "coco", audited="mine")
    assert set(splits_of(tmp_path / "kept")["train"]) == {
        sample["key"] for sample in open_dataset(world, audited="mine")
    }
    assert kept["counts"]["left_out"] == {"low_agreement": 2}
    text = (tmp_path / "kept/README.md").read_text()
    assert "audit `mine` left out 2 images (low_agreement 2)" in text
    told = export(world, tmp_path / "told", "hf-parquet", audited="mine", keep_only=False)
    assert sum(told["counts"]["splits"].values()) == 10
    assert "nothing was left out" in (tmp_path / "told/README.md").read_text()
    (world / "audit/mine/train-000002.json").unlink()
    with pytest.raises(ValueError, match=r"about every shard. Got none of train-000002"):
        export(world, tmp_path / "half", "coco", audited="mine")
    assert not (tmp_path / "half").exists()


def test_weak_labels_become_pixels_to_ignore(world: Path, tmp_path: Path) -> None:
    export(world, tmp_path / "out", "fiftyone", min_label_score=0.5)
    done = export(world, tmp_path / "coco", "coco", min_label_score=0.5)
    weak = 0
    for sample in open_dataset(world):
        expected = sample["semantic"].copy()
        if int(sample["key"][-1]) % 2 == 0:  # shard sizes are even: so are these seeds
            weak += 1
            expected[expected == 2] = 255
        found = np.array(Image.open(tmp_path / f"out/train/labels/{sample['key']}.png"))
        np.testing.assert_array_equal(found, expected)
    assert weak == 5
    assert done["counts"]["instances"][NAMES[2]] == 5
    assert done["counts"]["instances"]["car"] == 10
    # of all masks, weak ones are without a class
    everything = export(world, tmp_path / "all", "coco", masks="all", min_label_score=0.5)
    assert set(everything["counts"]["instances"]) == {"car", NAMES[2], "mask"}
    truth = json.loads((tmp_path / "all/annotations/instances_train.json").read_text())
    assert all(item["score"] >= 0.5 for item in truth["annotations"])


def test_labels_beside_the_dataset_are_used(tmp_path: Path) -> None:
    make_dataset(tmp_path / "bare", num=2, shard_size=2, labeled=False)
    make_dataset(tmp_path / "labeled", num=2, shard_size=2)
    shutil.copy(tmp_path / "labeled/classes.json", tmp_path / "bare/classes.json")
    stored = make_members(0, 0, 2, labeled=True, image_format="jpg")
    labels = {
        key: {name: members[name] for name in ("json", "sem.png")}
        for key, members in stored.items()
    }
    write_side_labels(tmp_path / "bare", "mine", {"train-000000": labels})
    export(tmp_path / "labeled", tmp_path / "a", "ade")
    export(tmp_path / "bare", tmp_path / "b", "ade", labels="mine")
    export(tmp_path / "bare", tmp_path / "masks", "coco")
    cards = [(tmp_path / name / "README.md").read_text() for name in ("a", "b", "masks")]
    told = ("labels: in its tars.", "labels: `labels/mine`.", "labels: none.")
    assert all(words in card for words, card in zip(told, cards, strict=True))
    assert ["The class `mask` is that" in card for card in cards] == [False, False, True]
    same = {k: v for k, v in tree(tmp_path / "a", hidden=False).items() if "annotations" in k}
    assert len(same) == 2
    found = tree(tmp_path / "b", hidden=False)
    assert same == {name: found[name] for name in same}


def test_formats_of_classes_refuse_bare_masks(tmp_path: Path) -> None:
    make_dataset(tmp_path / "bare", num=1, labeled=False)
    for name in ("coco-panoptic", "voc", "fiftyone", "ade"):
        with pytest.raises(ValueError, match=rf"The format {name} must have class labels\. Got"):
            export(tmp_path / "bare", tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_ids_of_a_coco_file_are_kept(tmp_path: Path) -> None:
    """Its annotations make it large; the dataset's ids are the exports'."""
    rows = [{"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]
    tree = {"annotations": [{"segmentation": "0" * 2**20}], "categories": rows}
    (tmp_path / "instances.json").write_text(json.dumps(tree))
    assert read_classes(str(tmp_path / "instances.json")) == {"car": 3, "dog": 18}


# --- the card -----------------------------------------------------------------------------------


def test_the_card_counts_classes_splits_and_near_duplicates(world: Path, tmp_path: Path) -> None:
    done = export(world, tmp_path / "out", "coco", split="0.5/0.5")
    text = (tmp_path / "out/README.md").read_text()
    head, _, body = text.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(head)["task_categories"] == ["image-segmentation"]
    images = list(open_dataset(world))
    pixels = [int(sum((s["semantic"] == number).sum() for s in images)) for number in (1, 2)]
    share = pixels[0] / (10 * 48 * 64)
    assert f"| car | 10 | 10 | {share:.2%} |" in body
    assert r"| cat &amp; &lt;b&gt;mouse&lt;/b&gt; | 10 | 10 |" in body
    assert r"| never\|seen | 0 | 0 | 0.00% |" in body
    assert r"Never seen: never\|seen." in body
    assert "License: Apache-2.0" in body
    assert done["counts"]["pixels"] == {"car": pixels[0], NAMES[2]: pixels[1]}
    hashes = [perceptual_hash(sample["image"]) for sample in images]
    assert done["counts"]["near_duplicates"] == brute_force(hashes)
    assert f"{brute_force(hashes)} images have an earlier one" in body
    classes = json.loads((tmp_path / "out/classes.json").read_text())
    assert {int(number): name for number, name in classes.items()} == NAMES
    assert str(tmp_path) not in "".join(
        content.decode("latin1") for content in tree(tmp_path / "out").values()
    )


def brute_force(hashes: list[int]) -> int:
    return sum(
        any((hashes[i] ^ hashes[j]).bit_count() <= MAX_DISTANCE for j in range(i))
        for i in range(len(hashes))
    )


def test_near_duplicates_are_found_as_by_comparing_all_pairs() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**64, 40, dtype=np.uint64)
    hashes = []
    for _ in range(1500):
        bits = rng.integers(0, 64, rng.integers(0, 6), dtype=np.uint64)
        flips = np.bitwise_xor.reduce(np.uint64(1) << bits) if len(bits) else np.uint64(0)
        fresh = rng.integers(0, 2**64, dtype=np.uint64)
        hashes.append(int(rng.choice(seeds) ^ flips if rng.random() < 0.5 else fresh))
    expected = brute_force(hashes)
    assert 300 < expected < 1200
    assert count_near_duplicates(np.array(hashes, dtype=np.uint64)) == expected
    assert count_near_duplicates(np.zeros(0, dtype=np.uint64)) == 0
    assert count_near_duplicates(np.zeros(3000, dtype=np.uint64)) == 2999


def test_the_hash_survives_compression_and_size_but_not_other_content() -> None:
    image, _, _ = draw(0)
    small = np.asarray(Image.fromarray(image).resize((96, 72), Image.Resampling.BICUBIC))
    others = (small, np.ascontiguousarray(image[:, ::-1]), draw(1)[0])
    hashes = [perceptual_hash(pixels) for pixels in (image, *others)]
    near, mirrored, fresh = ((hashes[0] ^ other).bit_count() for other in hashes[1:])
    assert near <= 8 < 16 < min(mirrored, fresh)


# --- interrupted, finished, grown ----------------------------------------------------------------


class Watch:
    """Keeps the events of an export and stops it at the n-th sample."""

    def __init__(self, stop_at: int = 0) -> None:
        self.stop_at, self.samples, self.reused = stop_at, 0, []

    def __call__(self, event: str, **fields: object) -> None:
        self.samples += event == "samples"
        if event == "shard":
            self.reused.append(fields["reused"])
        elif self.samples == self.stop_at:
            raise Stopped


@pytest.mark.parametrize("name", FORMATS)
def test_a_stopped_export_goes_on_to_the_same_bytes(
    name: str, small_world: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    export(small_world, whole, name, split="0.5/0.5")
    for stop_at, done in ((2, 0), (7, 1)):
        out, watch = tmp_path / f"out{stop_at}", Watch()
        with pytest.raises(Stopped):
            export(small_world, out, name, split="0.5/0.5", progress=Watch(stop_at))
        assert not (out / "export.json").exists()
        assert not list((out / ".synthgen/staging").iterdir())
        first = export(small_world, out, name, split="0.5/0.5", progress=watch)
        assert watch.reused == [True] * done + [False] * (3 - done)
        assert tree(out) == tree(whole)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = Watch()
    assert export(small_world, out, name, split="0.5/0.5", progress=again) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    assert (again.reused, again.samples) == ([True] * 3, 0)


def test_a_dataset_that_grew_is_exported_further(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", num=8)
    export(tmp_path / "data", tmp_path / "out", "coco", split="0.5/0.5")
    make_dataset(tmp_path / "data", num=16)
    watch = Watch()
    export(tmp_path / "data", tmp_path / "out", "coco", split="0.5/0.5", progress=watch)
    assert watch.reused == [True, True, False, False]
    export(tmp_path / "data", tmp_path / "fresh", "coco", split="0.5/0.5")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def problems_of(out: Path) -> list[str]:
    return [f"{p.kind} {p.where}" for p in verify_export(open_storage(out))]


def test_a_damaged_export_is_named_and_what_was_lost_is_made_again(
    world: Path, tmp_path: Path
) -> None:
    """Deleted and emptied images, lost rows, changed annotations, and files of others."""
    out = tmp_path / "out"
    export(world, out, "coco")
    whole = tree(out)
    assert problems_of(out) == []
    names = [name for name in whole if not name.startswith(".")]
    listed = {line[66:] for line in whole["SHA256SUMS"].decode().splitlines()}
    assert listed == {*names} - {"SHA256SUMS", "export.json"}
    images = sorted(name for name in names if name.startswith("train/"))
    (out / images[0]).unlink()
    (out / images[5]).write_bytes(b"")
    (out / "train/9999999999.jpg").write_bytes(b"of others")
    (out / "train/labels.cache").write_bytes(b"a trainer's own")
    assert sorted(problems_of(out)) == [
        "foreign file train/9999999999.jpg",
        f"missing file {images[0]}",
        f"wrong hash {images[5]}",
    ]
    (out / "train/9999999999.jpg").unlink()
    (out / "train/labels.cache").unlink()
    watch = Watch()
    export(world, out, "coco", progress=watch)
    assert watch.reused == [False, False, True]
    assert tree(out) == whole
    for name in ("annotations/instances_train.json", "SHA256SUMS", "README.md", "export.json"):
        (out / name).unlink()
        assert problems_of(out) == [f"missing file {name}"]
        export(world, out, "coco")
        assert tree(out) == whole
        flipped = bytearray(whole[name])
        flipped[len(flipped) // 2] ^= 1
        (out / name).write_bytes(flipped)
        assert name in " ".join(problems_of(out)), "flipped"
        (out / name).write_bytes(whole[name])


def test_lost_rows_are_made_again_and_changed_ones_never_exported(
    world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(world, out, "coco")
    whole = tree(out)
    rows = out / ".synthgen/rows/train-000001/annotations-train.jsonl"
    rows.unlink()
    export(world, out, "coco")
    assert tree(out) == whole
    rows.write_bytes(b"X" * len(whole[rows.relative_to(out).as_posix()]))
    (out / "export.json").unlink()
    with pytest.raises(RuntimeError, match=r"annotations-train.jsonl must hold what was written"):
        export(world, out, "coco")
    assert not (out / "export.json").exists()
    export(world, out, "coco")
    assert tree(out) == whole


def test_of_exports_of_other_settings_at_once_one_is_whole(
    small_world: Path, tmp_path: Path
) -> None:
    """Started together: the target holds what one of them alone would make."""
    names = ("coco", "voc", "yolo-seg")
    for name in names:
        export(small_world, tmp_path / name, name)

    def race(out: Path, name: str, go: threading.Barrier) -> str:
        go.wait(60)
        try:
            export(small_world, out, name)
        except (RuntimeError, ValueError) as error:
            return str(error)
        return name

    for attempt in range(3):
        out, go = tmp_path / f"out{attempt}", threading.Barrier(len(names))
        with ThreadPoolExecutor(len(names)) as pool:
            said = list(pool.map(race, [out] * len(names), names, [go] * len(names)))
        (winner,) = (name for name in names if name in said)
        for text in set(said) - {winner}:
            assert "one writer at a time. Got " in text or "begun with format" in text
        assert tree(out) == tree(tmp_path / winner)


def test_sums_of_others_lead_nowhere_else(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(world, out, "coco")
    (tmp_path / "secret").write_text("x")
    (out / "train/link.jpg").symlink_to(tmp_path / "secret")
    lines = "".join(
        f"{'0' * 64}  {name}\n" for name in ("../secret", "/etc/passwd", "train/link.jpg")
    )
    (out / "SHA256SUMS").write_text(lines + "nonsense \x1b[31m\n")
    found = list(verify_export(open_storage(out)))
    kinds = [p.kind for p in found if p.where == "SHA256SUMS"]
    assert kinds == ["unreadable file"] * 3 + ["wrong hash"]
    assert any(p.kind == "missing file" and p.where == "train/link.jpg" for p in found)
    assert "\x1b" not in "".join(map(str, found))


def test_foreign_and_other_exports_are_refused(world: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"new or empty folder\. Got .*foreign with photo\.jpg"):
        export(world, foreign, "coco")
    assert tree(foreign) == {"photo.jpg": b"mine"}
    with pytest.raises(ValueError, match=r"new or empty folder\. Got .*data with "):
        export(world, world, "coco")
    out = tmp_path / "out"
    export(world, out, "coco")
    before = tree(out)
    with pytest.raises(ValueError, match=r"begun with format 'coco', not 'yolo-seg'\. Choose"):
        export(world, out, "yolo-seg")
    with pytest.raises(ValueError, match=r"begun with split '1', not '0\.9/0\.1'"):
        export(world, out, "coco", split="0.9/0.1")
    make_dataset(tmp_path / "other", num=10, image_format="png")
    with pytest.raises(ValueError, match=r"Got another data/train-000000\.tar"):
        export(tmp_path / "other", out, "coco")
    assert tree(out) == before


def test_a_third_party_gives_its_own_format(small_world: Path, tmp_path: Path) -> None:
    export(small_world, tmp_path / "out", "test_export:NameExporter")
    lines = (tmp_path / "out/names.txt").read_text().splitlines()
    assert lines == [sample["key"] for sample in open_dataset(small_world)]


class NameExporter(Exporter):
    """Somebody's format: the keys, one a line."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def shard(self, stem: str, samples: Iterable[ExportSample]) -> Iterator[File | Row]:
        for sample in samples:
            yield Row("names", {"key": sample.key})

    def finish(self, tables: Any) -> Iterator[tuple[str, Iterable[bytes]]]:
        yield "names.txt", (f"{row['key']}\n".encode() for row in tables("names"))

    def usage(self) -> str:
        return "Read it."


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    peaks = []
    for num in (8, 24):
        make_dataset(tmp_path / f"data{num}", num=num, image_format="png")
        export(tmp_path / f"data{num}", tmp_path / f"warm{num}", "coco")
        tracemalloc.start()
        export(tmp_path / f"data{num}", tmp_path / f"out{num}", "coco")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], peaks


def test_broken_samples_are_named_and_a_key_never_becomes_a_path(
    world: Path, tmp_path: Path
) -> None:
    table = {str(n): name for n, name in NAMES.items() if n != 2}
    (world / "classes.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"0000000000: sem.png must hold ids of .* Got \[2\]"):
        export(world, tmp_path / "ids", "coco")
    tar = world / "data/train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-000000\.tar must be the tar of .* bytes"):
        export(world, tmp_path / "tar", "coco")
    with pytest.raises(ValueError, match=r"must have a manifest\.json"):
        export(tmp_path / "nothing", tmp_path / "none", "coco")
    members = make_members(0, 0, 1, labeled=False, image_format="png")["0000000000"]
    for number, key in enumerate(("../../evil", "a/b", "12345")):
        storage = open_storage(tmp_path / f"keys{number}/data")
        marker = write_shard(storage, 0, {key: members}, 1)
        publish_manifest(storage, build_manifest([marker], "0" * 64, [], {}))
        with pytest.raises(ValueError, match=r"key must be 10 to 20 digits|must be readable"):
            export(tmp_path / f"keys{number}/data", tmp_path / f"keys{number}/out", "coco")
        names = {path.name for path in (tmp_path / f"keys{number}").iterdir()}
        assert names <= {"data", "out"}


# --- outlines -----------------------------------------------------------------------------------


def fill(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """Even-odd rule at every pixel center, edge by edge."""
    rows, columns = np.indices((height, width)) + 0.5
    inside = np.zeros((height, width), dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        if y0 == y1:
            continue
        spans = (y0 > rows) != (y1 > rows)
        inside ^= spans & (columns < x0 + (rows - y0) / (y1 - y0) * (x1 - x0))
    return inside


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_filling_an_outline_gives_the_mask_back(mask: np.ndarray) -> None:
    if mask.any():
        polygon = outline(mask)
        np.testing.assert_array_equal(fill(polygon, *mask.shape), mask)
        assert polygon.min() >= 0
        assert (polygon.max(0) <= np.array(mask.shape[::-1])).all()


def test_outlines_are_short_on_straight_edges_and_have_a_ring_per_hole() -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:50, 5:60] = True
    assert len(outline(mask)) == 4
    mask[20:30, 20:30] = mask[60:, 60:] = True
    mask[20:30, 20:30] = False
    assert len(trace_rings(mask)) == 3


# --- the command line ---------------------------------------------------------------------------


def test_the_command_exports_and_says_where_to_read_on(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["export", str(world), str(out), "--format", "yolo-seg", "--split", "0.5/0.5"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "10 images (train " in done.output
    assert str(out / "README.md") in done.output
    again = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(again.stdout)["settings"]["format"] == "yolo-seg"
    pushed = CliRunner().invoke(app, ["push", str(out), f"file://{tmp_path}/there", "--json"])
    sent = json.loads(pushed.stdout)
    verified = CliRunner().invoke(app, ["verify", f"file://{tmp_path}/there"])
    assert verified.output.endswith("there is complete and correct.\n")
    (tmp_path / "there/data.yaml").unlink()
    damaged = CliRunner().invoke(app, ["verify", str(tmp_path / "there"), "--json"])
    assert damaged.exit_code == 1
    assert json.loads(damaged.stdout)["kinds"] == {"missing file": 1}
    shutil.copy(out / "data.yaml", tmp_path / "there/data.yaml")
    assert sent["sent"] == len(list((tmp_path / "there").rglob("*.*"))) - 1  # .synthgen, its plan
    assert sent["skipped"] == 0
    told = CliRunner().invoke(app, ["push", str(out), f"file://{tmp_path}/there"])
    assert told.output == f"0 files sent (0.0 MB), {sent['sent']} there\n"
