"""PASCAL-Part and CelebAMask-HQ in their publishers' layouts, on small made trees."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
from PIL import Image
from scipy.io import loadmat, savemat

from synthgen.lab.oneshot.evaluate import OneshotSettings, evaluate_oneshot, oneshot_table
from synthgen.lab.oneshot.layouts import celebamask, pascal_part, read_annotation
from synthgen.lab.oneshot.matfile import read_mat
from synthgen.oneshot.settings import PartSettings

SIZE = (160, 240)
Box = tuple[int, int, int, int]


def structs(rows: list[dict[str, Any]]) -> np.ndarray:
    """An array of structs, as MATLAB writes it: 1 x n, or 0 x 0."""
    if not rows:
        return np.zeros((0, 0))
    found = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        found[0, place] = tuple(row.values())
    return found


def plane(*boxes: Box) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=np.uint8)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def car(top: int, left: int, side: int = 60) -> dict[str, Any]:
    """A square car: window above, wheels below, a light, a plate; its side is annotated, too."""
    whole = (top, left, top + side, left + side)
    parts = {
        "leftside": whole,
        "window_1": (top, left + 10, top + 10, left + 30),
        "wheel_1": (top + side - 10, left, top + side, left + 10),
        "wheel_2": (top + side - 10, left + side - 10, top + side, left + side),
        "headlight_1": (top + 20, left, top + 26, left + 4),
        "fliplate": (top + 30, left, top + 34, left + 8),
        "door_1": (top + 10, left + 10, top + 40, left + 30),
    }
    rows = [{"part_name": name, "mask": plane(box)} for name, box in parts.items()]
    return {"class": "car", "class_ind": 7, "mask": plane(whole), "parts": structs(rows)}


def thing(box: Box) -> dict[str, Any]:
    return {"class": "person", "class_ind": 15, "mask": plane(box), "parts": structs([])}


def pascal(root: Path, images: dict[str, list[dict[str, Any]]], split: str = "val") -> None:
    (root / "Annotations_Part").mkdir(exist_ok=True)
    (root / "JPEGImages").mkdir(exist_ok=True)
    for name, objects in images.items():
        anno = {"imname": name, "objects": structs(objects)}
        savemat(root / "Annotations_Part" / f"{name}.mat", {"anno": anno}, do_compression=True)
        pixels = np.full((*SIZE, 3), 90, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
    listed = root / "ImageSets" / "Main"
    listed.mkdir(parents=True, exist_ok=True)
    shown = [f"{name}  1" for name in images]
    (listed / f"car_{split}.txt").write_text("\n".join(["2008_000000 -1", *shown, ""]))


def test_cars_are_cut_out_and_grouped(tmp_path: Path) -> None:
    pascal(tmp_path, {"2008_000001": [car(40, 100), thing((0, 0, 30, 30))]})
    pascal(tmp_path, {"2008_000002": [car(20, 20)]}, "train")
    found = pascal_part(tmp_path, "car", examples=3, tests=3)
    assert found.names == ("body", "light", "plate", "wheel", "window")
    assert (len(found.examples), len(found.tests)) == (1, 1)
    pixels, mask = found.tests[0]()
    assert pixels.shape == (60, 60, 3)
    numbers = [mask[i] for i in ((2, 12), (20, 20), (55, 5), (55, 55), (22, 1), (31, 3), (15, 50))]
    assert numbers == [5, 1, 4, 4, 2, 3, 1]
    assert set(np.unique(mask)) == {1, 2, 3, 4, 5}  # all of the box is the car
    assert found.settings == {"augmentation": "car"}


@pytest.mark.parametrize(
    ("objects", "kept"),
    [
        ([car(40, 100), thing((0, 0, 42, 240))], 1),  # 2 of 60 rows: less than a twentieth
        ([car(40, 100), thing((0, 0, 44, 240))], 0),
        ([car(40, 10), car(40, 100)], 2),
        ([car(40, 10, side=49)], 0),
        ([thing((0, 0, 90, 90))], 0),
    ],
)
def test_objects_are_left_out_by_the_rules(
    objects: list[dict[str, Any]], kept: int, tmp_path: Path
) -> None:
    pascal(tmp_path, {"2008_000001": objects})
    pascal(tmp_path, {"2008_000002": [car(20, 20)]}, "train")
    assert len(pascal_part(tmp_path, "car", 1, 9).tests) == kept


def test_horses_have_legs_of_all_their_pieces(tmp_path: Path) -> None:
    names = ["head", "leye", "muzzle", "neck", "torso", "tail", "lfuleg", "rblleg", "lfho"]
    parts = [
        {"part_name": name, "mask": plane((40, 10 + 10 * i, 80, 20 + 10 * i))}
        for i, name in enumerate(names)
    ]
    horse = {
        "class": "horse",
        "class_ind": 13,
        "mask": plane((40, 10, 80, 110)),
        "parts": structs(parts),
    }
    pascal(tmp_path, {"2008_000001": [horse]})
    for split in ("train", "val"):
        (tmp_path / "ImageSets" / "Main" / f"horse_{split}.txt").write_text("2008_000001  1\n")
    found = pascal_part(tmp_path, "horse", 1, 1)
    assert found.names == ("head", "leg", "neck+torso", "tail")
    _, mask = found.examples[0]()
    assert mask[20, 5::10].tolist() == [1, 1, 1, 3, 3, 4, 2, 2, 2, 0]


def test_annotations_that_are_none_are_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"anno": {"imname": "a", "objects": 3}})
    good = path.read_bytes()
    whole = "An annotation must be a MAT-file of PASCAL-Part. Got 'a.mat': "
    for content in (b"", b"\x80\x04junk" * 40, good[:150], good):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^An annotation must be a MAT-file") as raised:
            read_annotation(path)
        assert str(raised.value).startswith(whole)
        assert "\n" not in str(raised.value)
    pascal(tmp_path, {"a": [car(1, 1) | {"mask": np.zeros((3, 3))}]})
    with pytest.raises(ValueError, match="masks of 2 sizes"):
        read_annotation(tmp_path / "Annotations_Part" / "a.mat")


def test_damaged_annotations_are_read_or_refused(tmp_path: Path) -> None:
    pascal(tmp_path, {"a": [car(40, 100)]})
    path = tmp_path / "Annotations_Part" / "a.mat"
    savemat(path, {"anno": loadmat(path)["anno"]})  # not compressed
    good, messages = path.read_bytes(), []
    rng = np.random.default_rng(0)
    places = np.flatnonzero(np.frombuffer(good, np.uint8) > 1)  # all but the masks
    for _ in range(400):
        content = bytearray(good)
        content[int(rng.choice(places))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content[: int(rng.choice([len(good), rng.integers(len(good))]))])
        try:
            read_annotation(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 250
    assert all(text.startswith("An annotation must be a MAT-file of") for text in messages)


@pytest.mark.parametrize("compressed", [False, True])
def test_variables_are_what_scipy_reads(compressed: bool) -> None:
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    cells = np.empty(2, dtype=object)
    cells[:] = ["one", np.arange(3.0)]
    arrays = {
        str(np.dtype(kind)): rng.integers(0, 100, (3, 5)).astype(kind)
        for kind in ("u1", "i2", "u4", "i8", "f4", "f8")
    }
    wanted = {
        **arrays,
        "text": "wörter",
        "cells": cells,
        "rows": structs([{"a": 1, "b": "x"}] * 3),
    }
    savemat(buffer, wanted, do_compression=compressed)
    found, reference = read_mat(buffer.getvalue(), 2**20), loadmat(buffer)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(found[name], reference[name])
    assert found["text"] == str(reference["text"][0]) == "wörter"
    assert found["cells"][0] == "one"
    np.testing.assert_array_equal(found["cells"][1], np.arange(3.0)[None])
    assert [row["b"] for row in found["rows"]] == ["x"] * 3
    savemat(buffer := io.BytesIO(), {"s": scipy.sparse.eye(3)})
    with pytest.raises(ValueError, match="class 5"):
        read_mat(buffer.getvalue(), 2**20)


def test_a_small_annotation_that_would_fill_memory_is_refused() -> None:
    buffer = io.BytesIO()
    savemat(buffer, {"anno": 1})
    bomb = zlib.compress(bytes(2**28), 9)
    content = buffer.getvalue()[:128] + struct.pack("<II", 15, len(bomb)) + bomb
    assert len(content) < 2**19
    tracemalloc.start()
    with pytest.raises(ValueError, match="more bytes than are read, when it is expanded"):
        read_mat(content, 2**20)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def celeba(root: Path, parts: dict[int, int]) -> None:
    """Faces of four pixels' blocks; the part of each is train 0, val 1, test 2."""
    (root / "CelebA-HQ-img").mkdir()
    mapping, partition = ["idx orig_idx orig_file"], []
    for number, part in parts.items():
        pixels = np.full((1024, 1024, 3), number % 200, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "CelebA-HQ-img" / f"{number}.jpg")
        mapping.append(f"{number} {number + 7} {number + 7:06d}.jpg")
        partition.append(f"{number + 7:06d}.jpg {part}")
        folder = root / "CelebAMask-HQ-mask-anno" / str(number // 2000)
        folder.mkdir(parents=True, exist_ok=True)
        kinds = ("skin", "l_brow", "r_eye", "l_ear", "nose", "u_lip", "neck", "cloth", "hair")
        for place, kind in enumerate((*kinds, "hat")):
            mask = np.zeros((512, 512, 3), dtype=np.uint8)
            mask[:, 40 * place : 512 if kind == "skin" else 40 * place + 40] = 255
            Image.fromarray(mask).save(folder / f"{number:05d}_{kind}.png")
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(mapping))
    (root / "list_eval_partition.txt").write_text("\n".join(partition))


