"""The files that describe a dataset to people and to Hugging Face: README.md and its friends.

The card's YAML names the tars (anything beside them would otherwise hijack ``load_dataset``) and
pins the features (inference looks at five samples only, and an empty list has no type).
"""

from __future__ import annotations

import functools
import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from synthgen import __version__
from synthgen.config import ANNOTATION_STEPS, Config, dump
from synthgen.storage.redaction import redact_tree
from synthgen.types import BACKGROUND, IGNORE


def hub_features(
    image_format: str, versions: Sequence[str], labeled: bool = False, of_photos: bool = False
) -> list[dict[str, Any]]:
    """``dataset_info.features`` of the card: every column's type, in the hub's YAML form.

    Args:
        image_format: Suffix of the image column.
        versions: Keys of ``provenance.versions``.
        labeled: Whether the samples carry labels.
        of_photos: Whether they were given, not drawn.
    """
    photo = {"photo": {"name": "string", "sha256": "string"}} if of_photos else {}
    rle = {"size": ["int64"], "counts": "string"}
    label = {"label": "string", "label_score": "float64"}
    place = {"area": "int64", "bbox_xywh": ["int64"]}
    segment = {"id": "int64", **place, "members": [["int64"]], "parent": "int64", **label}
    instances = {
        "not_found": ["string"],
        "instances": [{"id": "int64", **label, **place, "rle": rle}],
    }
    content = {
        "key": "string",
        "height": "int64",
        "width": "int64",
        "prompt": "string",
        "prompt_id": "string",
        "seed": "int64",
        "image_index": "int64",
        "classes": ["string"],
        "num_segments": "int64",
        "segments": [{**segment, "rle": rle}],
        **(instances if labeled else {}),
        "provenance": {
            **dict.fromkeys(("config", "model", "revision", "device", "dtype"), "string"),
            **dict.fromkeys(("algorithm_version", "batch", "batch_size"), "int64"),
            **photo,
            "versions": dict.fromkeys(versions, "string"),
        },
    }
    semantic = {"sem.png": "image"} if labeled else {}
    columns = {image_format: "image", "json": content, "mask.png": "image", **semantic}
    return _features({**columns, **dict.fromkeys(("txt", "__key__", "__url__"), "string")})


def _features(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Types in the hub's form: a name is a dtype, a list of one a list, a dictionary a struct."""
    return [
        {"name": name, "dtype": kind}
        if isinstance(kind, str)
        else {"name": name, "list": _item(kind[0])}
        if isinstance(kind, list)
        else {"name": name, "struct": _features(kind)}
        for name, kind in columns.items()
    ]


def _item(kind: Any) -> Any:
    if isinstance(kind, list):
        return {"list": _item(kind[0])}
    return kind if isinstance(kind, str) else _features(kind)


def class_table(names: Iterable[str], pinned: Mapping[str, int] | None = None) -> dict[str, str]:
    """The content of classes.json: id to name, 0 for background, 255 for ignore.

    Args:
        pinned: Ids of some; the others get those that are free, by alphabet.

    >>> class_table(["mat", "cat"]), class_table(["mat", "cat"], {"dog": 2, "mat": 1})
    ({'0': 'background', '1': 'cat', '2': 'mat', '255': 'ignore'}, {'0': 'background', ...})
    """
    table = {number: name for name, number in (pinned or {}).items()}
    taken = {*table, BACKGROUND, IGNORE}
    free = (number for number in itertools.count(1) if number not in taken)
    table |= dict(zip(free, sorted({*names} - {*(pinned or ())}), strict=False))
    table |= {BACKGROUND: "background", IGNORE: "ignore"}
    return {str(index): table[index] for index in sorted(table)}


def config_yaml(config: Config, digest: str) -> str:
    """The content of config.yaml: the resolved configuration, secrets taken out.

    ``synthgen generate config.yaml`` reads it back. Labeling that is off, and classes and
    extensions that there are not, are left out: datasets keep the file they always had.
    """
    tree = redact_tree(yaml.safe_load(dump(config)))
    if config.labeling.method == "none":
        del tree["labeling"]
    if config.classes is None:
        del tree["classes"]
    if not config.extended:
        del tree["extended"]
    if not config.balance:
        del tree["balance"]
    if not config.annotation.images:
        del tree["annotation"]
    head = f"# synthgen {__version__}: resolved configuration\n# digest: {digest}\n"
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def readme(
    config: Config,
    identity: Mapping[str, Any],
    tars: Sequence[str],
    manifest: Mapping[str, Any] | None,
    labels: Mapping[str, Any] | None = None,
) -> str:
    """The dataset card.

    Args:
        identity: Content of identity.json.
        tars: Names of the shards, for the hub and ``load_dataset``, or a pattern of them.
        manifest: The manifest; None while the dataset is being made.
        labels: Statistics of the labels (`label_statistics`); None without labels, and while the
            dataset is being made.
    """
    labeled, of_photos = config.labeling.method != "none", bool(config.annotation.images)
    versions = sorted(identity["environments"][0]["versions"])
    meta = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": []}]}],
        "dataset_info": {
            "features": hub_features(config.dataset.image_format, versions, labeled, of_photos)
        },
        "tags": [*([] if of_photos else ["synthetic"]), "segmentation", "webdataset"],
        "task_categories": ["image-segmentation"],
    }
    # our names need no quotes, and YAML takes half a minute to find that of 100,000 of them
    names = "\n" + "".join(f"    - {name}\n" for name in tars) if tars else " []\n"
    head = yaml.safe_dump(meta, sort_keys=False).replace(" []\n", names, 1)
    counted = [row["pixels"] for row in labels["classes"].values()] if labels else []
    body = _template().render(
        version=__version__,
        config=config,
        totals=manifest["totals"] if manifest else None,
        model=redact_tree(identity["content"]["model"]),
        digest=identity["digest"],
        labeled=labeled,
        steps=config.generation.num_inference_steps or ANNOTATION_STEPS,
        counted=labels is not None,
        labels=labels or {"classes": {}},
        pixels=max(1, sum(counted) + labels["background"] + labels["undecided"]) if labels else 1,
    )
    return f"---\n{head}---\n{body}"


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["plain"] = _plain
    text = resources.files("synthgen.dataset").joinpath("card.md.j2").read_text("utf-8")
    return environment.from_string(text)


def _plain(name: str) -> Markup:
    """A class name that no Markdown reader takes for markup or another cell.

    >>> str(_plain("a|b<i>"))
    'a\\\\|b&lt;i&gt;'
    """
    return Markup(html.escape(name, quote=False).replace("|", "\\|"))  # noqa: S704
