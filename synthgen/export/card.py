"""The README.md of an export: what it is, what is in it, what not to expect, how to load it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from synthgen import __version__
from synthgen.export.duplicates import MAX_DISTANCE
from synthgen.export.statistics import Tally


def readme(
    settings: Mapping[str, Any],
    source: Mapping[str, str],
    classes: Sequence[str],
    labeled: bool,
    overlapping: bool,
    tally: Tally,
    near_duplicates: int,
    usage: str,
    metadata: Mapping[str, Any],
) -> str:
    """The card, from ``card.md.j2``.

    Args:
        settings: What the export was asked for.
        source: ``digest``, ``models`` and ``license`` of the dataset it was made from.
        classes: Names in use. Untrusted.
        labeled: Whether masks have classes.
        overlapping: Whether objects are masks that may overlap.
        tally: Counts over all shards.
        near_duplicates: See `duplicates.count_near_duplicates`.
        usage: How to load it, Markdown.
        metadata: The format's part of the head that the hub reads.
    """
    from huggingface_hub import DatasetCard, DatasetCardData  # slow to import

    all_pixels = max(tally.all_pixels, 1)
    rows = [
        (_cell(name), tally.images[name], tally.instances[name], tally.pixels[name] / all_pixels)
        for name in classes
    ]
    card = DatasetCard.from_template(
        DatasetCardData(
            task_categories=["image-segmentation"], tags=["synthetic", "segmentation"], **metadata
        ),
        template_str=resources.files("synthgen.export").joinpath("card.md.j2").read_text("utf-8"),
        version=__version__,
        splits=tally.splits,
        left_out=tally.left_out,
        near_duplicates=near_duplicates,
        distance=MAX_DISTANCE,
        classes=rows,
        labeled=labeled,
        overlapping=overlapping,
        usage=usage.strip(),
        **source,
        **settings,
    )
    return f"{card}\n"


def _cell(name: str) -> str:
    """A class name that cannot break the table or become HTML.

    >>> _cell("a|b <i>")
    'a\\\\|b &lt;i&gt;'
    """
    return " ".join(html.escape(name, quote=False).replace("|", "\\|").split())