def test_faces_have_nine_parts(tmp_path: Path) -> None:
    celeba(tmp_path, {3: 0, 4: 1, 2001: 2})
    found = celebamask(tmp_path, "face", examples=1, tests=5)
    assert found.names == (
        *("cloth", "ear", "eye", "eyebrow", "face", "hair", "mouth", "neck", "nose"),
    )
    assert (len(found.examples), len(found.tests)) == (1, 1)
    pixels, mask = found.tests[0]()
    assert pixels.shape == (512, 512, 3)
    assert abs(int(pixels[0, 0, 0]) - 2001 % 200) < 3
    names = ["background", *found.names]
    assert [names[cls] for cls in mask[0, 20:400:40]] == [
        *("face", "eyebrow", "eye", "ear", "nose", "mouth", "neck", "cloth", "hair", "face"),
    ]  # a hat is no part
    (tmp_path / "list_eval_partition.txt").unlink()
    with pytest.raises(ValueError, match=r"root must have list_eval_partition.txt"):
        celebamask(tmp_path, "face", 1, 1)


def test_the_evaluation_reads_them(tmp_path: Path) -> None:
    (tmp_path / "voc").mkdir()
    for split, name in (("train", "2008_000001"), ("val", "2008_000002")):
        pascal(tmp_path / "voc", {name: [car(40, 100)]}, split)
    settings = OneshotSettings(
        data="pascal-part",
        root=tmp_path / "voc",
        classes=("car",),
        shots=(1,),
        inits=1,
        num=4,
        table="1",
        parts=PartSettings(epochs=1),
    )
    result = evaluate_oneshot(tmp_path / "out", settings)
    table = oneshot_table(result)
    assert table.startswith("| car | examples | body | light | plate | wheel | window |")
    assert "| SLiMe, as reported | 1 | – | – | – | – | – | – | 61.6 |" in table
    assert (tmp_path / "out" / "table-1-1.md").read_text() == table
    with pytest.raises(ValueError, match="root must hold 10 examples of car with all parts"):
        evaluate_oneshot(tmp_path / "out", settings.model_copy(update={"shots": (10,)}))
    with pytest.raises(ValueError, match="root must be the folder of pascal-part"):
        evaluate_oneshot(tmp_path / "out", settings.model_copy(update={"root": None}))
