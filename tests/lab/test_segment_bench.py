"""Annotated images in their publishers' layouts, and methods scored on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as rle
from scipy.io import savemat
from typer.testing import CliRunner

from synthgen.cli import app
from synthgen.lab.segment.class_names import STUFF_27_OF
from synthgen.lab.segment.evaluate import SegmentSettings, evaluate_segment
from synthgen.lab.segment.layouts import open_layout
from synthgen.lab.world.render import render
from synthgen.segmentation.metrics import covering

SIZE = (96, 128)
CLASSES = np.zeros(SIZE, dtype=np.uint8)
CLASSES[20:60, 10:50] = 7
CLASSES[30:70, 70:110] = 15
CLASSES[:4] = 255
OBJECTS = np.zeros(SIZE, dtype=np.uint8)
OBJECTS[20:60, 10:50] = 1
OBJECTS[30:70, 70:110] = 2
PICTURE = np.repeat((CLASSES * 9)[..., None], 3, axis=2)


def save(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette([number * 5 % 256 for number in range(768)])
    image.save(path)


def voc(root: Path) -> None:
    for name in ("2007_000032", "2007_000033"):
        save(root / "JPEGImages" / f"{name}.jpg", PICTURE)
        save(root / "SegmentationClass" / f"{name}.png", CLASSES, palette=True)
        save(root / "SegmentationObject" / f"{name}.png", OBJECTS, palette=True)
    listed = root / "ImageSets" / "Segmentation" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("2007_000032\n2007_000033\n")


def ade(root: Path) -> None:
    save(root / "images" / "validation" / "ADE_val_00000001.jpg", PICTURE)
    save(root / "annotations" / "validation" / "ADE_val_00000001.png", CLASSES)


def cityscapes(root: Path) -> None:
    stem = "aachen_000000_000019"
    save(root / "leftImg8bit" / "val" / "aachen" / f"{stem}_leftImg8bit.png", PICTURE)
    folder = root / "gtFine" / "val" / "aachen"
    labels = np.where(CLASSES == 15, 26, CLASSES).astype(
        np.int32
    )  # a car; 7 is road; 0 is unlabeled
    save(folder / f"{stem}_gtFine_labelIds.png", labels.astype(np.uint8))
    objects = np.where(labels == 26, 26001, labels)
    save(folder / f"{stem}_gtFine_instanceIds.png", objects.astype(np.uint16))


def coco(root: Path) -> None:
    save(root / "val2017" / "000000000139.jpg", PICTURE)
    inside = {7: OBJECTS == 1, 15: OBJECTS == 2, 1: CLASSES == 255}
    coded = {cls: rle.encode(np.asfortranarray(m, dtype=np.uint8)) for cls, m in inside.items()}
    rows = [
        {
            "id": number,
            "image_id": 139,
            "category_id": cls,
            "iscrowd": int(cls == 1),
            "area": int(inside[cls].sum()),
            "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
        }
        for number, (cls, code) in enumerate(coded.items(), start=1)
    ]
    image = {"id": 139, "file_name": "000000000139.jpg", "height": SIZE[0], "width": SIZE[1]}
    names = [{"id": cls, "name": f"thing {cls}"} for cls in inside]
    content = {"images": [image], "annotations": rows, "categories": names}
    path = root / "annotations" / "instances_val2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


def context(root: Path) -> None:
    """Of 459 classes: 23 is bird, 427 pottedplant (numbers of labels.txt), 5 nothing of the 59."""
    save(root / "JPEGImages" / "2008_000002.jpg", PICTURE)
    listed = root / "ImageSets" / "Main" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("2008_000002\n")
    (root / "labels.txt").write_text("23: bird\n5: airplane door\n427: pottedplant\n")
    labels = np.select([CLASSES == 7, CLASSES == 15], [23, 427], 5).astype(np.uint16)
    (root / "trainval").mkdir()
    savemat(root / "trainval" / "2008_000002.mat", {"LabelMap": labels})


def context_pictures(root: Path) -> None:
    context(root)
    (root / "trainval" / "2008_000002.mat").unlink()
    numbers = np.select([CLASSES == 7, CLASSES == 15], [3, 16], 0).astype(np.uint8)
    save(root / "59_context_labels" / "2008_000002.png", numbers, palette=True)


def cocostuff(root: Path) -> None:
    save(root / "images" / "val2017" / "000000000139.jpg", PICTURE)
    save(root / "images" / "val2017" / "000000000285.jpg", PICTURE)
    fine = np.select([CLASSES == 7, CLASSES == 15, CLASSES == 0], [1, 105, 181], 255)
    save(root / "annotations" / "val2017" / "000000000285.png", fine.astype(np.uint8))
    listed = root / "curated" / "val2017" / "Coco164kFull_Stuff_Coarse_7.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("000000000285\n")


def bsds(root: Path) -> None:
    save(root / "data" / "images" / "val" / "101085.jpg", PICTURE)
    people = np.empty((1, 2), dtype=object)
    for index, pieces in enumerate((OBJECTS + 1, np.where(OBJECTS, 2, 1))):
        struct = np.zeros((1, 1), dtype=[("Segmentation", "O"), ("Boundaries", "O")])
        struct["Segmentation"][0, 0] = pieces.astype(np.uint16)
        struct["Boundaries"][0, 0] = np.zeros(SIZE, dtype=np.uint8)
        people[0, index] = struct
    path = root / "data" / "groundTruth" / "val" / "101085.mat"
    path.parent.mkdir(parents=True)
    savemat(path, {"groundTruth": people})


def folder(root: Path) -> None:
    save(root / "images" / "a.png", PICTURE)
    save(root / "masks" / "a.png", CLASSES)


@pytest.mark.parametrize(
    ("kind", "make", "classes", "objects"),
    [
        ("voc", voc, {0, 7, 15, 255}, {0, 1, 2}),
        ("ade", ade, {7, 15, 255}, None),
        ("cityscapes", cityscapes, {7, 26, 255}, {0, 26001}),
        ("coco", coco, {0, 7, 15, 255}, {0, 1, 2}),
        ("folder", folder, {0, 7, 15, 255}, None),
    ],
)
def test_each_layout_gives_the_same_two_regions(
    kind: str,
    make: Callable[[Path], None],
    classes: set[int],
    objects: set[int] | None,
    tmp_path: Path,
) -> None:
    make(tmp_path)
    layout = open_layout(kind, tmp_path)
    truth = layout.images[0].truth()
    assert layout.images[0].image().shape == (*SIZE, 3)
    assert set(np.unique(truth.semantic)) == classes
    assert np.array_equal(truth.semantic == 7, CLASSES == 7)
    found = None if truth.instance is None else set(np.unique(truth.instance))
    assert found == objects
    assert len(open_layout(kind, tmp_path, num=1).images) == 1


@pytest.mark.parametrize("make", [context, context_pictures])
def test_context_has_its_59_classes_of_either_annotation(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path)
    layout = open_layout("context", tmp_path)
    (semantic,) = (one.truth().semantic for one in layout.images)
    assert len(layout.names) == 59
    named = {layout.names.get(int(number)) for number in np.unique(semantic)}
    assert named == {"bird", "pottedplant", None}
    assert np.array_equal(semantic == 3, CLASSES == 7)
    assert (semantic[CLASSES == 0] == 255).all()


def test_cocostuff_has_the_27_classes_of_picie_and_its_images(tmp_path: Path) -> None:
    cocostuff(tmp_path)
    layout = open_layout("cocostuff", tmp_path)
    assert [one.name for one in layout.images] == ["000000000285"]
    semantic = layout.images[0].truth().semantic
    names = {layout.names.get(int(number)) for number in np.unique(semantic)}
    assert names == {"vehicle", "sky", "solid", None}  # bicycle, clouds, wood, unlabeled
    assert np.array_equal(semantic == 11, CLASSES == 7)
    assert len(STUFF_27_OF) == 182
    assert set(STUFF_27_OF) == set(range(27)) == set(layout.names)
    assert [STUFF_27_OF[n] for n in (0, 15, 43, 60, 71, 90, 91)] == [9, 7, 5, 2, 0, 4, 17]
    fine = open_layout("cocostuff-171", tmp_path)
    semantic = fine.images[0].truth().semantic
    names = {fine.names.get(int(number)) for number in np.unique(semantic)}
    assert names == {"bicycle", "clouds", "wood", None}
    assert len(fine.names) == len(set(fine.names.values())) == 171


def test_cityscapes_has_19_classes_or_the_27_of_papers_without_training(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    path = next(tmp_path.rglob("*labelIds.png"))
    labels = np.asarray(Image.open(path)).copy()
    labels[80:] = 9  # parking
    save(path, labels)
    few, many = (open_layout(kind, tmp_path) for kind in ("cityscapes", "cityscapes-27"))
    assert (len(few.names), len(many.names)) == (19, 27)
    assert sorted(many.names) == list(range(7, 34))
    assert (few.images[0].truth().semantic[80:] == 255).all()
    assert (many.images[0].truth().semantic[80:] == 9).all()


def test_bsds_is_covered_as_its_benchmark_says(tmp_path: Path) -> None:
    root = tmp_path / "BSDS500"
    bsds(root)
    layout = open_layout("bsds", root)
    truth = layout.images[0].truth()
    assert [len(np.unique(pieces)) for pieces in truth.partitions] == [3, 2]
    settings = SegmentSettings(data="bsds", root=root, methods=("rgbxy",), refiners=("none",))
    result = evaluate_segment(tmp_path / "out", settings)
    row = result["table"]["rgbxy, none"]
    assert row["class_iou"] is None
    assert 0.5 < row["ods"] <= row["ois"] <= 1
    table = (tmp_path / "out" / "segment.md").read_text()
    assert "covering, ODS" in table
    assert "class IoU" not in table
    (root / "data" / "groundTruth" / "val" / "101085.mat").write_bytes(b"MATLAB 5.0 nothing")
    with pytest.raises(ValueError, match="must be a MATLAB file"):
        layout.images[0].truth()


def test_covering_is_the_mean_over_pixels_of_the_best_iou_of_their_piece() -> None:
    rng = np.random.default_rng(0)
    pieces, labels = rng.integers(3, 6, (9, 11)), rng.integers(0, 4, (9, 11))
    total = 0.0
    for row in range(9):
        for column in range(11):
            piece = pieces == pieces[row, column]
            ious = [
                (piece & (labels == c)).sum() / (piece | (labels == c)).sum() for c in range(4)
            ]
            total += max(ious)
    assert covering(pieces, labels) == pytest.approx(total / 99)
    assert covering(pieces, pieces) == 1.0


def test_names_come_from_the_publishers_list_or_from_ours(tmp_path: Path) -> None:
    ade(tmp_path)
    assert open_layout("ade", tmp_path).names == {}
    rows = "Idx\tRatio\tTrain\tVal\tName\n1\t0.2\t9\t9\twall\n2\t0.1\t9\t9\tbuilding, edifice\n"
    (tmp_path / "objectInfo150.txt").write_text(rows)
    assert open_layout("ade", tmp_path).names == {1: "wall", 2: "building, edifice"}
    folder(tmp_path / "own")
    (tmp_path / "own" / "classes.json").write_text('{"0": "background", "7": "cat"}')
    assert open_layout("folder", tmp_path / "own").names == {7: "cat"}
    (tmp_path / "own" / "classes.json").write_text('["cat"]')
    with pytest.raises(ValueError, match="names by number"):
        open_layout("folder", tmp_path / "own")


def test_what_is_laid_out_otherwise_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'voc'"):
        open_layout("vocc", tmp_path)
    with pytest.raises(ValueError, match="Got none"):
        open_layout("voc")
    with pytest.raises(ValueError, match="its publisher's"):
        open_layout("voc", tmp_path)
    voc(tmp_path)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("../../secret\n")
    with pytest.raises(ValueError, match="names of files"):
        open_layout("voc", tmp_path)
    folder(tmp_path)
    save(tmp_path / "masks" / "a.png", PICTURE)
    with pytest.raises(ValueError, match="a PNG of class numbers"):
        open_layout("folder", tmp_path).images[0].truth()


def test_methods_are_scored_image_by_image_and_go_on(tmp_path: Path) -> None:
    """A pair of folders with a scene, a broken file and an annotation of another size."""
    root, out = tmp_path / "data", tmp_path / "out"
    scene = render(3)
    save(root / "images" / "scene.png", scene.image)
    save(root / "masks" / "scene.png", scene.semantic.astype(np.uint8))
    save(root / "images" / "small.png", scene.image)
    save(root / "masks" / "small.png", scene.semantic[:64].astype(np.uint8))
    (root / "images" / "broken.png").write_bytes(b"no image")
    settings = SegmentSettings(
        data="folder", root=root, methods=("per-head", "rgbxy"), refiners=("none",)
    )
    result = evaluate_segment(out, settings)
    assert result["num"] == 1
    assert set(result["failed"]) == {"broken", "small"}
    table = result["table"]
    classes = {str(cls) for cls in np.unique(scene.semantic) if cls}
    assert set(table) == {"per-head, none", "rgbxy, none"}
    assert all(set(row["per_class"]) == classes for row in table.values())
    assert table["per-head, none"]["class_iou"] > 0.3
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert len(rows) == 2 * len(classes)
    assert {"segment.md", "segment.png", "segment.json", "rows.parquet"} <= {
        path.name for path in out.iterdir()
    }
    before = {path: path.stat().st_mtime_ns for path in out.glob("rows/*/*.json")}
    again = evaluate_segment(out, settings)
    assert again["table"] == table
    assert {path: path.stat().st_mtime_ns for path in out.glob("rows/*/*.json")} == before


def test_the_command_prints_its_table_and_refuses_data_without_a_folder(tmp_path: Path) -> None:
    arguments = ["evaluate", "segment", "--out", str(tmp_path / "out"), "--num", "1"]
    chosen = ["-s", "methods=[rgbxy,ward]", "-s", "refiners=[affinity-guided]"]
    done = CliRunner().invoke(app, [*arguments, *chosen])
    assert done.exit_code == 0, done.output
    assert "| ward |" in done.stdout
    refused = CliRunner().invoke(app, [*arguments, "--data", "voc"])
    assert "root must be the folder of voc" in str(refused.exception)
