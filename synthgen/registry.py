"""Plug-ins by name: short names are rows of a table, third parties give ``package.module:name``.

No decorators and no import side effects: a table maps a short name to ``"module:attribute"``
and the module is imported when, and only when, the name is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Mapping
from typing import Any

SEGMENTERS: Mapping[str, str] = {
    "per-head": "synthgen.segmentation.segment:segment_per_head",
    "head-average": "synthgen.segmentation.segment:segment_head_average",
    "rgbxy": "synthgen.segmentation.segment:segment_rgbxy",
    "ncut": "synthgen.segmentation.ncut:segment_ncut",
    "ward": "synthgen.segmentation.ncut:segment_ward",
    "diffcut": "synthgen.segmentation.ncut:segment_diffcut",
    "diffseg": "synthgen.segmentation.diffseg:segment_diffseg",
    "diffseg-k": "synthgen.segmentation.diffseg:segment_diffseg_k",
    "spectral": "synthgen.segmentation.spectral:segment_spectral",
    "spectral-symmetric": "synthgen.segmentation.spectral:segment_spectral_symmetric",
    "iseg": "synthgen.segmentation.iseg:segment_iseg",
}

AUDITORS: Mapping[str, str] = {
    "scenes-sam": "synthgen.auditing.sam:load_scenes_sam",
    "sam": "synthgen.auditing.sam:load_sam",
    "transformers-sam": "synthgen.auditing.transformers_sam:load_transformers_sam",
    "scenes-m2f": "synthgen.auditing.mask2former:load_scenes_mask2former",
    "mask2former": "synthgen.auditing.mask2former:load_mask2former",
}

LABELERS: Mapping[str, str] = {
    "clusters": "synthgen.labeling.clusters:label_by_clusters",
    "propagate": "synthgen.labeling.propagation:label_by_propagation",
    "dataset-diffusion": "synthgen.labeling.propagation:label_by_powers",
    "vote": "synthgen.labeling.votes:label_by_votes",
    "argmax": "synthgen.labeling.label:label_by_argmax",
}

CLUSTER_REFINERS: Mapping[str, str] = {
    "none": "",  # clusters stay as they are
    "affinity": "synthgen.segmentation.refine:refine_by_affinity",
    "guided": "synthgen.segmentation.refine:refine_by_guided_filter",
    "affinity-guided": "synthgen.segmentation.refine:refine_by_affinity_and_guide",
    "superpixel": "synthgen.segmentation.refine:refine_by_superpixels",
}

REFINERS: Mapping[str, str] = {
    "none": "synthgen.labeling.refine:keep",
    "upsampling-error": "synthgen.labeling.refiners_border:ignore_uncertain",
    "upsampling-color": "synthgen.labeling.refiners_border:recolor_uncertain",
    "pamr": "synthgen.labeling.refiners_color:refine_by_pamr",
    "color-majority": "synthgen.labeling.refiners_color:refine_by_color_majority",
}

DOWNSTREAM_MODELS: Mapping[str, str] = {
    "segformer": "synthgen.lab.downstream.segmenters:build_segformer",
    "segformer-b0": "synthgen.lab.downstream.segmenters:build_segformer_b0",
    "lraspp": "synthgen.lab.downstream.segmenters:build_lraspp",
    "deeplab": "synthgen.lab.downstream.segmenters:build_deeplab",
}

EXPORTERS: Mapping[str, str] = {
    "coco": "synthgen.export.coco:CocoExporter",
    "coco-panoptic": "synthgen.export.coco:PanopticExporter",
    "voc": "synthgen.export.voc:VocExporter",
    "fiftyone": "synthgen.export.folders:FiftyOneExporter",
    "yolo-seg": "synthgen.export.yolo:YoloExporter",
    "hf-parquet": "synthgen.export.parquet:ParquetExporter",
    "ade": "synthgen.export.folders:AdeExporter",
}

RENAMED: Mapping[str, str] = {
    "labeling.method=pcc": "vote",
    "labeling.refiner=guided": "pamr",
    "labeling.refiner=pcc": "color-majority",
}
"""Rows that had another name: datasets that were made with it are read, `check_name` says it."""

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def resolve(name: str, table: Mapping[str, str], kind: str = "plug-in") -> Any:
    """The object that ``name`` stands for: a row of ``table`` or any ``module:attribute``.

    Raises:
        ValueError: If the name is neither a row (near misses are named) nor importable.

    >>> resolve("join", {"join": "posixpath:join"})("a", "b")
    'a/b'
    """
    try:
        check_name(name, table)
    except ValueError as error:
        raise ValueError(f"{kind} {error}") from None
    module, attribute = table.get(name, name).split(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{kind} {name!r} must be importable. Got: {error}.") from error


def check_name(name: str, table: Mapping[str, str]) -> None:
    """Refuse what is neither a row of a table nor ``module:attribute``; nothing is imported.

    Raises:
        ValueError: With near misses.

    >>> check_name("jion", {"join": "posixpath:join"})
    Traceback (most recent call last):
    ValueError: must be one of join or 'module:attribute'. Got 'jion'. Did you mean 'join'?
    """
    if name not in table and not is_plug_in(name):
        for old, new in RENAMED.items():
            if old.endswith(f"={name}") and new in table:
                raise ValueError(f"must be a name of today: {name} is called {new}. Got {name!r}.")
        raise ValueError(
            f"must be one of {', '.join(sorted(table))} or 'module:attribute'. "
            f"Got {name!r:.80}.{near_miss(name, table)}"
        )


def is_plug_in(name: str) -> bool:
    """Whether a name has the form ``module:attribute``.

    >>> is_plug_in("mylab.models:load"), is_plug_in("owner/name")
    (True, False)
    """
    return _TARGET.fullmatch(name) is not None


def near_miss(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """A hint " Did you mean 'x'?" for a misspelled name, empty where nothing is near.

    >>> near_miss("scense", ["scenes", "sd15"])
    " Did you mean 'scenes'?"
    >>> near_miss("zebra", ["scenes"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
