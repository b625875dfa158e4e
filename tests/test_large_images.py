"""Kilobytes that stand for gigabytes: images and masks of the largest size, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_dataset import make_sample, write_dataset
from resident import memory_below

from synthgen import jobs
from synthgen.auditing.annotations import packed_records, to_records
from synthgen.config import load_audit
from synthgen.dataset.audits import parse_table, table_name
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.masks import stride
from synthgen.storage.publish import open_storage
from synthgen.types import Annotations, MaskSet

MEGABYTE = 2**20


def write_huge(root: Path, side: int, num: int, num_masks: int) -> None:
    """A finished dataset of one-colored images; a hundred times as many bytes in memory."""
    small = make_sample(0, "a cat", (64, 64))
    masks = np.zeros((num_masks, side, side), dtype=bool)
    for index, mask in enumerate(masks):
        mask[: side - index] = True
    mask_set = MaskSet(masks, (((2, 0),),) * num_masks, np.arange(-1, num_masks - 1))
    image = np.full((side, side, 3), 7, dtype=np.uint8)
    record = replace(small.record, image=image, mask_set=mask_set)
    write_dataset(root, [replace(small, record=record, preview=False)], num)


class Thirds:
    """An auditor that sees nested parts of what it is shown, and keeps sizes."""

    def __init__(self) -> None:
        self.identity = {"name": "thirds"}
        self.shown: list[tuple[int, ...]] = []

    def annotate(self, images: Sequence[np.ndarray]) -> list[Annotations]:
        self.shown += [image.shape[:2] for image in images]
        found = [np.tri(3, image.shape[0], dtype=bool)[:, :, None] for image in images]
        masks = [
            np.repeat(part, image.shape[1], 2) for part, image in zip(found, images, strict=True)
        ]
        ones = (1.0,) * 3
        return [Annotations(m, ones, ones, ((2.0, 1.0),) * 3, ("",) * 3) for m in masks]


def test_an_audit_looks_at_large_images_reduced_and_holds_bits(tmp_path: Path) -> None:
    """Two images of 3072 x 3072 with 15 masks, 140 MB of booleans each, and as many of colors."""
    write_huge(tmp_path / "d", 3072, 2, 15)
    auditor = Thirds()
    settings = load_audit(["color_baseline_resolution=16"])
    with memory_below(200 * MEGABYTE):
        summary = jobs.audit(tmp_path / "d", settings, "large", auditor)
    assert auditor.shown == [(1024, 1024)] * 2
    assert summary["means"]["num_masks"] == 15
    table = open_storage(tmp_path / "d").read(table_name("large", "train-000000"))
    for row in parse_table(table or b""):
        assert [record["area"] for record in row.annotations] == [9_216, 18_432, 27_648]
        assert [record["segmentation"]["size"] for record in row.annotations] == [[3072] * 2] * 3
        assert row.annotations[0]["bbox"] == [0, 0, 3072, 3]
        assert row.annotations[0]["point_coords"] == [[6.0, 3.0]]
        assert row.verdict.metrics["coverage"] == 1.0


@pytest.mark.parametrize("size", [(1, 2**21), (9, 2**20), (1500, 1501)])
def test_masks_that_were_seen_reduced_have_the_size_of_their_image(size: tuple[int, int]) -> None:
    step = stride(*size)
    small = np.zeros([-(-side // step) for side in size], dtype=bool)
    small[:, ::3] = True
    seen = Annotations(small[None], (1.0,), (1.0,), ((-1.0, -1.0),), ("",))
    (record,) = to_records(seen, size)
    assert tuple(record["segmentation"]["size"]) == size
    np.testing.assert_array_equal(packed_records([record], *size)[0], small)


def test_a_small_tar_of_large_samples_is_bounded(tmp_path: Path) -> None:
    """8192 x 8192: 17 masks of a sample would be more than a gigabyte."""
    write_huge(tmp_path / "d", 8192, 1, 17)
    with memory_below(900 * MEGABYTE), pytest.raises(ValueError, match=r"masks=False"):
        next(iter(open_dataset(tmp_path / "d")))
    with memory_below(900 * MEGABYTE):
        assert next(iter(open_dataset(tmp_path / "d", masks=False)))["mask"].max() == 17
