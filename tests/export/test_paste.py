"""Exports with pasted objects: what is shown is labeled, and what is below stays."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_export import make_dataset
from PIL import Image
from pycocotools import mask as coco_mask

from synthgen.export.format import ExportSample, Instance
from synthgen.export.paste import GAIN, MIN_VISIBLE, paste
from synthgen.jobs import export
from synthgen.types import IGNORE

SIZE = (48, 64)


def made(
    class_id: int, box: tuple[slice, slice], color: int, split: str = "train"
) -> ExportSample:
    """A gray image with one rectangle of a class."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[box] = True
    pixels = np.full((*SIZE, 3), 100, np.uint8)
    pixels[mask] = color
    instances = (Instance(class_id, 0.75, mask),) if mask.any() else ()
    semantic = np.where(mask, np.uint8(class_id), np.uint8(0))
    semantic[0] = IGNORE
    return ExportSample(
        "0" * 10, split, b"", "jpg", pixels, semantic, instances, semantic, (), "p", "a scene"
    )


def test_what_is_pasted_is_labeled_and_nothing_else_changes() -> None:
    below = made(1, (slice(20, 40), slice(5, 30)), 50)
    above = made(2, (slice(10, 30), slice(20, 50)), 200)
    shares, sides = set(), set()
    for seed in range(40):
        pasted = paste(below, above, np.random.default_rng(seed))
        shown = pasted.labels == 2
        (first, second) = pasted.instances
        assert (second.class_id, second.score) == (2, 0.75)
        assert (second.mask == shown).all()
        assert (first.mask == (below.instances[0].mask & ~shown)).all()
        assert first.mask.sum() >= MIN_VISIBLE * below.instances[0].mask.sum()
        assert (pasted.labels[~shown] == below.labels[~shown]).all()
        assert (pasted.pixels[~shown] == below.pixels[~shown]).all(), "borders are soft inside"
        inner = pasted.pixels[shown]
        assert inner.max() <= 200 * GAIN[1]
        assert inner.max() > 150, "its own color, in another light"
        assert (np.asarray(Image.open(io.BytesIO(pasted.image))) == pasted.pixels).all()
        shares.add(int(shown.sum()))
        sides.add(bool(np.flatnonzero(shown.any(0)).mean() > SIZE[1] / 2))
    assert len(shares) > 20, "of many sizes"
    assert sides == {True, False}, "at places of many kinds"


def test_pasting_is_given_up_where_it_would_hide_an_object() -> None:
    """Many small objects everywhere: a large one has no place, and the sample stays as it is."""
    dots = made(1, (slice(0, 0), slice(0, 0)), 0)
    spots = []
    for y in range(0, 48, 4):
        for x in range(0, 64, 4):
            mask = np.zeros(SIZE, dtype=bool)
            mask[y : y + 2, x : x + 2] = True
            spots.append(Instance(1, 1.0, mask))
    full = replace(dots, instances=tuple(spots))
    above = made(2, (slice(2, 46), slice(2, 62)), 200)
    assert all(paste(full, above, np.random.default_rng(seed)) is full for seed in range(5))
    assert paste(full, dots, np.random.default_rng(0)) is full, "nothing to paste"


def test_light_moves_pasted_colors_and_no_halo_comes_along() -> None:
    above = made(2, (slice(12, 36), slice(16, 48)), 80)
    dark = replace(
        made(1, (slice(0, 0), slice(0, 0)), 0), pixels=np.full((*SIZE, 3), 40, np.uint8)
    )
    for seed in range(10):
        pasted = paste(dark, above, np.random.default_rng(seed))
        inside = pasted.pixels[pasted.labels == 2]
        assert inside.max() <= 40 + 80, "never its old gray of 100 around it"
        assert np.median(inside) < 80, "darker, as the place is"


def test_exports_with_pasted_objects_are_valid_and_the_same_twice(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data")
    plain, pasted, again = (tmp_path / name for name in ("plain", "pasted", "again"))
    export(tmp_path / "data", plain, "coco", split="0.5/0.5")
    settings = {"split": "0.5/0.5", "paste": 0.8, "segmentation": "rle"}
    export(tmp_path / "data", pasted, "coco", **settings)
    export(tmp_path / "data", again, "coco", **settings)
    files = sorted(p.relative_to(pasted) for p in pasted.rglob("*") if p.is_file())
    assert [(pasted / p).read_bytes() for p in files if p.suffix == ".json"] == [
        (again / p).read_bytes() for p in files if p.suffix == ".json"
    ]
    more = 0
    for split in ("train", "val"):
        name = f"annotations/instances_{split}.json"
        before, after = (json.loads((out / name).read_text()) for out in (plain, pasted))
        assert [Path(i["file_name"]).stem for i in before["images"]] == [
            Path(i["file_name"]).stem for i in after["images"]
        ]
        more += len(after["annotations"]) - len(before["annotations"])
        by_image: dict[int, list[np.ndarray]] = {}
        for item in after["annotations"]:
            mask = coco_mask.decode(item["segmentation"])
            assert mask.sum() == item["area"]
            by_image.setdefault(item["image_id"], []).append(mask)
        assert all(sum(masks).max() <= 1 for masks in by_image.values()), "objects overlap"
    assert more > 0


def test_pasting_is_refused_where_there_are_no_classes(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data")
    for settings in ({"masks": "all"}, {"format": "hf-parquet"}):
        with pytest.raises(ValueError, match="paste must be 0 where masks without a class"):
            export(tmp_path / "data", tmp_path / "out", paste=0.5, **settings)
    with pytest.raises(ValueError, match=r"paste is not valid: .* less than 1"):
        export(tmp_path / "data", tmp_path / "out", paste=1.0)
    assert not (tmp_path / "out").exists()
