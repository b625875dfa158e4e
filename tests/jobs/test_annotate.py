"""Photographs become a dataset: each a sample or a failed row, and then it is as any other."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_photos import BAD, GOOD, PHOTO_OVERRIDES, picture, write_photos
from PIL import Image
from tiny_run import tree_hashes
from typer.testing import CliRunner

import synthgen
from synthgen import jobs
from synthgen.cli import app
from synthgen.config import Config, LabelConfig, load, load_audit
from synthgen.dataset.metadata import Row, read_rows
from synthgen.dataset.verify import verify_dataset
from synthgen.jobs.from_prompts import annotating
from synthgen.report.page import write_report
from synthgen.storage.images import read_photo
from synthgen.storage.publish import open_storage

HALVES = load_audit(
    ["auditor.name=halves:load_halves", "auditor.batch_size=1", "color_baseline=false"]
)


def settings(pipeline: Path, *overrides: str) -> Config:
    return load(overrides=[*PHOTO_OVERRIDES, f"model.card={pipeline}", *overrides])


def rows_of(out: Path) -> list[Row]:
    names = sorted(path.stem for path in (out / "metadata").iterdir())
    return [row for name in names for row in read_rows(open_storage(out), name)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def annotated(tiny_pipeline: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All photos, labeled."""
    out = tmp_path_factory.mktemp("annotated") / "out"
    config = settings(tiny_pipeline, "classes=[car,dog]")
    with pytest.warns(UserWarning, match=r"1 file\(s\) are not named .* first 'notes.txt'"):
        jobs.generate(annotating(config, [photos]), out)
    return out


def test_every_kind_of_photo_is_a_sample_of_its_size_or_a_failed_row(
    annotated: Path, photos: Path
) -> None:
    rows = {row.photo.name: row for row in rows_of(annotated)}
    assert sorted(rows) == sorted([*GOOD, *BAD])
    assert sorted(name for name, row in rows.items() if row.status == "ok") == sorted(GOOD)
    assert {name: rows[name].reason for name in BAD} == {
        **dict.fromkeys(BAD, "bad_photo"),
        "green.png": "black_image",
    }
    assert "pixels" in rows["bomb.png"].message
    assert "nothing that can be read" in rows["text.png"].message
    assert list(verify_dataset(annotated, deep=True)) == []
    samples = {
        s["json"]["provenance"]["photo"]["name"]: s for s in synthgen.open_dataset(annotated)
    }
    for name, sample in samples.items():
        pixels = read_photo(photos / name)
        assert sample["masks"].shape[1:] == sample["semantic"].shape == pixels.shape[:2]
        assert np.abs(sample["image"].astype(int) - pixels).mean() < 12  # JPEG
        assert sample["prompt"] == ""
        assert sample["json"]["classes"] == ["car", "dog"]
    assert samples["turned.jpg"]["image"].shape == (60, 40, 3)
    assert samples["slim.png"]["image"].shape == (3, 400, 3)
    twins = [rows["same/photo.png"], rows["same too/photo.png"]]
    assert twins[0].photo.sha256 == twins[1].photo.sha256
    assert twins[0].seed != twins[1].seed


