"""The README.md of an export: what it is, what is in it, what not to expect, how to load it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

from synthgen import __version__
from synthgen.export.duplicates import MAX_DISTANCE
from synthgen.export.statistics import Tally


def readme(
    settings: Mapping[str, Any],
    source: Mapping[str, Any],
    classes: Sequence[str],
    labeled: bool,
    overlapping: bool,
    tally: Tally,
    near_duplicates: int,
    usage: str,
    metadata: Mapping[str, Any],
) -> str:
    """The card.

    Args:
        settings: What the export was asked for.
        source: ``digest``, ``models`` and ``license`` of the dataset it was made from.
        classes: Names in use.
        labeled: Whether masks have classes.
        overlapping: Whether objects are masks that may overlap.
        tally: Counts over all shards.
        near_duplicates: See `duplicates.count_near_duplicates`.
        usage: How to load it, Markdown.
        metadata: The format's part of the head that the hub reads.
    """
    head = {
        **metadata,
        "tags": ["synthetic", "segmentation"],
        "task_categories": ["image-segmentation"],
    }
    settings = {**settings, "labels": _labels(settings["labels"], labeled)}
    text = _BODY.format(
        version=__version__,
        samples=sum(tally.splits.values()),
        splits=", ".join(f"{name} {count}" for name, count in tally.splits.items()) or "none",
        near_duplicates=near_duplicates,
        distance=MAX_DISTANCE,
        classes=_class_table(classes, tally),
        usage=usage.strip(),
        choices=_choices(settings, tally, overlapping),
        objects=_MASKS if overlapping else _OBJECTS,
        **source,
        **settings,
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{text}"


def _labels(label_id: str | None, labeled: bool) -> str:
    """Where the classes come from, in words."""
    return f"`labels/{label_id}`" if label_id else "in its tars" if labeled else "none"


@functools.cache
def model_licenses() -> Mapping[str, str]:
    """License of the weights by card name and hub id.

    Read from the file: importing ``synthgen.diffusion`` would load diffusers for one word.

    >>> model_licenses()["scenes"]
    'Apache-2.0'
    """
    text = resources.files("synthgen").joinpath("diffusion/cards.yaml").read_text("utf-8")
    cards = yaml.safe_load(text)
    return {
        str(name): str(card.get("license", "unknown"))
        for key, card in cards.items()
        for name in (key, card.get("hub_id"))
        if name
    }


def _choices(settings: Mapping[str, Any], tally: Tally, overlapping: bool) -> str:
    """What was left out, and why."""
    lines = []
    if settings["audited"] is None:
        lines.append("No audit was asked for: bad masks are in it.")
    elif settings["keep_only"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in tally.left_out.items())
        left = sum(tally.left_out.values())
        lines.append(
            f"The audit `{settings['audited']}` left out {left} images"
            + (f" ({reasons})." if left else ".")
        )
    else:
        lines.append(f"The audit `{settings['audited']}` was read, but nothing was left out.")
    if settings["min_area"]:
        fate = "are left out" if overlapping else "join what they border on"
        share = " of the image" if settings["min_area"] < 1 else " pixels"
        lines.append(f"Below {settings['min_area']:g}{share}, objects {fate}.")
    if settings["min_label_score"]:
        least = settings["min_label_score"]
        fate = "masks without a class" if overlapping else "pixels to ignore"
        lines.append(f"Objects whose label scores below {least} are {fate}.")
    return " ".join(lines)


def _class_table(classes: Sequence[str], tally: Tally) -> str:
    rows = [
        f"| {_cell(name)} | {tally.images[name]} | {tally.instances[name]} "
        f"| {tally.pixels[name] / max(tally.all_pixels, 1):.2%} |"
        for name in classes
    ]
    never = [_cell(name) for name in classes if not tally.instances[name]]
    note = f"\n\nNever seen: {', '.join(never)}." if never else ""
    head = "| class | images | objects | share of pixels |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + note


def _cell(name: str) -> str:
    """A class name that cannot break the table or become HTML."""
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(escaped.replace("|", "\\|").split())


_OBJECTS = """Objects are connected components: two that touch are one, one that is hidden in part
may be two."""
_MASKS = """The class `mask` is that of masks without one. They overlap, from foreground to eye, so
their shares may sum to more than the image."""
_BODY = """
# Synthetic segmentation dataset, format {format}

Images drawn by a diffusion model from text prompts, and masks clustered from the attention of
that model while it drew them. Nobody drew or checked a mask. Exported by synthgen {version}.

- Images: {samples} ({splits}), split {split} by a hash of the prompt: images of one prompt are
  never in two splits.
- Near-duplicates: {near_duplicates} images have an earlier one that differs in at most
  {distance} of 64 bits of a perceptual hash.
- {choices}
- Model: {models}. Its biases are those of the images. Images were not screened.
- License: {license} (that of the model).
- Source: dataset `{digest}`; labels: {labels}.

## Classes

{classes}

{objects}

## Use

{usage}

Paths are relative to this folder. `classes.json` maps ids to names, `export.json` says what was
exported, `SHA256SUMS` vouches for every file (`synthgen verify`, or `sha256sum -c SHA256SUMS`).
"""
