"""What an export is asked for, and whether it fits into the folder that is to hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synthgen import registry
from synthgen.storage.publish import Storage


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that are out of range or without effect.

    Raises:
        ValueError: In one line.
    """
    if not 0.0 <= settings["min_label_score"] <= 1.0:
        raise ValueError(f"min_label_score must be 0 to 1. Got {settings['min_label_score']}.")
    if not 0.0 <= settings["min_area"] < float("inf"):
        raise ValueError(
            f"min_area must be pixels, or a share of the image below 1. Got "
            f"{settings['min_area']}."
        )
    if settings["masks"] not in ("labeled", "all"):
        raise ValueError(f"masks must be labeled or all. Got {settings['masks']!r:.40}.")
    shown, format = settings["segmentation"], settings["format"]
    if shown is not None and format in registry.EXPORTERS and format != "coco":
        raise ValueError(
            f"segmentation must be given with the format coco. Got {shown!r:.40} with {format}; "
            f"leave it out."
        )


def refuse_foreign(out: Storage) -> None:
    """Refuse a folder with files that no export of ours has made.

    Raises:
        ValueError: In one line, with some of them.
    """
    names = sorted({*out.names(), *out.folders()} - {".synthgen"})  # one killed at its start
    if out.local_root is not None and out.local_root.is_file():
        names = [out.local_root.name]
    if names:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise ValueError(
            f"The output must be a new or empty folder. Got {out.root} with {shown}. Choose "
            f"another folder."
        )


def describe_difference(standing: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first thing that differs, in words."""
    for part, new in asked.items():
        old = standing.get(part) or {}
        for name in sorted(new):
            what = f"class {name}" if part == "classes" else name
            if name not in old:
                return f"begun without {what} {new[name]!r:.40}"
            if old[name] != new[name]:
                return f"begun with {what} {old[name]!r:.40}, not {new[name]!r:.40}"
    return "begun with other classes"
