"""What BL's tables 2, 6, 7 and 8 say, digit by digit.

Numbers are average IoU in hundredths, in the order of the tables' columns. Tables 6 and 7 do not
name their layers. The text about table 7 does ("using only the 'up' attention layers"), but
row 6 of table 6 is a setting of table 2 too, and of their six common columns five agree with
"both" there and two with "up". Rows bear "up" here; the studies repeat them in both readings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

COMPONENTS = (64, 32, 16, 10, 8, 5, 3, 1)
"""Components per head in tables 6 and 7, in the order of their rows; 64 is every feature."""

ALL_GRIDS = (16, 32, 64)

_SAM_SHORT, _M2F_SHORT = (1, 3, 5), (1, 3, 5)  # tables 2 and 8
_SAM_LONG, _M2F_LONG = (1, 3, 5, 10, 15), (1, 2, 3, 5, 10)  # tables 6 and 7


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row of a table, in the paper's own units.

    Args:
        table: Its table; 0 for a setting that is in none.
        id: Its ID there.
        reweight: Whether eq. 5 was used.
        layer: down, up, both; with the middle block down+mid, up+mid, all+mid.
        grids: Attention resolutions.
        components: Principal components per head.
        resolution: Side that features were upsampled to.
        samples: Images; None where the table does not say.
        sam: n to Top-n against SAM ViT-L; empty for a setting that is in no table.
        m2f: n to Top-n against Mask2Former.
    """

    table: int
    id: int
    reweight: bool
    layer: str
    grids: tuple[int, ...]
    components: int
    resolution: int
    samples: int | None
    sam: Mapping[int, float]
    m2f: Mapping[int, float]


_TABLE_2 = {
    (0, True, "down"): "80 79 76 76 73 64",
    (1, True, "up"): "84 82 79 79 76 67",
    (2, True, "both"): "84 81 78 79 76 66",
    (6, False, "down"): "84 82 79 80 78 67",
    (7, False, "up"): "85 83 80 81 78 68",
    (8, False, "both"): "84 83 80 80 78 68",
}

_TABLE_6 = {
    (16, 32, 64): (
        "84 83 80 73 67 79 79 77 68 59",
        "84 82 80 72 67 79 78 76 67 59",
        "84 82 79 72 66 80 79 77 68 60",
        "84 82 80 72 67 79 78 76 68 60",
        "83 82 79 71 66 78 78 76 67 59",
        "84 82 79 70 65 79 78 76 67 59",
        "84 81 78 70 65 78 77 76 66 56",
        "82 80 76 67 62 77 76 74 65 54",
    ),
    (32, 64): (
        "83 82 80 72 67 78 77 76 67 59",
        "82 81 79 72 67 78 76 75 66 58",
        "82 81 79 71 66 78 76 75 66 58",
        "83 81 79 71 67 78 76 75 67 59",
        "82 81 78 71 66 77 76 75 66 59",
        "83 81 78 70 66 76 75 74 66 58",
        "82 81 78 69 65 77 75 74 65 57",
        "80 78 73 66 62 75 73 71 62 53",
    ),
    (16, 32): (
        "84 81 79 70 62 80 80 78 68 60",
        "84 82 79 69 62 80 80 78 68 60",
        "84 82 79 70 62 79 80 78 69 59",
        "84 82 79 70 62 80 80 78 68 59",
        "84 81 78 70 62 79 80 78 68 59",
        "84 81 78 69 62 79 80 78 68 58",
        "83 81 78 69 61 79 79 77 68 58",
        "82 80 76 67 60 77 78 76 66 57",
    ),
    (64,): (
        "82 81 79 71 66 78 76 75 66 58",
        "82 80 79 71 66 77 76 74 65 58",
        "82 80 78 70 66 77 76 75 66 58",
        "82 80 78 70 66 77 76 74 66 58",
        "81 80 78 70 66 77 76 74 66 57",
        "81 79 77 69 65 76 75 74 65 56",
        "81 79 76 69 64 76 75 73 65 56",
        "79 78 74 66 61 74 73 71 63 54",
    ),
}

_TABLE_7 = {
    (16, 32, 64): (
        "85 83 82 74 69 80 79 78 69 61",
        "86 83 82 75 70 79 79 78 68 62",
        "84 83 82 74 69 79 78 77 69 63",
        "85 83 82 74 69 80 79 77 68 61",
        "85 83 82 74 68 79 79 78 68 61",
        "85 83 81 74 68 79 78 77 68 59",
        "84 82 81 73 68 78 77 76 67 60",
        "83 81 78 69 64 77 76 74 65 57",
    ),
    (32, 64): (
        "85 83 82 75 69 78 78 76 68 60",
        "84 83 82 75 70 78 78 77 68 62",
        "85 83 81 75 70 79 78 77 68 61",
        "84 83 81 74 70 79 78 76 68 61",
        "83 83 81 74 70 77 77 76 67 60",
        "83 82 81 73 69 77 76 76 67 61",
        "83 81 80 73 68 76 76 75 66 60",
        "80 79 76 68 64 74 73 72 63 56",
    ),
}

_TABLE_8 = {
    (0, True, "down+mid"): "80 78 75 75 73 64",
    (1, True, "up+mid"): "84 82 79 79 77 67",
    (2, True, "all+mid"): "84 82 79 79 76 67",
    (3, False, "down+mid"): "83 81 78 79 77 67",
    (4, False, "up+mid"): "85 82 79 80 78 68",
    (5, False, "all+mid"): "84 83 80 80 78 68",
}


def _figures(digits: str, order: Sequence[int]) -> dict[int, float]:
    return {n: int(two) / 100 for n, two in zip(order, digits.split(), strict=True)}


def _layer_rows(table: int, content: Mapping[tuple[int, bool, str], str]) -> Iterator[PaperRow]:
    """Rows of tables 2 and 8: three components, upsampled to 64."""
    for (row, reweight, layer), digits in content.items():
        sam, m2f = _figures(digits[:8], _SAM_SHORT), _figures(digits[9:], _M2F_SHORT)
        yield PaperRow(table, row, reweight, layer, ALL_GRIDS, 3, 64, None, sam, m2f)


def _component_rows(
    table: int, content: Mapping[tuple[int, ...], tuple[str, ...]], resolution: int, samples: int
) -> Iterator[PaperRow]:
    """Rows of tables 6 and 7: reweighted; up layers, as the text says."""
    settings = [(grids, n) for grids in content for n in COMPONENTS]
    lines = [digits for rows in content.values() for digits in rows]
    for row, ((grids, n), digits) in enumerate(zip(settings, lines, strict=True)):
        sam, m2f = _figures(digits[:14], _SAM_LONG), _figures(digits[15:], _M2F_LONG)
        yield PaperRow(table, row, True, "up", grids, n, resolution, samples, sam, m2f)


TABLES: Mapping[int, tuple[PaperRow, ...]] = {
    2: tuple(_layer_rows(2, _TABLE_2)),
    6: tuple(_component_rows(6, _TABLE_6, 64, 50)),
    7: tuple(_component_rows(7, _TABLE_7, 256, 41)),
    8: tuple(_layer_rows(8, _TABLE_8)),
}
"""Table number to its rows. Table 2 has no IDs 3 to 5."""


def paper_row(table: int, row: int) -> PaperRow:
    """The row of a table with an ID.

    >>> paper_row(7, 1).sam[15]
    0.7
    """
    return next(item for item in TABLES[table] if item.id == row)