def test_large_photos_are_seen_in_tiles_where_that_is_asked_for(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    Image.fromarray(picture(150, 90)).save(tmp_path / "large.png")
    found = {}
    for tiles in (1, 2):
        config = settings(tiny_pipeline, "classes=[car]", f"annotation.tiles={tiles}")
        out = tmp_path / f"out-{tiles}"
        jobs.generate(annotating(config, [tmp_path / "large.png"]), out)
        assert list(verify_dataset(out, deep=True)) == []
        (sample,) = synthgen.open_dataset(out)
        assert sample["masks"].shape[1:] == sample["semantic"].shape == (150, 90)
        content = json.loads((out / "identity.json").read_text())["content"]
        found[tiles] = content["settings"]["annotation"].get("tiles"), sample["masks"]
    assert [found[tiles][0] for tiles in (1, 2)] == [None, 2]
    assert found[1][1].shape != found[2][1].shape or (found[1][1] != found[2][1]).any()


def test_what_works_on_a_dataset_works_on_one_of_photos(annotated: Path, tmp_path: Path) -> None:
    out = shutil.copytree(annotated, tmp_path / "out")
    key = next(row.key for row in rows_of(out) if row.photo.name == "cmyk.jpg")
    assert all(jobs.replay(out, key).values())
    label = LabelConfig(method="argmax", presence=0.05)
    assert jobs.label(out, label, label_id="b")["statistics"]["images"] == len(GOOD)
    assert jobs.audit(out, HALVES, "a")["totals"]["samples"] == len(GOOD)
    assert write_report(out).is_file()
    assert jobs.status(out).samples == len(GOOD)
    jobs.export(out, tmp_path / "coco", "coco", split="0.5/0.5")
    images = [
        {Path(entry["file_name"]).stem for entry in json.loads(path.read_text())["images"]}
        for path in sorted((tmp_path / "coco/annotations").glob("instances_*.json"))
    ]
    assert sum(map(len, images)) == len(GOOD)
    assert all(images)  # photos without a caption are not all of one prompt
    (same,) = ({r.key for r in rows_of(out) if r.photo.name.endswith("/photo.png")},)
    assert any(same <= side for side in images)
    for side, name in zip(images, ("train", "val"), strict=True):
        dataset = synthgen.open_dataset(out, split=name, shares="0.5/0.5")
        assert {sample["key"] for sample in dataset} == side
        assert len(dataset) == len(side)
    for lost in ("metadata/train-000001.parquet", "stats/train-000001.json"):
        (out / lost).unlink()
    jobs.generate(load(out / "config.yaml"), out)
    assert list(verify_dataset(out, deep=True)) == []
    before, after = (
        [(row.key, row.status, row.photo) for row in rows_of(each)] for each in (annotated, out)
    )
    assert before == after
    from datasets import load_dataset

    rows = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["json"]["provenance"]["photo"]["name"] for row in rows} == {*GOOD}
    assert "given images" in (out / "README.md").read_text()


def test_workers_and_the_photos_place_change_no_byte(
    annotated: Path, photos: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "moved", symlinks=True)
    overrides = ("classes=[car,dog]", "generation.workers=0")
    config = annotating(settings(tiny_pipeline, *overrides), [tmp_path / "moved"])
    jobs.generate(config, tmp_path / "out")
    same, other = tree_hashes(annotated), tree_hashes(tmp_path / "out")
    assert {name for name in same if same[name] != other[name]} == {"config.yaml"}
    assert {name for name in same if name.startswith("data/")} == {
        f"data/train-{shard:06d}.tar" for shard in range(3)
    }


