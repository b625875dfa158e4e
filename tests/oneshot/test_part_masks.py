"""Annotations in every form that users have them, and what is said of those that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from synthgen.oneshot.masks import pair_files, read_legend, read_mask
from synthgen.oneshot.pictures import color_png, legend_of

IMAGE = Path("car.jpg")
SIZE = (12, 16)
CLASSES = np.zeros(SIZE, dtype=np.uint8)
CLASSES[2:10, 2:14], CLASSES[4:6, 4:8], CLASSES[0] = 1, 2, 255
COLORS = {0: (0, 0, 0), 1: (200, 0, 0), 2: (0, 0, 255), 255: (9, 9, 9)}
LEGEND = "body=#c80000,window=#0000ff,ignore=#090909"


def colored() -> np.ndarray:
    picture = np.zeros((*SIZE, 3), dtype=np.uint8)
    for number, color in COLORS.items():
        picture[number == CLASSES] = color
    return picture


def coco_file(**changes: Any) -> dict[str, Any]:
    window = coco.encode(np.asfortranarray((CLASSES == 2).astype(np.uint8)))
    runs = {"size": list(SIZE), "counts": window["counts"].decode()}
    body = [2, 2, 14, 2, 14, 10, 2, 10]
    rows = [
        {"id": 1, "image_id": 7, "category_id": 5, "segmentation": runs},  # painted on the body
        {"id": 2, "image_id": 7, "category_id": 3, "segmentation": [body]},
        {"id": 3, "image_id": 7, "category_id": 9, "segmentation": [body]},
        {"id": 4, "image_id": 8, "category_id": 3, "segmentation": [[0, 0, 9, 0, 9, 9]]},
    ]
    images = [
        {"id": 7, "file_name": "images/car.jpg", "height": 12, "width": 16},
        {"id": 8, "file_name": "other.jpg", "height": 12, "width": 16},
    ]
    names = [{"id": 3, "name": "body"}, {"id": 5, "name": "window"}, {"id": 9, "name": "all"}]
    return {"images": images, "annotations": rows, "categories": names, **changes}


def save(folder: Path, kind: str) -> Path:
    path = folder / f"mask.{'png' if kind in ('L', 'P', 'RGB', 'RGBA') else kind}"
    if kind == "npy":
        np.save(path, CLASSES.astype(np.int64))
    elif kind == "json":
        path.write_text(json.dumps(coco_file()))
    elif kind in ("RGB", "RGBA"):
        Image.fromarray(colored()).convert(kind).save(path)
    else:
        image = Image.fromarray(CLASSES)
        if kind == "P":
            image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
        image.save(path)
    return path


@pytest.mark.parametrize("kind", ["L", "P", "RGB", "RGBA", "npy", "json"])
def test_an_annotation_is_the_same_in_every_form(tmp_path: Path, kind: str) -> None:
    found = read_mask(save(tmp_path, kind), read_legend(LEGEND), IMAGE, SIZE)
    expected = np.where(CLASSES == 255, 0, CLASSES) if kind == "json" else CLASSES
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", ["text", "lines", "numbers", "colors"])
def test_classes_come_as_text_or_in_a_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / ("classes.txt" if form == "lines" else "classes.json")
    if form == "lines":
        path.write_text("body\n# a comment\nwindow\n")
    else:
        values = {"body": 1, "window": 2} if form == "numbers" else legend_of(("body", "window"))
        path.write_text(json.dumps(values))
    legend = read_legend("body, window" if form == "text" else str(path))
    assert legend.names == ("body", "window")
    assert legend.numbers[2] == 2
    assert bool(legend.colors) == (form == "colors")


def test_what_predict_writes_can_be_learned_from(tmp_path: Path) -> None:
    mask, legend = tmp_path / "found.png", tmp_path / "legend.json"
    mask.write_bytes(color_png(CLASSES))
    legend.write_text(json.dumps(legend_of(("body", "window"))))
    found = read_mask(mask, read_legend(str(legend)), IMAGE, SIZE)
    np.testing.assert_array_equal(found, CLASSES)


def test_numbers_may_be_others(tmp_path: Path) -> None:
    legend = read_legend("window=2,body=1,background=0")
    found = read_mask(save(tmp_path, "L"), legend, IMAGE, SIZE)
    assert (found == np.array([0, 2, 1], np.uint8)[np.minimum(CLASSES, 2)])[1:].all()


@pytest.mark.parametrize(
    ("kind", "classes", "message"),
    [
        ("L", "body", "Got 2 in 8 pixels; add NAME=2, or ignore=2"),
        ("RGB", "body,window", "needs the color of each class"),
        ("RGB", "body=#c80000,ignore=#090909", "Got #0000ff in 8 pixels"),
    ],
)
def test_classes_that_a_mask_does_not_have(
    tmp_path: Path, kind: str, classes: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_mask(save(tmp_path, kind), read_legend(classes), IMAGE, SIZE)
    assert str(caught.value).startswith("mask.png: ")
    assert "\n" not in str(caught.value)


def test_categories_that_are_not_asked_for_are_left_out(tmp_path: Path) -> None:
    found = read_mask(save(tmp_path, "json"), read_legend("body"), IMAGE, SIZE)
    assert found.sum() == 8 * 12


@pytest.mark.parametrize("kind", ["L", "npy", "json"])
def test_another_size_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=r"the size of its (image|file), 16 x 12.*Got 12 x 16"):
        read_mask(save(tmp_path, kind), read_legend(LEGEND), IMAGE, (16, 12))


def test_white_is_not_annotated(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.where(CLASSES == 1, 255, 0).astype(np.uint8)).save(path)
    with pytest.raises(ValueError, match="give it as body=255"):
        read_mask(path, read_legend("body"), IMAGE, SIZE)
    found = read_mask(path, read_legend("body=255"), IMAGE, SIZE)
    assert set(np.unique(found)) == {0, 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"images": []},
        {"images": 3},
        {"categories": [{"id": 3}]},
        {"annotations": [{"image_id": 7, "category_id": 3, "segmentation": [[1, 2]]}]},
        {"annotations": [{"image_id": 7, "category_id": 3, "segmentation": {"size": [1, 1]}}]},
    ],
)
def test_files_that_are_not_coco(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps(coco_file(**changes)))
    with pytest.raises(ValueError, match=r"^mask.json: ") as caught:
        read_mask(path, read_legend(LEGEND), IMAGE, SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("name", ["mask.png", "mask.npy", "mask.json"])
def test_damaged_files_are_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name) as caught:
        read_mask(path, read_legend(LEGEND), IMAGE, SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", ",", "body,body", "body=red", "body=#12", "background"])
def test_classes_that_name_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="--classes"):
        read_legend(text)


def test_images_find_their_masks(tmp_path: Path) -> None:
    for folder, names in {"images": ("a.jpg", "b.jpg"), "masks": ("a.png", "b.png")}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(b"")
    images, masks = tmp_path / "images", tmp_path / "masks"
    pairs = pair_files([images], [masks])
    assert [(a.name, b.name) for a, b in pairs] == [("a.jpg", "a.png"), ("b.jpg", "b.png")]
    one = tmp_path / "all.json"
    assert pair_files([images], [one]) == [(images / n, one) for n in ("a.jpg", "b.jpg")]
    assert len(pair_files([images / "a.jpg", images / "b.jpg"], [one])) == 2
    (masks / "b.png").unlink()
    with pytest.raises(ValueError, match=r"b\.jpg without one"):
        pair_files([images], [masks])
    with pytest.raises(ValueError, match=r"as often as --mask\. Got 2 and 1"):
        pair_files([images / "a.jpg", images / "b.jpg"], [masks / "a.png"])
