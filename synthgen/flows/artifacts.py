"""What a run leaves on the server for people: its table, a contact sheet, a link to the report.

The server stores these in its database, so they are small: numbers, and one picture of some
tens of kilobytes inside the Markdown (an image artifact would need a URL that the browser of
whoever looks can reach).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from synthgen.config import TOPS
from synthgen.dataset.contact_sheet import magnify, overlay
from synthgen.dataset.loader import open_dataset
from synthgen.redaction import redact

SHOWN = 8
SIDE = 144  # pixels of a tile: eight pairs are about 40 kB
QUALITY = 75


def publish_dataset(
    rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any], out: str
) -> None:
    """The shards of a run as a table; the dataset's totals and newest samples as Markdown.

    Args:
        rows: One per shard, as `synthgen.types.ShardReport` has it.
        manifest: The dataset's manifest.
        out: The dataset's folder or URL.
    """
    table = [
        {
            "shard": row["name"],
            "planned": row["planned"],
            **row["counts"],
            "bytes": row["num_bytes"],
            "reused": row["reused"],
            "worker": row.get("worker", ""),
            "sha256": row["sha256"][:12],
        }
        for row in rows
    ]
    create_table_artifact(table=table, key="synthgen-shards", description="Shards of this run")
    totals = "\n".join(f"- {name}: {value}" for name, value in manifest["totals"].items())
    made = sum(row["planned"] for row in rows if not row["reused"])
    lines = [f"# Dataset\n\n`{redact(out)}`, {made} samples planned in this run\n\n{totals}\n"]
    picture = contact_sheet(manifest, out)
    if picture:
        uri = "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")
        lines.append(f"\nNewest samples, image and hierarchy:\n\n![contact sheet]({uri})\n")
    create_markdown_artifact(key="synthgen-dataset", markdown="".join(lines))


def publish_report(report: str | Path) -> None:
    """A link to a report that was written."""
    link = report.absolute().as_uri() if isinstance(report, Path) else redact(report)
    create_link_artifact(link=link, link_text="Report", key="synthgen-report")


def publish_audit(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    """The shards of an audit as a table; what it found beside its baselines as Markdown."""
    table = [dict(row) for row in rows]
    create_table_artifact(table=table, key="synthgen-audit-shards", description=summary["id"])
    create_markdown_artifact(key="synthgen-audit", markdown=audit_markdown(summary))


def audit_markdown(summary: Mapping[str, Any]) -> str:
    """What an audit found: ours beside the baselines, then kept and rejected by reason.

    >>> summary = {"id": "sam", "means": {"top_1": 0.5}, "totals": {"kept": 1}}
    >>> print(audit_markdown(summary).split("---:|")[-1].strip().splitlines()[0])
    | Top-1 | 0.500 | - | - |
    """
    lines = ["# Audit", "", f"`{summary['id']}`", ""]
    lines += ["| | ours | chance | others' masks |", "|---|---:|---:|---:|"]
    for name, label in ((f"top_{top}", f"Top-{top}") for top in TOPS):
        cells = (summary["means"].get(prefix + name) for prefix in ("", "chance_", "others_"))
        shown = " | ".join("-" if cell is None else f"{cell:.3f}" for cell in cells)
        lines.append(f"| {label} | {shown} |")
    totals = [f"- {name}: {value}" for name, value in summary["totals"].items()]
    return "\n".join([*lines, "", *totals, ""])


def contact_sheet(manifest: Mapping[str, Any], out: str) -> bytes:
    """The first samples of the newest shard, image beside hierarchy, as a small JPEG.

    Args:
        manifest: The dataset's manifest.
        out: The dataset's folder or URL.

    Returns:
        The file's content; empty where no sample survived.
    """
    tars = [row["name"] for row in manifest["shards"] if not row["skipped"]]
    if not tars:
        return b""
    pairs = []
    for sample in islice(open_dataset(f"{out.rstrip('/')}/{tars[-1]}", masks=False), SHOWN):
        tiles = (magnify(sample["image"]), overlay(sample["image"], sample["mask"]))
        pair = Image.fromarray(np.concatenate(tiles, axis=1))
        pair.thumbnail((2 * SIDE, SIDE))
        pairs.append(pair)
    canvas = Image.new("RGB", (4 * SIDE, -(-len(pairs) // 2) * SIDE), "white")
    for number, pair in enumerate(pairs):
        canvas.paste(pair, (number % 2 * 2 * SIDE, number // 2 * SIDE))
    stream = io.BytesIO()
    canvas.save(stream, format="JPEG", quality=QUALITY)
    return stream.getvalue()