def test_large_photos_are_segmented_smaller_and_masks_brought_back(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthgen.jobs import look

    Image.fromarray(picture(41, 63)).save(tmp_path / "a.png")
    small = Image.fromarray(picture(41, 63)).reduce(3)  # 14 x 21
    overrides = ("classes=[car]", "dataset.image_format=png", "generation.workers=0")
    config = annotating(settings(tiny_pipeline, *overrides), [tmp_path / "a.png"])
    steps: list[tuple[int, ...]] = []
    monkeypatch.setattr(look, "MAX_PIXELS", 300)
    plain = look.reduced

    def note(sample: Any) -> Any:
        found = plain(sample)
        steps.append(found.image.shape)
        assert np.array_equal(found.image, np.asarray(small))
        return found

    monkeypatch.setattr("synthgen.jobs.batch.reduced", note)
    jobs.generate(config, tmp_path / "out")
    assert steps == [(14, 21, 3)]
    assert list(verify_dataset(tmp_path / "out", deep=True)) == []
    (sample,) = synthgen.open_dataset(tmp_path / "out")
    assert np.array_equal(sample["image"], picture(41, 63))
    for full in (*sample["masks"], sample["semantic"]):
        assert full.shape == (41, 63)
        cells = full[1::3, 1::3]
        assert np.array_equal(full, cells.repeat(3, 0).repeat(3, 1)[:41, :63])
    monkeypatch.setattr("synthgen.dataset.records.MAX_MASK_PIXELS", 2000)
    jobs.generate(config, tmp_path / "other")
    (row,) = rows_of(tmp_path / "other")
    assert row.reason == "error"
    assert "of 41 x 63; give a smaller image" in row.message


def test_the_command_says_what_failed(
    tiny_pipeline: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\nrgba.png,a red car\n")
    overrides = [*PHOTO_OVERRIDES, f"model.card={tiny_pipeline}", "annotation.noises=2"]
    words = ["annotate", str(photos / "rgba.png"), str(photos / "text.png")]
    words += ["--out", str(tmp_path / "out"), "--captions", str(tmp_path / "captions.csv")]
    words += ["--classes", "dog,car", "--engine", "inline"]
    done = CliRunner().invoke(app, words + [w for each in overrides for w in ("--set", each)])
    assert done.exit_code == 3, done.output + str(done.exception)
    assert "1 of 2 planned samples failed" in done.output
    (sample,) = synthgen.open_dataset(tmp_path / "out")
    assert (sample["prompt"], sample["json"]["classes"]) == ("a red car", ["car"])
    assert json.loads((tmp_path / "out/classes.json").read_text())["1"] == "dog"


def test_a_photo_that_changes_is_told_and_nothing_else_is_lost(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(4):
        Image.fromarray(picture(32, 32 + index, index)).save(folder / f"{index}.png")
    config = annotating(settings(tiny_pipeline, "dataset.shard_size=2"), [folder])
    job = jobs.GenerateJob(config, tmp_path / "out")
    job.begin()
    first, second = job.missing()
    job.run_shard(first)
    original = (folder / "3.png").read_bytes()
    Image.fromarray(picture(32, 35, 9)).save(folder / "3.png")
    with pytest.raises(RuntimeError, match=r"'3\.png' must stay what it was .* other bytes"):
        job.run_shard(second)
    (folder / "3.png").unlink()
    with pytest.raises(RuntimeError, match=r"'3\.png' must stay until .* No such file"):
        job.run_shard(second)
    (folder / "3.png").write_bytes(original)
    assert jobs.generate(config, tmp_path / "out")["totals"]["samples"] == 4
    Image.fromarray(picture(32, 32)).save(folder / "4.png")
    with pytest.raises(ValueError, match=r"Got a change of prompts\.num, prompts\.sha256"):
        jobs.generate(
            annotating(settings(tiny_pipeline, "dataset.shard_size=2"), [folder]), tmp_path / "out"
        )


def test_what_cannot_be_annotated_is_one_line(tiny_pipeline: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(32, 32)).save(tmp_path / "a.png")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").touch()
    (tmp_path / "a.tar").write_bytes(b"no tar")
    (tmp_path / "a.json").write_text('{"images": [{"id": 1, "file_name": "../a.png"}]}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "half.json").write_text('{"images": [], "annotations": null}')
    for source, message in (
        ("none", "must be a file, a folder, a pattern or a URL that exists"),
        ("notes", "There must be at least one image .* first 'a.txt'"),
        ("*.gif", "There must be at least one image to annotate"),
        ("a.tar", "must be a tar without compression"),
        ("a.json", "file_name must be a path below the file's folder"),
        ("list.json", "must be a COCO file with a list 'images'"),
        ("half.json", "'annotations' must be a list of objects"),
    ):
        with pytest.raises(ValueError, match=message):
            annotating(settings(tiny_pipeline), [tmp_path / source])
    few = ("annotation.timestep=null", "generation.num_inference_steps=19")
    with pytest.raises(ValueError, match=r"strength must leave at least one of 19 steps"):
        annotating(settings(tiny_pipeline, *few), [tmp_path])
    config = annotating(settings(tiny_pipeline, "num=2"), [tmp_path / "a.png"])
    with pytest.raises(ValueError, match="num must be at most the number of images, 1"):
        jobs.generate(config, tmp_path / "out")
    fake = load(overrides=["model.card=synthgen.lab.bench.fake_model:load_fake"])
    with pytest.raises(ValueError, match="must be of a diffusers model to annotate"):
        jobs.generate(annotating(fake, [tmp_path / "a.png"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def prompts_of(sources: list[Any], **more: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
    from synthgen.dataset.photos import open_photos

    found = open_photos([str(source) for source in sources], **more)
    assert all(found.read(prompt.photo) for prompt in found.prompts)
    return {prompt.photo.name: (prompt.text, prompt.class_names) for prompt in found.prompts}


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Three photos in a folder and another."""
    (tmp_path / "val2017/deep").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "deep/a.png")):
        Image.fromarray(picture(8, 8 + index)).save(tmp_path / "val2017" / name)
    return tmp_path / "val2017"


def test_photos_come_from_files_folders_patterns_and_stores(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    plain = ("", ())
    every = {"a.png": plain, "b.png": plain, "deep/a.png": plain}
    assert prompts_of([shelf]) == every
    assert prompts_of([shelf / "**/*.png"]) == every
    assert prompts_of([*shelf.glob("*.png"), *shelf.glob("*/*.png")]) == every
    assert prompts_of([shelf / "b.png"]) == {"b.png": plain}
    assert [*prompts_of([shelf / "deep", shelf / "*.png", shelf / "b.png"])] == [
        *("deep/a.png", "val2017/a.png", "val2017/b.png")
    ]
    monkeypatch.chdir(shelf)
    assert [*prompts_of(["deep", "a.png", "a.png"])] == ["deep/a.png", "a.png"]
    fs = fsspec.filesystem("memory")
    fs.put(str(shelf), "/shelf/", recursive=True)
    root = next(path for path in fs.find("/shelf") if path.endswith("/b.png")).rsplit("/", 1)[0]
    assert prompts_of([f"memory:/{root}"]) == every
    assert [*prompts_of([f"memory:/{root}/*.png"])] == ["a.png", "b.png"]


def test_photos_come_from_coco_files_with_classes_and_captions(shelf: Path) -> None:
    images = [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "none.png"}]
    things = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    annotations: list[dict[str, Any]] = [
        {"id": 1, "image_id": 7, "category_id": 2},
        {"id": 2, "image_id": 7, "category_id": 1},
    ]
    texts = [{"id": 1, "image_id": 7, "caption": "A dog\n and a cat."}]
    folder = shelf.parent / "annotations"
    folder.mkdir()
    instances, captions = folder / "instances_val2017.json", folder / "captions_val2017.json"
    content = {"images": images, "categories": things, "annotations": annotations}
    instances.write_text(json.dumps(content))
    captions.write_text(json.dumps({"images": images, "annotations": texts}))
    from synthgen.dataset.photos import open_photos

    found = open_photos([str(instances)], str(captions), ["dog"])
    first, second = found.prompts
    assert (first.text, first.class_names) == ("A dog and a cat.", ("dog",))
    assert (second.text, second.class_names, second.photo.sha256) == ("", (), "")
    with pytest.raises(ValueError, match="No such file"):
        found.read(second.photo)
    assert prompts_of([shelf / "a.png"], captions=str(captions), classes=["cat", "bird"]) == {
        "a.png": ("A dog and a cat.", ("cat",))
    }


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_captions_are_matched_by_name(shelf: Path, form: str) -> None:
    rows = [
        {"file_name": "b.png", "text": "a cat"},
        {"file_name": "deep/a.png", "text": "a dog"},
        {"file_name": "c.png", "text": "nobody"},
    ]
    path = shelf.parent / f"captions.{form}"
    if form == "csv":
        path.write_text(
            "file_name,text\n" + "".join(f"{r['file_name']},{r['text']}\n" for r in rows)
        )
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.warns() as said:
        found = prompts_of([shelf], captions=str(path), classes=["cat", "dog"])
    assert found == {
        "a.png": ("", ("cat", "dog")),
        "b.png": ("a cat", ("cat",)),
        "deep/a.png": ("a dog", ("dog",)),
    }
    messages = " ".join(str(warning.message) for warning in said)
    assert "1 caption(s) are of images that are not there, first 'c.png'" in messages
    assert "1 image(s) have no caption, first 'a.png'" in messages


def test_captions_without_a_name_are_refused(shelf: Path) -> None:
    (shelf.parent / "captions.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match="must name its image under 'image' or 'file_name'"):
        prompts_of([shelf], captions=str(shelf.parent / "captions.txt"))


def test_photos_come_from_shards(shelf: Path) -> None:
    (shelf / "a.txt").write_text("a cat\non a mat")
    (shelf / "a.json").write_text('{"classes": ["cat"]}')
    with tarfile.open(shelf.parent / "shard.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.png", "a.txt", "a.json", "b.png"):
            tar.add(shelf / name, name)
        tar.add(shelf / "b.png", "c.mask.png")
        tar.add(shelf / "deep", "deep")
    expected = {
        "shard.tar/a.png": ("a cat on a mat", ("cat",)),
        "shard.tar/b.png": ("", ()),
        "shard.tar/deep/a.png": ("", ()),
    }
    assert prompts_of([shelf.parent / "shard.tar"]) == expected
    whole = (shelf.parent / "shard.tar").read_bytes()
    (shelf.parent / "cut.tar").write_bytes(whole[: len(whole) // 2 // 512 * 512])
    assert len(prompts_of([shelf.parent / "cut.tar"])) < 3


def test_photos_come_from_data_sets_of_hugging_face(shelf: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = [str(shelf / "a.png"), str(shelf / "b.png")]
    rows = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    datasets.DatasetDict(train=rows).save_to_disk(str(shelf.parent / "hub"))
    assert prompts_of([shelf.parent / "hub"]) == {
        "train/00000000": ("", ()),
        "train/00000001": ("", ()),
    }
