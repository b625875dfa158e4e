"""One bit of a finished dataset flips: whoever reads it is told which sample is damaged."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_table import Faults
from ordered import ordered_config

from synthgen import jobs
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.metadata import parse_rows, rows_bytes

TAR, ROWS = "data/train-000000.tar", "metadata/train-000000.parquet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flips")
    jobs.generate(ordered_config(folder, "num=4"), folder / "out")
    return folder / "out"


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    return all(
        np.array_equal(one[name], other[name]) if hasattr(one[name], "shape") else
        one[name] == other[name]
        for one, other in zip(found, expected, strict=True)
        for name in other
    )  # fmt: skip


@pytest.mark.parametrize("name", [TAR, ROWS])
@pytest.mark.parametrize("flips", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_no_flipped_bit_gives_a_wrong_sample(
    name: str, flips: int, whole: Path, tmp_path: Path, faults: Faults
) -> None:
    """Before rows held hashes, 55 of 200 flips in tars gave other images without a word."""
    out = shutil.copytree(whole, tmp_path / "out")
    rng, content = random.Random(flips), (out / name).read_bytes()
    expected = list(open_dataset(whole))
    rows = parse_rows((whole / ROWS).read_bytes())
    for _ in range(flips):
        at = rng.randrange(len(content))
        damaged = bytearray(content)
        damaged[at] ^= 1 << rng.randrange(8)
        (out / name).write_bytes(damaged)
        faults.inject("a flipped bit that a reader meets")
        struck = [row.key for row in rows if 0 <= at - row.byte_offset < row.byte_size]
        try:
            found = list(open_dataset(out))
        except ValueError as error:
            message = str(error)
            assert "\n" not in message
            assert len(message) < 600
            if name == TAR:
                assert re.search(f"Sample {struck[0]} of" if struck else "must be whole", message)
        else:
            assert name == ROWS, at
            assert same(found, expected)
        faults.survive()


def test_without_hashes_nothing_is_checked_unless_it_is_asked_for(
    whole: Path, tmp_path: Path
) -> None:
    """Datasets of older releases are read as before."""
    out = shutil.copytree(whole, tmp_path / "out")
    table = pq.read_table(out / ROWS)
    pq.write_table(table.remove_column(table.schema.get_field_index("sha256")), out / ROWS)
    old = parse_rows((out / ROWS).read_bytes())
    assert [row.sha256 for row in old] == [""] * 4
    assert "sha256" in pq.read_table(pa.BufferReader(rows_bytes(old))).column_names
    assert same(list(open_dataset(out)), list(open_dataset(whole, check=False)))
    for url in (out, whole / TAR):
        with pytest.raises(ValueError, match="With check=True"):
            list(open_dataset(url, check=True))
    assert len(list(open_dataset(whole, check=True))) == 4
