"""What a run leaves on the server for people: its tables, a contact sheet, where the report is.

The server stores these in its database, so they are small: numbers, and one picture of some
tens of kilobytes inside the Markdown (an image artifact would need a URL that the browser of
whoever looks can reach).
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from itertools import islice
from typing import Any
from uuid import UUID

import numpy as np
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.runtime import flow_run

from synthgen.config import TOPS
from synthgen.dataset.loader import open_dataset
from synthgen.drawing import magnify, overlay
from synthgen.storage.redaction import redact

SHOWN = 8
SIDE = 144  # pixels of a tile: eight pairs are about 40 kB
QUALITY = 75


def put(kind: str, key: str, data: Any, description: str | None = None) -> UUID:
    """Put an artifact on the run that was asked for, whichever flow inside it makes it.

    Args:
        kind: ``progress``, ``markdown`` or ``table``.
        key: Its name; the server keeps one history for each.
        data: A share, text, or rows.
        description: Text beside it.

    Returns:
        Its id.
    """
    root = flow_run.root_flow_run_id
    artifact = ArtifactCreate(
        type=kind,
        key=key,
        data=json.dumps(data) if kind == "table" else data,
        description=description,
        flow_run_id=None if root is None else UUID(root),
    )
    with get_client(sync_client=True) as client:
        return client.create_artifact(artifact).id


def update_progress(artifact: UUID, percent: float) -> None:
    """Move a progress artifact on."""
    with get_client(sync_client=True) as client:
        client.update_artifact(artifact, ArtifactUpdate(data=percent))


def publish_dataset(manifest: Mapping[str, Any], out: str) -> None:
    """A dataset's totals and newest samples as Markdown.

    Args:
        manifest: The dataset's manifest.
        out: The dataset's folder or URL.
    """
    totals = "\n".join(f"- {name}: {value}" for name, value in manifest["totals"].items())
    lines = [f"# Dataset\n\n`{redact(out)}`\n\n{totals}\n"]
    picture = contact_sheet(manifest, out)
    if picture:
        uri = "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")
        lines.append(f"\nNewest samples, image and hierarchy:\n\n![contact sheet]({uri})\n")
    put("markdown", "synthgen-dataset", "".join(lines))


def publish_report(report: object, out: str) -> None:
    """Where a report was written, and how to look at it: browsers open no file of a server's."""
    where, view = redact(str(report)), f"synthgen view {redact(out)}"
    text = f"The report is `{where}`. To look at it, on a machine that has it: `{view}`"
    put("markdown", "synthgen-report", text)


def publish_audit(summary: Mapping[str, Any]) -> None:
    """What an audit found as Markdown: ours beside the baselines, then verdicts by reason."""
    lines = ["# Audit", "", f"`{summary['id']}`", ""]
    lines += ["| | ours | color and position | others' masks |", "|---|---:|---:|---:|"]
    for top in TOPS:
        names = (f"{prefix}top_{top}" for prefix in ("", "color_baseline_", "shuffled_masks_"))
        cells = (summary["means"].get(name) for name in names)
        shown = " | ".join("-" if cell is None else f"{cell:.3f}" for cell in cells)
        lines.append(f"| Top-{top} | {shown} |")
    totals = [f"- {name}: {value}" for name, value in summary["totals"].items()]
    put("markdown", "synthgen-audit", "\n".join([*lines, "", *totals, ""]))


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
