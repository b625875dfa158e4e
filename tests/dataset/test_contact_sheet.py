"""The contact sheet: names stand on their classes, inside the picture, never over each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_export import make_dataset
from made_labels import write_side_labels
from PIL import Image, ImageChops
from scipy import ndimage

from synthgen.dataset.contact_sheet import (
    NAMED_AREA,
    Box,
    lay_out,
    overlay_classes,
    places,
    write_contact_sheet,
)
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.records import encode_image


@pytest.mark.parametrize("seed", range(20))
def test_no_name_stands_over_another_or_over_the_edge(seed: int) -> None:
    """Drawn pixel by pixel, every place is taken at most once."""
    rng = np.random.default_rng(seed)
    corners, widths = rng.integers(-20, 160, (12, 2)).tolist(), rng.integers(10, 50, 12).tolist()
    given: list[tuple[Box, bool]] = [
        ((x, y, x + width, y + 14), index >= 4)
        for index, ((x, y), width) in enumerate(zip(corners, widths, strict=True))
    ]
    drawn = np.zeros((160, 160), dtype=int)
    for (box, optional), new in zip(given, lay_out(given, (160, 160)), strict=True):
        assert new is not None or optional
        if new is not None:
            left, top, right, bottom = new
            assert (right - left, bottom - top) == (box[2] - box[0], box[3] - box[1])
            assert 0 <= min(left, top) <= max(right, bottom) <= 160
            drawn[top:bottom, left:right] += 1
    assert drawn.max() == 1


def test_without_room_names_that_must_stand_stay_and_others_go() -> None:
    one = (0, 0, 10, 14)
    assert lay_out([(one, False), (one, False), (one, True)], (10, 14)) == [one, one, None]


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_named_inside_it_and_large_components_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = np.kron(rng.choice([0, 0, 3, 9, 255], (12, 12)), np.ones((8, 8))).astype(np.uint8)
    ids[0, 0] = 200  # a speck is named, too
    found = places(ids)
    assert all(ids[y, x] == number for number, _, x, y in found)
    assert [again for _, again, _, _ in found] == sorted(again for _, again, _, _ in found)
    for number in (3, 9, 200):
        components, count = ndimage.label(ids == number)
        areas = [int((components == i + 1).sum()) for i in range(count)]
        large = sum(area >= NAMED_AREA * ids.size for area in areas)
        assert sum(i == number for i, *_ in found) == max(1, large)
        assert sum(i == number and not again for i, again, *_ in found) == 1
    assert {i for i, *_ in found} <= {3, 9, 200}


def test_background_keeps_its_pixels_and_undecided_ones_are_gray() -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    ids = np.zeros((256, 256), dtype=np.uint8)
    ids[:, 100:180], ids[:, 180:] = 255, 4
    shown = overlay_classes(image, ids, {4: "a name"})
    np.testing.assert_array_equal(shown[:, :99], image[:, :99])
    mean = shown[:, 101:179].reshape(-1, 3).mean(0)
    assert np.ptp(mean) < 3
    other = overlay_classes(image, ids, {4: "another"})
    box = ImageChops.difference(Image.fromarray(shown), Image.fromarray(other)).getbbox()
    assert box is not None
    assert box[0] >= 178
    assert box[2] <= 256


def test_what_was_not_found_stands_below_the_classes(tmp_path: Path) -> None:
    make_dataset(tmp_path / "out", num=1)
    (sample,) = open_dataset(tmp_path / "out")
    pictures = []
    for name, not_found in (("a", []), ("b", ["unicorn"])):
        tree = {**sample["json"], "not_found": not_found}
        members = {
            "json": json.dumps(tree).encode(),
            "sem.png": encode_image(sample["semantic"], "png"),
        }
        write_side_labels(tmp_path / "out", name, {"train-000000": {sample["key"]: members}})
        path = write_contact_sheet(tmp_path / "out", tmp_path / f"{name}.png", labels=name)
        pictures.append(Image.open(path))
    box = ImageChops.difference(*pictures).getbbox()
    assert box is not None, "the note must be there"
    assert box[0] >= pictures[0].width * 2 // 3
    assert box[1] >= pictures[0].height - 17
