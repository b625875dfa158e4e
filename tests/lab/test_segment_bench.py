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
from typer.testing import CliRunner

from synthgen.cli import app
from synthgen.lab.segment.evaluate import SegmentSettings, evaluate_segment
from synthgen.lab.segment.layouts import open_layout
from synthgen.lab.world.render import render

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
    chosen = ["-s", "methods=[rgbxy,ward]", "-s", "refiners=[affinity]"]
    done = CliRunner().invoke(app, [*arguments, *chosen])
    assert done.exit_code == 0, done.output
    assert "| ward |" in done.stdout
    refused = CliRunner().invoke(app, [*arguments, "--data", "voc"])
    assert "root must be the folder of voc" in str(refused.exception)
