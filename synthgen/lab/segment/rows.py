"""What every comparison on annotated images does: rows by image, kept; tables, chart, Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from matplotlib.figure import Figure
from numpy import ndarray

from synthgen import progress
from synthgen.config.settings import digest
from synthgen.lab.segment.layouts import Annotated, Layout, Truth
from synthgen.storage.publish import Storage, dump_json

Measure = Callable[[Sequence[Annotated], Sequence[str]], list[dict[str, Any]]]
"""A row per image of a batch, with what each of some methods got of it under ``methods``; one that
could not be measured says why under ``failed``."""


def measure_images(
    storage: Storage,
    layout: Layout,
    known: Mapping[str, Any],
    keys: Mapping[str, str],
    begin: Callable[[], Measure],
    batch_size: int,
) -> list[dict[str, Any]]:
    """Rows of all images: what is in rows/ is read, methods that are new are measured and kept.

    Args:
        storage: The output folder.
        layout: The images.
        known: What the rows depend on beside image and methods.
        keys: The table's methods, and a digest of the settings of each.
        begin: Loads what measuring takes; called only where something is missing.
        batch_size: Images that are measured at a time.
    """
    place = f"rows/{digest(known)[:12]}"
    found: dict[str, dict[str, Any]] = {}
    missing: list[Annotated] = []
    for one in layout.images:
        content = storage.read(_row_name(place, one.name))
        row = found[one.name] = {} if content is None else json.loads(content)
        if "failed" not in row and not set(keys.values()) <= set(row.get("methods", ())):
            missing.append(one)
    progress.report("existing", shards=0, samples=len(found) - len(missing))
    measure = begin() if missing else None
    for start in range(0, len(missing), batch_size):
        assert measure is not None
        batch = missing[start : start + batch_size]
        held = set.intersection(*(set(found[one.name].get("methods", ())) for one in batch))
        wanted = [name for name, key in keys.items() if key not in held]
        for one, row in zip(batch, measure(batch, wanted), strict=True):
            if "methods" in row:
                own = {keys[name]: scores for name, scores in row["methods"].items()}
                row["methods"] = found[one.name].get("methods", {}) | own
            storage.publish_bytes(dump_json(row), _row_name(place, one.name))
            found[one.name] = row
        progress.report("samples", count=len(batch))
    return [
        row
        if "methods" not in row
        else row | {"methods": {name: row["methods"][key] for name, key in keys.items()}}
        for row in (found[one.name] for one in layout.images)
    ]


def _row_name(place: str, image: str) -> str:
    """Where an image's row is kept: its name is the publisher's, so it is no path of ours."""
    return f"{place}/{digest({'image': image})[:16]}.json"


def seed_of(one: Annotated) -> int:
    """The seed of an image's noise, a function of its name."""
    return int(digest({"image": one.name})[:8], 16)


def read_annotated(one: Annotated) -> tuple[UInt8[ndarray, "height width 3"], Truth]:
    """An image and its annotation.

    Raises:
        ValueError: In one line, if one cannot be read, or they are of different sizes.
    """
    pixels, truth = one.image(), one.truth()
    if pixels.shape[:2] != truth.semantic.shape:
        size = " x ".join(map(str, truth.semantic.shape))
        raise ValueError(f"annotation of {size} pixels, image of other size")
    return pixels, truth


def publish_tables(
    storage: Storage,
    name: str,
    result: Mapping[str, Any],
    text: str,
    figure: Figure,
    flat: Sequence[Mapping[str, Any]],
) -> None:
    """Write NAME.json, NAME.md, NAME.png and rows.parquet."""
    parquet, picture = io.BytesIO(), io.BytesIO()
    if flat:
        pq.write_table(pa.Table.from_pylist(list(flat)), parquet)
        storage.publish_bytes(parquet.getvalue(), "rows.parquet")
    figure.savefig(picture, format="png", dpi=120)
    storage.publish_bytes(picture.getvalue(), f"{name}.png")
    storage.publish_bytes(dump_json(result), f"{name}.json")
    storage.publish_bytes(text.encode(), f"{name}.md")


def shown(value: float | None) -> str:
    """A figure as tables have it.

    >>> shown(0.12345), shown(12.345), shown(None)
    ('0.123', '12.3', '–')
    """
    return "–" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def bars(table: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str], axis: str) -> Figure:
    """Two scores of each row of a table, the first in front."""
    figure = Figure(figsize=(7, 0.6 + 0.34 * len(table)), layout="constrained")
    axes = figure.subplots()
    names = list(table)[::-1]
    colors = ("#0072b2", "#d55e00")
    for offset, (key, color) in reversed(list(enumerate(zip(labels, colors, strict=True)))):
        values = [table[name][key] or 0.0 for name in names]
        places = [place + 0.2 - 0.4 * offset for place in range(len(names))]
        axes.barh(places, values, height=0.38, color=color, label=labels[key])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1)
    axes.set_xlabel(axis)
    axes.legend(fontsize=8, loc="lower right")
    return figure
