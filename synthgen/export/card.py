"""The README.md of an export: what it is, what is in it, what not to expect, how to load it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from importlib import resources
from typing import Any

from synthgen import __version__
from synthgen.export.format import ExportContext, Exporter
from synthgen.export.statistics import MAX_DISTANCE, Tally


def readme(
    settings: Mapping[str, Any],
    origin: Mapping[str, str],
    context: ExportContext,
    exporter: Exporter,
    tally: Tally,
    near_duplicates: int,
) -> str:
    """The card, from ``card.md.j2``; names of classes are untrusted."""
    from huggingface_hub import DatasetCard, DatasetCardData  # slow to import

    all_pixels = max(tally.all_pixels, 1)
    metadata = exporter.metadata([split for split in context.splits if tally.splits[split]])
    rows = [
        (_cell(name), tally.images[name], tally.instances[name], tally.pixels[name] / all_pixels)
        for name in context.classes.values()
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
        labeled=context.labeled,
        overlapping=context.overlapping,
        usage=exporter.usage().strip(),
        **origin,
        **settings,
    )
    return f"{card}\n"


def _cell(name: str) -> str:
    """A class name that cannot break the table or become HTML.

    >>> _cell("a|b <i>")
    'a\\\\|b &lt;i&gt;'
    """
    return " ".join(html.escape(name, quote=False).replace("|", "\\|").split())
